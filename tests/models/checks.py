"""What the tests of several models need: gradients of nested states, a training loop, the adding problem."""

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten


def has_the_right_gradients(layer: nn.Module, x: Tensor) -> None:
    """``gradcheck`` of the sequence and the final state in x, the initial state and all parameters, in float64."""
    layer, x = layer.double(), x.double()
    state, structure = tree_flatten(layer(x)[1])
    names = [name for name, _ in layer.named_parameters()]
    leaves = [value.detach().clone().requires_grad_() for value in (x, *state)]
    count = len(state)

    def call(x, *values):
        given, parameters = list(values[:count]), dict(zip(names, values[count:], strict=True))
        sequence, final = torch.func.functional_call(layer, parameters, (x, tree_unflatten(given, structure)))
        return sequence, *tree_flatten(final)[0]

    assert torch.autograd.gradcheck(call, (*leaves, *layer.parameters()))


def train(model: nn.Module, draw, loss, steps: int, lr: float, last: int) -> float:
    """Adam on ``draw()`` = (x, target) for some steps; the mean of the loss over the last of them."""
    optimizer = torch.optim.Adam(model.parameters(), lr)
    values = []
    for step in range(1, steps + 1):
        x, target = draw()
        value = loss(model(x), target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        model.after_step(step)
        values.append(value.item())
    return sum(values[-last:]) / last


def adding(T: int, batch: int = 50):
    """Draws batches of the adding problem, from torch's global generator; predicting 1 has an MSE of 1/6."""
    values, columns = torch.rand(T, batch), torch.arange(batch)
    places = torch.randint(0, T // 2, (batch,)), torch.randint(T // 2, T, (batch,))
    markers = torch.zeros(T, batch)
    for place in places:
        markers[place, columns] = 1
    return torch.stack([values, markers], dim=-1), sum(values[place, columns] for place in places).unsqueeze(1)
