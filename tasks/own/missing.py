"""Missing values of series, which are NaN: filled inside each series, by what was measured in it."""

import numpy as np


def forward(values: np.ndarray) -> np.ndarray:
    """Each missing value by the last one before it; those before the first stay missing.

    Args:
        values: (B, T, D).
    """
    before = _last(values)
    found = np.take_along_axis(values, np.maximum(before, 0), 1)
    return np.where(before >= 0, found, np.nan).astype(values.dtype)


def linear(values: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
    """Each missing value on the line between its neighbours in time; those at either end stay missing.

    Args:
        values: (B, T, D).
        times: (B, T); None where steps are evenly spaced.
    """
    steps = values.shape[1]
    before = _last(values)
    after = steps - 1 - _last(values[:, ::-1])[:, ::-1]
    inside = np.isnan(values) & (before >= 0) & (after < steps)
    low, high = np.maximum(before, 0), np.minimum(after, steps - 1)
    if times is None:
        clock = np.arange(steps, dtype=np.float64)
        start, end, now = clock[low], clock[high], clock[None, :, None]
    else:
        wide = np.broadcast_to(times[:, :, None], values.shape)
        start, end, now = np.take_along_axis(wide, low, 1), np.take_along_axis(wide, high, 1), wide
    share = (now - start) / np.where(end > start, end - start, 1)
    first, second = np.take_along_axis(values, low, 1), np.take_along_axis(values, high, 1)
    return np.where(inside, first + share * (second - first), values).astype(values.dtype)


def _last(values: np.ndarray) -> np.ndarray:
    """Step of the last value up to each step, -1 before the first."""
    steps = np.arange(values.shape[1])[None, :, None]
    return np.maximum.accumulate(np.where(np.isnan(values), -1, steps), axis=1)
