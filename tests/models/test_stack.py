import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence, unpack_sequence
from torch.utils._pytree import tree_leaves

from longwave import GRU, LEM, LSTM, RNN, AntisymmetricRNN, CoRNN, ExpRNN, IndRNN, LinOSS, NeuralRDE, UnICORNN
from longwave.models.layer import Layer
from longwave.models.stack import Stack, Stacked


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


TORCHS = {"lstm": (LSTM, nn.LSTM), "gru": (GRU, nn.GRU), "rnn": (RNN, nn.RNN)}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("given", ["batch", "one", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("name", TORCHS)
def test_stacked_is_torchs(name, num_layers, bidirectional, given, batch_first):
    """With the same weights: outputs, final states and gradients, from zeros and from a state."""
    torch.manual_seed(0)
    kind, torchs = TORCHS[name]
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "batch_first": batch_first}
    ours, theirs = Stacked(kind, 3, 5, **options).double(), torchs(3, 5, **options).double()
    names = [
        f"_l{layer}{direction}" for layer in range(num_layers) for direction in ("", "_reverse")[: 1 + bidirectional]
    ]
    for layer, suffix in zip(ours.layers, names, strict=True):
        layer.load_state_dict({key: getattr(theirs, key.removesuffix("_l0") + suffix) for key in layer.state_dict()})
    x = torch.randn(7, 4, 3, dtype=torch.float64).transpose(0, int(batch_first))
    x = x.select(int(not batch_first), 0) if given == "one" else x
    if given == "packed":
        x = pack_padded_sequence(x, torch.tensor([3, 7, 1, 3]), batch_first, enforce_sorted=False)
    first, state = theirs(x)
    found, final = ours(x)
    expected, last = theirs(x, state)
    again, end = ours(x, final)
    for a, b in ((found, first), (again, expected)):
        assert type(a) is type(b)
        torch.testing.assert_close(a.data, b.data)
    for a, b in zip(tree_leaves((final, end)), tree_leaves((state, last)), strict=True):
        torch.testing.assert_close(a, b)
    for output in (again, expected):
        (output.data if given == "packed" else output).square().sum().backward()
    for layer, suffix in zip(ours.layers, names, strict=True):
        for key, parameter in layer.named_parameters():
            torch.testing.assert_close(parameter.grad, getattr(theirs, key.removesuffix("_l0") + suffix).grad)


# Every layer, with settings under which it moves.
KINDS = {
    "antisymmetric_rnn": partial(AntisymmetricRNN, epsilon=0.5),
    "cornn": partial(CoRNN, dt=0.5),
    "exprnn": ExpRNN,
    "gru": GRU,
    "indrnn": partial(IndRNN, norm="after"),
    "lem": LEM,
    "linoss": LinOSS,
    "linoss last": partial(LinOSS, pooling="last"),
    "lstm": LSTM,
    "rnn": RNN,
    "unicornn": partial(UnICORNN, layers=2, dt=1.0),
    "unicornn deviation": partial(UnICORNN, layers=2, dt=1.0, output="deviation"),
}


@pytest.mark.parametrize("name", KINDS)
def test_stacked_is_its_layers_one_after_the_other(name):
    """Both directions, by hand for each sequence alone, from zeros; packed, in a batch and by itself."""
    torch.manual_seed(0)
    stacked = Stacked(KINDS[name], 3, 6, num_layers=2, bidirectional=True, dropout=0.5).double().eval()
    sequences = [torch.randn(n, 3, dtype=torch.float64) for n in (4, 6, 1)]
    packed, state = stacked(pack_sequence(sequences, enforce_sorted=False))
    padded, lengths = pad_packed_sequence(packed)
    ends = stacked.ends(padded, lengths)
    for number, (x, output) in enumerate(zip(sequences, unpack_sequence(packed), strict=True)):
        sequence, finals = x.unsqueeze(1), []
        for forwards, backwards in (stacked.layers[:2], stacked.layers[2:]):
            (right, final), (left, other) = forwards(sequence), backwards(sequence.flip(0))
            sequence, finals = torch.cat([right, left.flip(0)], -1), [*finals, final, other]
        assert output.shape == (len(x), 12)
        torch.testing.assert_close(output, sequence.squeeze(1))
        alone, one = stacked(x)
        torch.testing.assert_close(alone, output)
        for parts, single, *by_hand in zip(
            tree_leaves(state), tree_leaves(one), *map(tree_leaves, finals), strict=True
        ):
            assert len(parts) == 4
            for part, last, end in zip(parts, single, by_hand, strict=True):
                torch.testing.assert_close(part[number], end[0] if end.dim() else end.view(1))
                torch.testing.assert_close(last, end[0] if end.dim() else end)
        # What a readout gets begins the states of the top layer.
        torch.testing.assert_close(ends[number], torch.cat([tree_leaves(final)[0][0] for final in finals[2:]]))


@pytest.mark.parametrize("name", KINDS)
def test_stacked_steps_and_goes_on(name):
    torch.manual_seed(0)
    stacked = Stacked(KINDS[name], 3, 6, num_layers=2, batch_first=True).double().eval()
    x, state = torch.randn(2, 5, 3, dtype=torch.float64), None
    whole, final = stacked(x)
    outputs = []
    for step in x.unbind(1):
        output, state = stacked.step(step, state)
        outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs, 1), whole)
    for a, b in zip(tree_leaves(state), tree_leaves(final), strict=True):
        torch.testing.assert_close(a, b)
    both = Stacked(KINDS[name], 3, 6, bidirectional=True)
    with pytest.raises(ValueError, match=r"^bidirectional=True: the backward direction needs the whole sequence"):
        both.step(torch.randn(2, 3))


def test_stacked_drops_between_the_layers_only_and_at_each_step():
    torch.manual_seed(0)
    stacked = Stacked(lambda inputs, hidden: Plain(), 40, 40, num_layers=2, dropout=0.25)
    sequence, _ = stacked(torch.zeros(5, 50, 40))
    # 0 -> 1 -> mask -> mask + 1.
    torch.testing.assert_close(sequence.unique(), torch.tensor([1.0, 1 + 4 / 3]))
    assert abs((sequence > 1).float().mean() - 0.75) < 0.02
    assert not torch.equal(sequence[0], sequence[1])
    assert torch.equal(stacked.eval()(torch.zeros(5, 50, 40))[0], torch.full((5, 50, 40), 2.0))


def test_stacked_hears_of_the_update():
    stacked = Stacked(partial(IndRNN, magnitude=0.5), 3, 4, num_layers=2)
    with torch.no_grad():
        for layer in stacked.layers:
            layer.layers[0].u.fill_(2.0)
    stacked.after_step(1)
    assert all((layer.layers[0].u == 0.5).all() for layer in stacked.layers)
    assert stacked.backend == stacked.layers[0].layers[0].backend
    assert Stacked(CoRNN, 3, 4, backend="reference").backend == "reference"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_layers": 0}, "num_layers=0: must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0: must be at least 0 and less than 1"),
        ({"dt": -1.0}, "dt=-1.0: must be greater than 0"),
    ],
)
def test_what_stacked_refuses(wrong, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Stacked(CoRNN, 3, 4, **wrong)


def test_log_signatures_are_not_stacked():
    message = r"^NeuralRDE cannot be stacked or reversed: it reads log-signatures, not sequences$"
    for options in ({"num_layers": 2}, {"bidirectional": True}):
        with pytest.raises(ValueError, match=message):
            Stacked(NeuralRDE, 3, 4, **options)
    assert Stacked(NeuralRDE, 3, 4)(torch.randn(5, 3))[0].shape == (5, 4)
