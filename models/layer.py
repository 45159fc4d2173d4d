"""The interface of all recurrent layers, and what several of them share."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from longwave import kernels


class Layer(nn.Module):
    """Base class of the recurrent layers, which are used like ``torch.nn.LSTM``.

    A subclass defines :meth:`unroll`, and names its ``operation``; the rest has defaults. Its arguments are the number
    of input channels, the number of units, and by keyword ``batch_first`` and the other fields of its ``Config``.

    Args:
        batch_first: sequences are (B, T, D) instead of (T, B, D); states are not affected.
        requested: the ``backend`` of the time loop, as in :mod:`longwave.kernels`.

    Attributes:
        operation: name of the time loop in :mod:`longwave.kernels`; None where torch computes it.
        stackable: whether it may read the output of another layer, and a sequence backwards.
        spacing: of a layer whose first input channel is the time: the duration that counts as one dt; else None.
    """

    operation: str | None = None
    stackable = True
    spacing: float | None = None

    def __init__(self, batch_first: bool = False, requested: str = "auto"):
        super().__init__()
        self.batch_first, self.requested = batch_first, requested

    def forward(self, x: Tensor | PackedSequence, state: Any = None) -> tuple[Tensor | PackedSequence, Any]:
        """The output at every step (T, B, hidden), and the final state.

        Args:
            x: (T, B, inputs); (T, inputs), one sequence, whose output and states have no dimension of a batch; or a
                ``PackedSequence``, of which each sequence gives what it would give alone, in the order of the batch.
            state: the final state of the steps before; None for zeros. It is the output that is read at the end of the
                sequence, (B, hidden), or a tuple that begins with it.
        """
        if isinstance(x, PackedSequence):
            return self._packed(x, state)
        if x.dim() == 2:
            sequence, state = self.unroll(x.unsqueeze(1), map_state(partial(_batched, Tensor.unsqueeze), state))
            return sequence.squeeze(1), map_state(partial(_batched, Tensor.squeeze), state)
        if x.dim() != 3:
            raise ValueError(f"x must be (T, B, D), or (T, D) for one sequence, got {tuple(x.shape)}")
        sequence, state = self.unroll(self.exchanged(x), state)
        return self.exchanged(sequence), state

    def unroll(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """:meth:`forward` of a time-major x, (T, B, inputs)."""
        raise NotImplementedError

    def unroll_packed(self, x: Tensor, packing: "Packing", state: Any = None) -> tuple[Tensor, Any]:
        """:meth:`forward` of the frames (N, inputs) of sequences that are sorted by length, the longest first.

        To be overridden where a frame's output depends on those of other sequences (batch normalisation), or where
        numbers are drawn for a whole sequence: it calls :meth:`unroll` for one part of the steps after the other.
        """
        return packing.unroll(self.unroll, x, state)

    def _packed(self, x: PackedSequence, state: Any) -> tuple[PackedSequence, Any]:
        packing = Packing(x.batch_sizes, x.data.device)
        if state is not None:
            state = map_state(lambda part: _rows(part, len(packing.lengths)), state)
            state = _picked(state, slice(None) if x.sorted_indices is None else x.sorted_indices)
        frames, state = self.unroll_packed(x.data, packing, state)
        state = _picked(state, slice(None) if x.unsorted_indices is None else x.unsorted_indices)
        return x._replace(data=frames), state

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The output (B, hidden) at the next step, whose input is x (B, inputs), and the new state."""
        time = int(self.batch_first and x.dim() > 1)
        sequence, state = self(x.unsqueeze(time), state)
        return sequence.squeeze(time), state

    def extended(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The sequences x (T, B, inputs), from whose ends :meth:`ends` is to read, with their ``lengths`` (B,)."""
        return x, lengths

    def ends(self, sequence: Tensor, lengths: Tensor) -> Tensor:
        """The output (B, hidden) at the last of the ``lengths`` (B,) valid steps of a ``sequence`` from zeros."""
        return self.exchanged(sequence)[lengths - 1, torch.arange(len(lengths), device=sequence.device)]

    def after_step(self, step: int) -> None:
        """Hook to call after the optimiser's step number 1, 2, ..., for constraints on the weights."""

    @property
    def starts_from_zeros(self) -> bool:
        """True if a state of None is one of zeros: with times, it has the time before the first step."""
        return self.spacing is None

    def use(self, backend: str) -> None:
        """Requests a backend for every time loop in it, as the argument ``backend`` does."""
        for part in self.modules():
            if isinstance(part, Layer):
                part.requested = backend

    def freeze(self) -> None:
        """Computes once what follows from the weights alone, for inference step by step: they must not change then."""

    def theory(self, x: Tensor) -> dict[str, float]:
        """The paper's assumptions as numbers, in evaluation mode and without gradients, on a batch x."""
        return {}

    @property
    def backend(self) -> str:
        """Name of the backend that runs on the weights' device."""
        if self.operation is None:
            return "torch"
        per_step = self.spacing is not None
        return kernels.backend_for(self.operation, next(self.parameters()), self.requested, per_step)

    def exchanged(self, sequence: Tensor) -> Tensor:
        """A sequence from the order of :meth:`forward` to time-major, and back."""
        return sequence.transpose(0, 1) if self.batch_first else sequence


class MatrixLayer(Layer):
    """A layer whose recurrent matrix is computed from its parameters, by ``_matrix``."""

    def __init__(self, batch_first: bool = False, requested: str = "auto"):
        super().__init__(batch_first, requested)
        self.register_buffer("frozen", None, persistent=False)

    def matrix(self) -> Tensor:
        """The recurrent matrix, (hidden, hidden)."""
        if self.frozen is not None:
            return self.frozen
        # In bfloat16 an orthogonal matrix would not be one.
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return self._matrix()

    @torch.no_grad()
    def freeze(self) -> None:
        self.frozen = self.matrix()

    def _matrix(self) -> Tensor:
        raise NotImplementedError


class CuDNNLayer(Layer):
    """A layer with parameters and initialisation of ``torch.nn.RNN``, ``LSTM`` or ``GRU``: cuDNN's on CUDA.

    Elsewhere the time loop is its operation's. Torch's class is the next base: ``class LSTM(CuDNNLayer, nn.LSTM)``.
    """

    def __init__(self, inputs: int, hidden: int, *, batch_first: bool = False, backend: str = "auto"):
        super(Layer, self).__init__(inputs, hidden, batch_first=batch_first)
        self.requested = backend

    def forward(self, x: Tensor | PackedSequence, state: Any = None) -> tuple[Tensor | PackedSequence, Any]:
        return self._of_torch(x, state) if self._on_cudnn(x) else super().forward(x, state)

    def unroll_packed(self, x: Tensor, packing: "Packing", state: Any = None) -> tuple[Tensor, Any]:
        if not self._on_cudnn(x):
            return super().unroll_packed(x, packing, state)
        (frames, *_), state = self._of_torch(PackedSequence(x, torch.tensor(packing.sizes)), state)
        return frames, state

    def _on_cudnn(self, x: Tensor | PackedSequence) -> bool:
        device = x.data.device if isinstance(x, PackedSequence) else x.device
        return device.type == "cuda" and self.requested == "auto"

    def _of_torch(self, x: Tensor | PackedSequence, state: Any) -> tuple[Tensor | PackedSequence, Any]:
        # Torch's states are (layers, B, hidden).
        sequence, final = super(Layer, self).forward(x, map_state(lambda part: part.unsqueeze(0), state))
        return sequence, map_state(lambda part: part[0], final)

    @property
    def backend(self) -> str:
        if self._on_cudnn(self.weight_hh_l0):
            return f"torch.nn.{self.operation.upper()}"
        return super().backend


class Packing:
    """Places of the frames of a ``PackedSequence``: first those of step 0, of all sequences, then those of step 1, ...

    Args:
        sizes: the number of sequences at each step, ``batch_sizes``.
        device: of the frames.

    Attributes:
        sizes: as given, a list.
        rows: (N,), the sequence that each frame belongs to.
        lengths: (B,), of the sequences.
        ends: (B,), place of the last frame of each sequence.
        backwards: (N,), the places in the order in which each sequence is read backwards.
    """

    def __init__(self, sizes: Tensor, device: torch.device):
        steps = torch.arange(len(sizes)).repeat_interleave(sizes)
        first = sizes.cumsum(0) - sizes
        rows = torch.arange(len(steps)) - first[steps]
        lengths = rows.bincount()
        self.sizes = sizes.tolist()
        self.rows, self.lengths = rows.to(device), lengths.to(device)
        self.ends = (first[lengths - 1] + torch.arange(len(lengths))).to(device)
        self.backwards = (first[lengths[rows] - 1 - steps] + rows).to(device)

    def unroll(
        self, unroll: Callable[[Tensor, Any], tuple[Tensor, Any]], x: Tensor, state: Any = None
    ) -> tuple[Tensor, Any]:
        """The frames and final states of a time-major ``unroll``, called once for each length that there is."""
        frames, finals, start = [], [], 0
        for size, steps in itertools.groupby(self.sizes):
            stop = start + size * len(list(steps))
            if start:
                finals.append(_picked(state, slice(size, None)))
                state = _picked(state, slice(size))
            sequence, state = unroll(x[start:stop].unflatten(0, (-1, size)), state)
            state = map_state(partial(_rows, batch=size), state)
            frames.append(sequence.flatten(0, 1))
            start = stop
        # Those that end first come last.
        return torch.cat(frames), map_state(lambda *parts: torch.cat(parts), state, *reversed(finals))


def map_state(function: Callable[..., Tensor], state: Any, *others: Any) -> Any:
    """``function`` of every tensor of a layer's state, a tensor, None or a tuple of such, and of those of others."""
    if isinstance(state, tuple):
        return tuple(map_state(function, *parts) for parts in zip(state, *others, strict=True))
    return None if state is None else function(state, *others)


def _picked(state: Any, index: slice | Tensor) -> Any:
    return map_state(lambda part: part[index], state)


def _rows(part: Tensor, batch: int) -> Tensor:
    """A part of a state with a row for each sequence, also where it is one number, or one row, for all."""
    return part.expand(batch, 1) if part.dim() == 0 else part.expand(batch, *part.shape[1:])


def _batched(function: Callable[[Tensor, int], Tensor], part: Tensor) -> Tensor:
    return function(part, 0) if part.dim() else part


def detach(state: Any) -> Any:
    """A layer's state without its gradient, for truncated backpropagation through time."""
    return map_state(Tensor.detach, state)


def normalised(x: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """Batch normalisation of x (..., features) over all rows; one row is normalised by the running statistics."""
    rows = x.flatten(0, -2)
    # Of its shape, and not len(): an exporter would take the number of rows for a constant.
    if not norm.training or rows.shape[0] > 1:
        return norm(rows).view_as(x)
    # One value has no variance, and torch refuses to train on it.
    rows = nn.functional.batch_norm(rows, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    return rows.view_as(x)


@torch.no_grad()
def start_wide(weight: Tensor, bias: Tensor) -> None:
    """Initialises V and b by U(-3, 3): tanh then works over all of its range from the first step."""
    for parameter in (weight, bias):
        nn.init.uniform_(parameter, -3.0, 3.0)
