"""Layers whose step sizes follow the times of the samples."""

from typing import Any

import torch
from torch import Tensor

from longwave.models.layer import Layer


class Irregular(Layer):
    """A layer that :meth:`run` computes, with ``dt`` times a factor that may differ from step to step.

    With a ``spacing``, the first input channel is the time t_n of each sample. It is no input: the factor is

        (t_n - t_{n-1}) / spacing,  1 at the first sample, 0 where the time goes back,

    as it does where padding begins. The final state ends in the last time, (B, 1), from which a sequence continues.

    Args:
        inputs: channels, with the time.
        batch_first, requested: as of a :class:`Layer`.
        spacing: duration that counts as one dt; None is a factor of 1, and no channel of time.

    Attributes:
        inputs: channels without the time.
    """

    def __init__(self, inputs: int, batch_first: bool, requested: str, spacing: float | None):
        super().__init__(batch_first, requested)
        self.inputs, self.spacing = untimed(inputs, spacing), spacing

    def unroll(self, x: Tensor, state: tuple | None = None) -> tuple[Tensor, tuple]:
        """The sequence (T, B, hidden) and the final state, of :meth:`run` and, with a ``spacing``, the last time."""
        times, x = split(x, self.spacing)
        if times is None:
            return self.run(x, 1.0, state)
        before, last = (None, None) if state is None else (state[:-1], state[-1])
        factor, last = durations(times, last, self.spacing)
        sequence, final = self.run(x, factor, before)
        return sequence, (*final, last)

    def run(self, x: Tensor, factor: float | Tensor, state: tuple | None) -> tuple[Tensor, tuple[Any, ...]]:
        """:meth:`unroll` with ``dt * factor``, which is (T, B, 1) with a ``spacing``."""
        raise NotImplementedError


def durations(times: Tensor, last: Tensor | None, spacing: float) -> tuple[Tensor, Tensor]:
    """Time since the step before, in units of ``spacing``, (T, B, 1), and the last time, (B, 1).

    Args:
        times: (T, B, 1).
        last: time of the step before the first, (B, 1); None is one ``spacing`` earlier.
        spacing: see :class:`Irregular`.
    """
    first = torch.ones_like(times[:1]) if last is None else (times[:1] - last) / spacing
    return torch.cat([first, times.diff(dim=0) / spacing]).clamp(min=0), times[-1]


def untimed(inputs: int, spacing: float | None) -> int:
    """The channels without the time, where there is a ``spacing``."""
    if spacing is None:
        return inputs
    if inputs < 2:
        raise ValueError(f"spacing={spacing}: needs 2 channels or more, of which the first is the time, got {inputs}")
    return inputs - 1


def split(x: Tensor, spacing: float | None) -> tuple[Tensor | None, Tensor]:
    """The times (..., 1), None without a ``spacing``, and the other channels."""
    return (None, x) if spacing is None else (x[..., :1], x[..., 1:])


def join(times: Tensor | None, x: Tensor) -> Tensor:
    """What :func:`split` took apart."""
    return x if times is None else torch.cat([times, x], -1)
