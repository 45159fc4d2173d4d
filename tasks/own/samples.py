"""Samples of a user's files, whatever their format."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longwave.schema import one_line
from longwave.tasks.checks import LARGEST, DataError, check

# Numbers that are checked, filled and scaled at once, to bound the memory.
CHUNK = 1 << 24

# Units of time, and how many a second has.
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}

# What an empty cell may look like.
MARKS = ("", "NaN", "nan", "NA", "N/A", "NULL", "null", "None", "?")


class Mapped:
    """A ``.npy`` file of which only the rows that are asked for are read."""

    def __init__(self, path: Path, widened: bool = False):
        self.path, self._widened = path, widened
        opened = self._open()
        self.shape, self.dtype = (*opened.shape, 1) if widened else opened.shape, opened.dtype
        self.ndim = len(self.shape)

    def _open(self) -> np.ndarray:
        return np.load(self.path, mmap_mode="r", allow_pickle=False)

    def widened(self) -> "Mapped":
        """The same with one channel: (N, T, 1)."""
        return Mapped(self.path, widened=True)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        # Opened again each time: the pages of a map that stays open stay in the memory of the process.
        found = np.array(self._open()[index])
        return found[..., None] if self._widened else found


@dataclass
class Samples:
    """N samples, as they were read.

    Args:
        file: the one that was read, or the folder.
        x: (N, T, D), or all samples one behind the other, (sum of lengths, D); NaN is a missing value.
        lengths: (N,), steps.
        channels: D names.
        targets: (N,), or in the shape of ``x`` without D where every step has one: classes as int64, -1 for none, or
            numbers as float64, NaN for none.
        classes: names of the classes; None where numbers are to be predicted.
        per_step: whether every step has a target.
        place: from a sample, a step (or None) and a column (or None) to the file and the place in it.
        mask: in the shape of ``x``: True where there is a value; None where NaN alone says so.
        times: in the shape of ``x`` without D, any unit; None where steps are evenly spaced.
        per_second: units of ``times``.
        ids, groups, split: N texts; None where the file has none.
    """

    file: Path
    x: Any
    lengths: np.ndarray
    channels: list[str]
    targets: Any
    classes: list[str] | None
    per_step: bool
    place: Callable[[int, int | None, int | str | None], tuple[Path | str, str]]
    mask: Any = None
    times: Any = None
    per_second: int = 1
    ids: list[str] | None = None
    groups: list[str] | None = None
    split: list[str] | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __post_init__(self):
        self._offsets = np.cumsum(self.lengths) - self.lengths

    def block(self, indices: np.ndarray) -> np.ndarray:
        """Values of some samples, (B, longest, D), float32; NaN is a missing value, or behind the end."""
        with np.errstate(over="ignore"):  # infinite in 32 bits, which is refused
            values = self._rows(self.x, indices, 3).astype(np.float32)
        if self.mask is not None:
            values[~self._rows(self.mask, indices, 3)] = np.nan
        values[self._behind(indices)] = np.nan
        return values

    def block_times(self, indices: np.ndarray) -> np.ndarray | None:
        """Seconds from the first step of each sample, (B, longest), float64; the last time behind the end."""
        if self.times is None:
            return None
        ticks = self._rows(self.times, indices, 2)
        found = (ticks - ticks[:, :1]).astype(np.float64) / self.per_second
        ends = self.lengths[indices] - 1
        last = found[np.arange(len(indices)), ends]
        return np.where(self._behind(indices), last[:, None], found)

    def block_targets(self, indices: np.ndarray) -> np.ndarray:
        """Targets of some samples, (B,), or (B, longest) with -1 or NaN behind the end."""
        if not self.per_step:
            return self.targets[indices]
        found = self._rows(self.targets, indices, 2).copy()
        found[self._behind(indices)] = -1 if self.classes is not None else np.nan
        return found

    def flat(self, array: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """An array of steps with the samples one behind the other; NaN where a mask says so."""
        if array.ndim > 1 and array.shape[:2] == (len(self), self.x.shape[1]):
            there = np.arange(array.shape[1]) < self.lengths[:, None]
            array, mask = array[there], None if mask is None else mask[there]
        return array if mask is None else np.where(mask, array, np.nan)

    def chunks(self) -> list[np.ndarray]:
        """Indices of all samples, in parts of about CHUNK numbers."""
        size = max(1, CHUNK // (int(self.lengths.max()) * len(self.channels)))
        return np.split(np.arange(len(self)), range(size, len(self), size))

    def check(self) -> "Samples":
        """Checks all values, times and lengths; returns itself.

        Raises:
            DataError: for a value that is infinite or beyond 1e15, a sample without any value, times that go back.
        """
        for indices in self.chunks():
            values = self.block(indices)
            bad = np.abs(values) > LARGEST
            if bad.any():
                i, step, channel = (int(part[0]) for part in bad.nonzero())
                file, place = self.place(int(indices[i]), step, channel)
                check([values[i, step, channel]], file, lambda _, place=place: place)
            empty = np.isnan(values).all((1, 2))
            if empty.any():
                file, place = self.place(int(indices[empty.argmax()]), None, None)
                raise DataError(file, place, "a sample without any value")
            self._check_times(indices)
        return self

    def _check_times(self, indices: np.ndarray) -> None:
        if self.times is None:
            return
        ticks = self._rows(self.times, indices, 2)
        behind = self._behind(indices)
        wrong = ~(ticks[:, 1:] > ticks[:, :-1]) & ~behind[:, 1:]
        if ticks.dtype.kind == "f":
            wrong |= (~np.isfinite(ticks[:, 1:])) & ~behind[:, 1:]
            first = ~np.isfinite(ticks[:, :1]) & ~behind[:, :1]
            wrong = np.concatenate([first, wrong], 1)
        else:
            wrong = np.concatenate([np.zeros((len(ticks), 1), bool), wrong], 1)
        if not wrong.any():
            return
        i, step = (int(part[0]) for part in wrong.nonzero())
        file, place = self.place(int(indices[i]), step, "time")
        if not np.isfinite(ticks[i, step]):
            raise DataError(file, place, "a time is missing")
        before, now = ticks[i, step - 1], ticks[i, step]
        how = "the same time twice" if before == now else "times go back"
        raise DataError(file, place, f"{how} in one sample: {now} after {before}")

    def _rows(self, array: Any, indices: np.ndarray, ndim: int) -> np.ndarray:
        """Some samples of an array (N, T, ...) or (sum of lengths, ...), cut to the longest of them."""
        longest = int(self.lengths[indices].max())
        if array.ndim == ndim:
            return array[indices][:, :longest]
        # Behind the end of a sample: its last step once more.
        steps = np.minimum(np.arange(longest), self.lengths[indices][:, None] - 1)
        return array[self._offsets[indices][:, None] + steps]

    def _behind(self, indices: np.ndarray) -> np.ndarray:
        lengths = self.lengths[indices]
        return np.arange(int(lengths.max())) >= lengths[:, None]


def number(text: str) -> float | None:
    """A finite number, or None where a text is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) and "_" not in text else None


def plain(text: str) -> str:
    """Name of a class: ``1`` and ``1.0`` are one."""
    value = number(text)
    if value is None:
        return text
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def encode(
    texts: Sequence[str], codes: np.ndarray, predict: str, place: Callable[[int], tuple[Path | str, str]]
) -> tuple[np.ndarray, list[str] | None]:
    """Targets and classes, see :class:`Samples`, of texts.

    Args:
        texts: the different ones.
        codes: index into ``texts`` of each target, -1 for none.
        predict: as in :class:`longwave.tasks.files.Config`.
        place: from the index of a target to the file and the place in it.

    Raises:
        DataError: for a text where numbers are to be predicted.
    """
    names = [plain(text) for text in texts]
    values = [number(name) for name in names]
    if predict == "auto":
        whole = all(value is None or value.is_integer() for value in values)
        predict = "classes" if whole or None in values else "numbers"
    if predict == "numbers":
        if None in values:
            bad = values.index(None)
            file, where = place(int((codes == bad).argmax()))
            raise DataError(file, where, f"{one_line(texts[bad])!r} is not a number to predict")
        return np.array([*values, np.nan], np.float64)[codes], None
    classes = sorted(set(names), key=lambda name: (number(name) is None, number(name) or 0.0, name))
    index = {name: position for position, name in enumerate(classes)}
    return np.array([*(index[name] for name in names), -1], np.int64)[codes], classes
