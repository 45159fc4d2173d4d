"""Samples of a user's files, whatever they are."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from longwave.schema import one_line
from longwave.tasks import checks, formats
from longwave.tasks.checks import DataError
from longwave.tasks.data import Absent, cached, code
from longwave.tasks.own import archives, arrays, columns, content, delimited, samples, tables
from longwave.tasks.own.columns import suffix
from longwave.tasks.own.samples import Samples, encode

if TYPE_CHECKING:
    from longwave.tasks.files import Config

log = logging.getLogger("longwave")

SUFFIXES = (".npz", *tables.SUFFIXES, ".txt", ".ts", ".arff")

# Keys of the configuration that what is read of a table depends on.
SETTINGS = (
    "layout", "sample_column", "time_column", "target_column", "group_column", "split_column", "channels", "per_step",
    "predict", "sep", "decimal", "comment", "encoding", "time_format", "time_unit", "missing_marks",
)  # fmt: skip


def read(config: "Config", root: Path) -> Samples:
    """Samples of all files of a configuration; those of large tables are kept in the cache of ``root``.

    Raises:
        DataError: for the first thing that is wrong, with file, row and column.
    """
    path = config.resolved(config.path)
    if not path.exists():
        raise Absent(path, None, "is not there")
    pair = content.pair_in(path) if path.is_dir() and config.layout in ("auto", "archive", "wide") else None
    others = [config.resolved(config.test_path)] if config.test_path else []
    parts = [*(pair or [path]), *others]
    if len(parts) > 2:
        raise DataError(path, None, "has a test set already; omit task.test_path")
    beside = content.test_of(path)
    if len(parts) == 1 and beside != path and beside.exists():
        log.info("%s is not read; task.test_path=%s takes it as the test set", beside, beside)
    found = [_read_one(part, config, root) for part in parts]
    return found[0] if len(found) == 1 else _joined(found)


def _read_one(path: Path, config: "Config", root: Path) -> Samples:
    reader = _reader(path, config)
    if reader is arrays.read or path.is_dir() or path.stat().st_size < content.LARGE:
        return reader(path, config)
    labels = [content.digest(config.resolved(config.labels_path))] if config.labels_path else []
    settings = {key: getattr(config, key) for key in SETTINGS}
    sources = code(*(module.__file__ for module in (archives, checks, columns, delimited, formats, samples, tables)))
    key = {"files": [content.digest(path), *labels], "settings": settings, "code": sources}
    kept = cached(root, "files", key, lambda: _packed(reader(path, config)))

    @functools.cache
    def again() -> Samples:
        return reader(path, config)

    kept = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in kept.items()}
    return Samples(file=path, **kept, place=lambda *where: again().place(*where))


def _packed(found: Samples) -> dict[str, Any]:
    fields = {key: getattr(found, key) for key in found.__dataclass_fields__ if key not in ("file", "place")}
    return {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in fields.items()}


def _reader(path: Path, config: "Config") -> Callable[[Path, "Config"], Samples]:
    ending, layout = suffix(path), config.layout
    if layout == "auto" and path.is_dir():
        layout = "arrays" if (path / "x.npy").exists() else "folder"
    if layout == "auto":
        layout = {".npz": "arrays", ".ts": "archive", ".arff": "archive"}.get(ending, "table")
    if layout == "folder":
        if not path.is_dir():
            raise DataError(path, None, "task.layout=folder: is no folder")
        return tables.read_folder
    if layout == "arrays":
        if not path.is_dir() and ending != ".npz":
            raise DataError(path, None, "task.layout=arrays: must be a .npz, or a folder with x.npy and y.npy")
        return arrays.read
    if path.is_dir():
        raise DataError(path, None, f"task.layout={layout}: is a folder, not a file")
    if layout == "archive":
        return archives.read
    if ending == ".npy":
        raise DataError(path, None, "one array; put x.npy and y.npy into a folder, and name that by task.path")
    if ending not in SUFFIXES:
        raise DataError(path, None, f"of no known suffix; there are {', '.join(SUFFIXES)}, and .gz of a text")
    return tables.read


def _joined(parts: list[Samples]) -> Samples:
    """Training samples, then test samples."""
    first, second = parts
    for part in parts:
        if isinstance(part.x, samples.Mapped):
            raise DataError(part.file, None, "too large for task.test_path; use an array split")
        if part.channels != first.channels:
            file = part.file
            there = f"{len(part.channels)} channels" if len(part.channels) != len(first.channels) else "other channels"
            raise DataError(file, None, f"{there}, where {first.file.name} has {len(first.channels)}")
        clocks = [(one.times is None, one.per_second, one.per_step) for one in (first, part)]
        if clocks[0] != clocks[1]:
            raise DataError(part.file, None, "targets or times are not as in the first file")
    count = len(first)

    def place(index: int, step: int | None, column: int | str | None) -> tuple[Path | str, str]:
        return first.place(index, step, column) if index < count else second.place(index - count, step, column)

    names = [(part.classes or []) for part in parts]
    flat = [part.flat(part.targets) if part.per_step else part.targets for part in parts]
    if all(part.classes is not None for part in parts):
        codes = [np.where(codes < 0, -1, codes + (0 if part is first else len(names[0])))
                 for part, codes in zip(parts, flat, strict=True)]  # fmt: skip
        targets, classes = encode([*names[0], *names[1]], np.concatenate(codes), "classes", lambda index: ("", ""))
    else:
        # Whole numbers are classes only where all are.
        targets = np.concatenate([_values(part, values) for part, values in zip(parts, flat, strict=True)])
        classes = None
    times = None if first.times is None else np.concatenate([part.flat(part.times) for part in parts])
    return Samples(
        file=first.file,
        x=np.concatenate([part.flat(part.x, part.mask) for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        channels=first.channels,
        targets=targets,
        classes=classes,
        per_step=first.per_step,
        place=place,
        times=times,
        per_second=first.per_second,
        split=["train" if index < count else "test" for index in range(count + len(second))],
    )


def _values(part: Samples, targets: np.ndarray) -> np.ndarray:
    if part.classes is None:
        return targets
    values = [samples.number(name) for name in part.classes]
    if None in values:
        name = part.classes[values.index(None)]
        raise DataError(part.file, None, f"{one_line(name)!r} is not a number to predict")
    return np.array([*values, np.nan])[targets]
