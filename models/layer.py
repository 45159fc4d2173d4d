"""The interface of all recurrent layers, and what several of them share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from longwave import kernels


class Layer(nn.Module):
    """Base class of the recurrent layers, which are used like ``torch.nn.LSTM``.

    A subclass defines :meth:`unroll`, and names its ``operation``; the rest has defaults. Its arguments are the number
    of input channels, the number of units, and by keyword ``batch_first`` and the other fields of its ``Config``.

    Args:
        batch_first: sequences are (B, T, D) instead of (T, B, D); states are not affected.

    Attributes:
        operation: name of the time loop in :mod:`longwave.kernels`; None where torch computes it.
    """

    operation: str | None = None

    def __init__(self, batch_first: bool = False):
        super().__init__()
        self.batch_first = batch_first

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The output at every step (T, B, hidden), and the final state.

        Args:
            x: (T, B, inputs).
            state: the final state of the steps before; None for zeros. It is the output that is read at the end of the
                sequence, (B, hidden), or a tuple that begins with it.
        """
        sequence, state = self.unroll(self.exchanged(x), state)
        return self.exchanged(sequence), state

    def unroll(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """:meth:`forward` of a time-major x, (T, B, inputs)."""
        raise NotImplementedError

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The output (B, hidden) at the next step, whose input is x (B, inputs), and the new state."""
        time = int(self.batch_first)
        sequence, state = self(x.unsqueeze(time), state)
        return sequence.squeeze(time), state

    def ends(self, sequence: Tensor, lengths: Tensor) -> Tensor:
        """The output (B, hidden) at the last of the ``lengths`` (B,) valid steps of a ``sequence`` from zeros."""
        return self.exchanged(sequence)[lengths - 1, torch.arange(len(lengths), device=sequence.device)]

    def after_step(self, step: int) -> None:
        """Hook to call after the optimiser's step number 1, 2, ..., for constraints on the weights."""

    def theory(self, x: Tensor) -> dict[str, float]:
        """The paper's assumptions as numbers, in evaluation mode and without gradients, on a batch x."""
        return {}

    @property
    def backend(self) -> str:
        """Name of the backend that runs on the weights' device."""
        return "torch" if self.operation is None else kernels.backend_for(self.operation, next(self.parameters()))

    def exchanged(self, sequence: Tensor) -> Tensor:
        """A sequence from the order of :meth:`forward` to time-major, and back."""
        return sequence.transpose(0, 1) if self.batch_first else sequence


class CuDNNLayer(Layer):
    """A layer with parameters and initialisation of ``torch.nn.RNN``, ``LSTM`` or ``GRU``: cuDNN's on CUDA.

    Elsewhere the time loop is its operation's. Torch's class is the next base: ``class LSTM(CuDNNLayer, nn.LSTM)``.
    """

    def __init__(self, inputs: int, hidden: int, batch_first: bool = False):
        super(Layer, self).__init__(inputs, hidden, batch_first=batch_first)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if x.device.type != "cuda":
            return super().forward(x, state)
        # Torch's states are (layers, B, hidden).
        sequence, final = super(Layer, self).forward(x, map_state(lambda part: part.unsqueeze(0), state))
        return sequence, map_state(lambda part: part[0], final)

    @property
    def backend(self) -> str:
        if self.weight_hh_l0.device.type == "cuda":
            return f"torch.nn.{self.operation.upper()}"
        return super().backend


def map_state(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """``function`` of every tensor of a layer's state: a tensor, None, or a tuple of such."""
    if isinstance(state, tuple):
        return tuple(map_state(function, part) for part in state)
    return None if state is None else function(state)


def detach(state: Any) -> Any:
    """A layer's state without its gradient, for truncated backpropagation through time."""
    return map_state(Tensor.detach, state)


def normalised(x: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """Batch normalisation of x (..., features) over all rows; one row is normalised by the running statistics."""
    rows = x.flatten(0, -2)
    if len(rows) > 1:
        return norm(rows).view_as(x)
    # One value has no variance, and torch refuses to train on it.
    rows = nn.functional.batch_norm(rows, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    return rows.view_as(x)


@torch.no_grad()
def start_wide(weight: Tensor, bias: Tensor) -> None:
    """Initialises V and b by U(-3, 3): tanh then works over all of its range from the first step."""
    for parameter in (weight, bias):
        nn.init.uniform_(parameter, -3.0, 3.0)
