import pytest
import torch
from torch import nn

from longwave.models.layer import Layer
from longwave.models.network import Group, Network
from longwave.training.optimizers import OPTIMIZERS, Optimizer, Scheduler


class Last(Layer):
    """No recurrence."""

    def __init__(self, inputs, hidden):
        super().__init__()
        self.linear = nn.Linear(inputs, hidden)

    def unroll(self, x, state=None):
        sequence = self.linear(x)
        return sequence, sequence[-1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_step_is_torchs(name):
    options = {"momentum": 0.9} if name in ("sgd", "rmsprop") else {"betas": [0.8, 0.9]}
    ours, theirs = Network(Last(3, 2), nn.Linear(2, 1)), Network(Last(3, 2), nn.Linear(2, 1))
    theirs.load_state_dict(ours.state_dict())
    cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop, "sgd": torch.optim.SGD}
    pairs = [
        (ours, Optimizer(name=name, lr=0.1, weight_decay=0.01, **options).build(ours)),
        (theirs, cls[name](theirs.parameters(), lr=0.1, weight_decay=0.01, **options)),
    ]
    x = torch.randn(2, 5, 3)
    for model, optimizer in pairs:
        for _ in range(3):
            optimizer.zero_grad()
            model(x).pow(2).sum().backward()
            optimizer.step()
    assert torch.equal(ours.layer.linear.weight, theirs.layer.linear.weight)


def test_groups_have_their_own_rate_and_decay():
    layer, readout = Last(3, 2), nn.Linear(2, 1)
    model = Network(
        layer, readout, [Group([layer.linear.bias, readout.bias], weight_decay=0), Group([readout.weight], lr=10)]
    )
    groups = Optimizer(name="sgd", lr=0.1, weight_decay=0.01).build(model).param_groups
    assert [(g["params"], g["lr"], g["weight_decay"]) for g in groups] == [
        ([layer.linear.weight], 0.1, 0.01),
        ([layer.linear.bias, readout.bias], 0.1, 0),
        ([readout.weight], 1.0, 0.01),
    ]


def rates(scheduler: Scheduler, steps: int, per_unit: int = 1) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = scheduler.build(optimizer, per_unit, steps)
    optimizer.step()
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    return found


def test_schedules():
    assert rates(Scheduler(), 3) == [1, 1, 1]
    assert rates(Scheduler(name="step", milestones=[1, 2], factor=0.5), 6, per_unit=2) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    exponential = rates(Scheduler(name="exponential", factor=0.5), 5, per_unit=2)
    assert exponential == [1, 1, 0.5, 0.5, 0.25]
    cosine = rates(Scheduler(name="cosine", min_lr=0.2), 4)
    assert cosine == pytest.approx([1, 0.2 + 0.4 * (1 + 2**-0.5), 0.6, 0.2 + 0.4 * (1 - 2**-0.5)])


def test_plateau_falls_when_the_loss_does_not():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = Scheduler(name="plateau", factor=0.1, patience=1, min_lr=0.05).build(optimizer, 1, 10)
    found = []
    for loss in (1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5):
        schedule.step(loss)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([1, 1, 1, 0.1, 0.1, 0.05, 0.05])
