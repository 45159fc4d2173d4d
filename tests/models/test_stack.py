import torch

from longwave.models.layer import Layer
from longwave.models.stack import Stack


class Plain(Layer):
    """No recurrence: x + 1, and a final state that begins with the end of the sequence."""

    def unroll(self, x, state=None):
        return x + 1, (x[-1] + 1, x[-1])

    backend = "plain"


class Sum(Layer):
    """The running sum, whose state is its end."""

    seen = None

    def unroll(self, x, state=None):
        sequence = x.cumsum(0) + (0 if state is None else state)
        return sequence, sequence[-1]

    def after_step(self, step):
        self.seen = step


def test_masks_are_shared_over_time_scaled_and_behind_every_layer():
    torch.manual_seed(0)
    stack = Stack([Plain(), Plain()], dropout=0.25)
    sequence, (end, (first, second)) = stack(torch.zeros(5, 50, 400))
    # 0 -> 1 -> mask -> 1 + mask -> (1 + mask) mask'.
    lower, upper = first[0], second[0]
    assert torch.equal(lower, torch.ones(50, 400))
    values, counts = upper.unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([1.0, 1 + 4 / 3]))
    kept = counts[1].item() / upper.numel()
    assert abs(kept - 0.75) < 0.015
    assert torch.equal(sequence, sequence[:1].expand(5, -1, -1))
    assert torch.equal(end, sequence[-1])
    mask = end / upper
    torch.testing.assert_close(mask.unique(), torch.tensor([0.0, 4 / 3]))
    # Another mask in each layer: both keep a unit with probability 0.75^2.
    both = ((mask > 0) & (upper > 1.5)).float().mean().item()
    assert abs(both - 0.5625) < 0.015
    # And for each sequence and each unit.
    assert all((mask == 0).float().mean(dim).gt(0).all() for dim in (0, 1))


def test_the_mask_follows_from_the_seed():
    stack, x, drawn = Stack([Plain()], dropout=0.5), torch.zeros(2, 3, 40), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(stack(x)[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_no_mask_in_evaluation_and_without_dropout():
    x = torch.zeros(3, 2, 40)
    for stack in (Stack([Plain(), Plain()], dropout=0.5).eval(), Stack([Plain(), Plain()]).train()):
        generator = torch.get_rng_state()
        sequence, (end, _) = stack(x)
        assert torch.equal(sequence, torch.full((3, 2, 40), 2.0))
        assert torch.equal(end, torch.full((2, 40), 2.0))
        assert torch.equal(torch.get_rng_state(), generator)


def test_residual_adds_what_went_in_from_the_second_layer_on():
    x = torch.tensor([1.0, 10.0]).view(2, 1, 1)
    sequence, (end, finals) = Stack([Sum(), Sum(), Sum()], residual=True).eval()(x)
    first = torch.tensor([1.0, 11.0]).view(2, 1, 1)
    second = first + torch.tensor([1.0, 12.0]).view(2, 1, 1)
    third = second + torch.tensor([2.0, 25.0]).view(2, 1, 1)
    assert torch.equal(sequence, third)
    assert torch.equal(end, third[-1])
    assert [final.item() for final in finals] == [11.0, 12.0, 25.0]


def test_residual_comes_behind_the_dropout():
    torch.manual_seed(0)
    sequence, (end, (first, _)) = Stack([Plain(), Plain()], dropout=0.5, residual=True)(torch.zeros(4, 2, 50))
    # 0 -> 1 -> mask m -> m + mask' (m + 1), with masks of 0 and 2.
    assert torch.equal(sequence[0].unique(), torch.tensor([0.0, 2.0, 8.0]))
    assert torch.equal(end, sequence[-1])
    assert torch.equal(first[0], torch.ones(2, 50))


def test_a_sequence_may_be_cut_and_gone_on_with():
    x = torch.randn(7, 2, 3)
    stack = Stack([Sum(), Sum()], dropout=0.5).eval()
    whole, (end, finals) = stack(x)
    first, state = stack(x[:3])
    # The end of the sequence before is not read.
    second, (last_end, last) = stack(x[3:], (None, state[1]))
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close((last_end, *last), (end, *finals))
    assert torch.equal(end, whole[-1])


def test_the_layers_hear_of_the_update():
    stack = Stack([Plain(), Sum()])
    stack.after_step(7)
    assert stack.layers[1].seen == 7
    assert stack.backend == "plain"
