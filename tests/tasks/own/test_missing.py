"""Missing values are filled by what is measured in the same series, never by padding or another series."""

import numpy as np
import pytest

from longwave.tasks.own.missing import forward, linear

RNG = np.random.default_rng(0)
VALUES = np.where(RNG.random((6, 9, 3)) < 0.4, np.nan, RNG.normal(size=(6, 9, 3)))
TIMES = np.cumsum(RNG.uniform(0.1, 2, (6, 9)), 1)


def test_forward():
    expected = VALUES.copy()
    for series in expected:
        for step in range(1, 9):
            series[step] = np.where(np.isnan(series[step]), series[step - 1], series[step])
    assert np.array_equal(forward(VALUES), expected, equal_nan=True)


@pytest.mark.parametrize("times", [None, TIMES])
def test_linear(times):
    found = linear(VALUES, times)
    for index, series in enumerate(VALUES):
        clock = np.arange(9) if times is None else times[index]
        for channel in range(3):
            there = np.flatnonzero(~np.isnan(series[:, channel]))
            expected = np.full(9, np.nan)
            if len(there):
                inside = slice(there[0], there[-1] + 1)
                expected[inside] = np.interp(clock[inside], clock[there], series[there, channel])
            assert found[index, :, channel] == pytest.approx(expected, nan_ok=True)
    # What is there stays as it is.
    assert np.array_equal(found[~np.isnan(VALUES)], VALUES[~np.isnan(VALUES)])


@pytest.mark.parametrize("fill", [forward, linear])
def test_padding_changes_nothing(fill):
    padded = np.concatenate([VALUES, np.full((6, 4, 3), np.nan)], 1)
    assert np.array_equal(fill(padded)[:, :9], fill(VALUES), equal_nan=True)
    assert fill(VALUES.astype(np.float32)).dtype == np.float32
