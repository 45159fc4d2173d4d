"""From the samples of a user's files to the inputs of a model, by statistics of the training set alone."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longwave.tasks.own import missing
from longwave.tasks.own.samples import CHUNK, Samples


@dataclass(frozen=True)
class Preparation:
    """Fills, scales and completes raw samples.

    Args:
        mean, deviation: of each channel over the values of the training set that are there, (D,), float32.
        longest: seconds, or steps, of its longest sample, which become 1 in the channel of time.
        missing, normalise, time: as in :class:`longwave.tasks.files.Config`.
    """

    mean: np.ndarray
    deviation: np.ndarray
    longest: float
    missing: str
    normalise: bool
    time: bool

    @property
    def inputs(self) -> int:
        """Channels of the model's input."""
        return len(self.mean) * (2 if self.missing == "mask" else 1) + self.time

    def filled(self, values: np.ndarray, times: np.ndarray | None) -> np.ndarray:
        """Values (B, T, D) with what the others of a sample tell of those that are missing."""
        if self.missing == "forward":
            return missing.forward(values)
        if self.missing == "linear":
            return missing.linear(values, times)
        return values

    def __call__(self, values: np.ndarray, lengths: np.ndarray, times: np.ndarray | None = None) -> Tensor:
        """Inputs (B, T, inputs), float32: time where it is wanted, the channels, their masks where those are wanted.

        Args:
            values: (B, T, D), float32, NaN where a value is missing. What is missing still becomes the channel's mean.
            lengths: (B,); behind the end of a sample all is 0.
            times: (B, T), seconds from the first step.
        """
        there = ~np.isnan(values)
        values = self.filled(values, times)
        values = np.where(np.isnan(values), self.mean, values)
        if self.normalise:
            values = (values - self.mean) / self.deviation
        parts = [values]
        if self.missing == "mask":
            parts.append(there.astype(np.float32))
        if self.time:
            clock = np.arange(values.shape[1], dtype=np.float64)[None] if times is None else times
            clock = np.broadcast_to(clock, values.shape[:2]) / self.longest
            parts.insert(0, clock[..., None].astype(np.float32))
        x = np.concatenate(parts, 2) if len(parts) > 1 else values
        x[np.arange(values.shape[1]) >= lengths[:, None]] = 0
        return torch.from_numpy(np.ascontiguousarray(x, np.float32))


def fit(samples: Samples, train: np.ndarray, how: str, normalise: bool, time: bool) -> Preparation:
    """The preparation whose statistics are those of the samples ``train``; the other arguments are its own."""
    channels = len(samples.channels)
    count, total = np.zeros(channels), np.zeros(channels)
    longest = 0.0
    for indices in _chunks(samples, train):
        values = samples.block(indices).astype(np.float64)
        there = ~np.isnan(values)
        count += there.sum((0, 1))
        total += np.where(there, values, 0).sum((0, 1))
        times = samples.block_times(indices) if time else None
        longest = max(longest, float(samples.lengths[indices].max() - 1 if times is None else times[:, -1].max()))
    mean = total / np.maximum(count, 1)
    squares = np.zeros(channels)
    for indices in _chunks(samples, train):
        values = samples.block(indices).astype(np.float64)
        squares += np.where(np.isnan(values), 0, (values - mean) ** 2).sum((0, 1))
    deviation = np.sqrt(squares / np.maximum(count, 1))
    # A constant channel has no scale; rounding may leave some.
    deviation[deviation <= 1e-7 * np.abs(mean)] = 1
    return Preparation(mean.astype(np.float32), deviation.astype(np.float32), longest or 1.0, how, normalise, time)


def _chunks(samples: Samples, indices: np.ndarray) -> list[np.ndarray]:
    # In the order of the file, so that a file on disk is read from its start to its end.
    size = max(1, CHUNK // (int(samples.lengths.max()) * len(samples.channels)))
    return np.split(np.sort(indices), range(size, len(indices), size))
