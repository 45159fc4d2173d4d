"""Tables: a row a time step, or a row a sample; one table of all samples, or a table for each."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longwave.schema import one_line
from longwave.tasks.checks import DataError
from longwave.tasks.own.columns import PARQUET, Columns, suffix
from longwave.tasks.own.samples import Samples, encode, plain

if TYPE_CHECKING:
    from longwave.tasks.files import Config

# Of tables that are samples of a folder: a .txt there is a note.
SUFFIXES = (".csv", ".tsv", *PARQUET)


def read(path: Path, config: "Config") -> Samples:
    """Samples of a table, of its rows (``wide``) or of its blocks of rows (``long``).

    Raises:
        DataError: for a column that is missing, a cell that is wrong, ...
    """
    import pyarrow as pa

    try:
        return _read(path, config).check()
    except (pa.ArrowException, csv.Error, UnicodeError) as error:
        raise DataError(path, None, one_line(" ".join(str(error).split()), 200)) from error


def _read(path: Path, config: "Config") -> Samples:
    columns = Columns(path, config)
    sample = columns.find(config.sample_column, "sample") if columns.headed else None
    if config.layout == "wide" or (config.layout == "auto" and sample is None and not columns.headed):
        return _wide(columns, config)
    if sample is None:
        there = one_line(", ".join(columns.names), 200) or "none: the first line is data"
        what = "no column sample, which says whose step a row is: name it by task.sample_column"
        raise DataError(path, None, f"{what}, or set task.layout=wide where a row is a sample; there are {there}")
    return _long(columns, sample, config)


def _long(columns: Columns, sample: str, config: "Config") -> Samples:
    labels = _Labels(config, sample) if config.labels_path else None
    time = columns.find(config.time_column, "time")
    own = {}
    for role, default in (("target", "target"), ("group", "group"), ("split", "split")):
        given = getattr(config, f"{role}_column")
        elsewhere = labels is not None and labels.has(given or default)
        own[role] = None if elsewhere else columns.find(given, default)
    if own["target"] is None and (labels is None or not labels.has(config.target_column or "target")):
        there = one_line(", ".join(columns.names), 200)
        raise DataError(columns.path, None, f"no column target; name it by task.target_column; there are {there}")
    special = {sample, time, *(getattr(config, f"{role}_column") or role for role in own)}
    channels = _channels(columns, config, special)
    columns.load([sample, time, *own.values()], channels)
    ids, codes = columns.texts(sample)
    keep = _rows(columns, codes, sample, channels, [name for name in (time, *own.values()) if name])
    if not len(keep):
        raise DataError(columns.path, None, "has no row of data")
    columns.keep(keep)
    codes = codes[keep]
    order = np.argsort(codes, kind="stable") if (np.diff(codes) < 0).any() else np.arange(len(codes))
    lengths = np.bincount(codes, minlength=len(ids))
    offsets = np.cumsum(lengths) - lengths

    def row_of(index: int, step: int | None) -> int:
        return int(order[offsets[index] + (step or 0)])

    def place(index: int, step: int | None, column: int | str | None) -> tuple[Path, str]:
        name = channels[column] if isinstance(column, int) else time if column == "time" else column
        return columns.place(row_of(index, step), name)

    x = np.empty((len(codes), len(channels)), np.float32)
    for index, name in enumerate(channels):
        x[:, index] = columns.values(name)[order]
    times, per_second = (None, 1) if time is None else columns.ticks(time)
    per_step = config.per_step
    if own["target"] is not None:
        texts, found = columns.texts(own["target"])
        found = found[order]
        if not per_step:
            hint = "; task.per_step=true predicts a target at every step"
            found = _constant(texts, found, lengths, lambda i, s: columns.place(row_of(i, s), own["target"]), hint)

        def target_place(index: int) -> tuple[Path, str]:
            sample = int(np.searchsorted(offsets, index, "right")) - 1 if per_step else index
            return columns.place(row_of(sample, index - int(offsets[sample]) if per_step else 0), own["target"])

        targets, classes = encode(texts, found, config.predict, target_place)
    elif per_step:
        raise DataError(columns.path, None, "task.per_step=true: the targets must be a column of this file")
    else:
        targets, classes = labels.targets(ids, columns.path, config)

    def each(role: str) -> list[str] | None:
        if labels is not None and labels.has(getattr(config, f"{role}_column") or role):
            return labels.column(getattr(config, f"{role}_column") or role, ids)
        if own[role] is None:
            return None
        texts, found = columns.texts(own[role])
        found = _constant(texts, found[order], lengths, lambda i, s: columns.place(row_of(i, s), own[role]))
        return [texts[code] for code in found]

    return Samples(
        file=columns.path,
        x=x,
        lengths=lengths,
        channels=channels,
        targets=targets,
        classes=classes,
        per_step=per_step,
        place=place,
        times=None if times is None else times[order],
        per_second=per_second,
        ids=ids,
        groups=each("group"),
        split=each("split"),
    )


def _channels(columns: Columns, config: "Config", special: set[str | None]) -> list[str]:
    if config.channels is not None:
        return [columns.find(name, name) for name in config.channels]
    found = [name for name in columns.names if name not in special]
    if not found:
        raise DataError(columns.path, None, "no column is left that could be a channel")
    return found


def _rows(columns: Columns, codes: np.ndarray, sample: str, channels: list[str], others: list[str]) -> np.ndarray:
    """Rows with a sample; those without must have nothing else either."""
    missing = codes < 0
    if not missing.any():
        return np.arange(len(codes))
    filled = np.zeros(len(codes), bool)
    for name in channels:
        filled |= ~np.isnan(columns.values(name))
    for name in others:
        filled |= ~columns.missing(name)
    if (missing & filled).any():
        row = int((missing & filled).argmax())
        raise DataError(*columns.place(row, sample), "a row that belongs to no sample")
    return np.flatnonzero(~missing)


def _constant(
    texts: list[str], codes: np.ndarray, lengths: np.ndarray, place: Callable[[int, int], tuple], hint: str = ""
) -> np.ndarray:
    """The one value of each sample, of a column in the order of samples; empty cells do not count."""
    names = {name: index for index, name in reversed(list(enumerate(map(plain, texts))))}
    same = np.array([*(names[plain(text)] for text in texts), -1], np.int64)[codes]
    owner = np.repeat(np.arange(len(lengths)), lengths)
    there = np.flatnonzero(same >= 0)
    first = np.full(len(lengths), -1, np.int64)
    first[owner[there[::-1]]] = same[there[::-1]]
    if (first < 0).any():
        raise DataError(*place(int((first < 0).argmax()), 0), "a sample without a value here")
    wrong = (same >= 0) & (same != first[owner])
    if wrong.any():
        row = int(wrong.argmax())
        index = int(owner[row])
        step = row - int(lengths[:index].sum())
        reason = f"{one_line(texts[same[row]])!r} after {one_line(texts[first[index]])!r} in one sample{hint}"
        raise DataError(*place(index, step), reason)
    return first


class _Labels:
    """A second table, with a row a sample."""

    def __init__(self, config: "Config", sample: str):
        self.path = config.resolved(config.labels_path)
        self._columns = Columns(self.path, config)
        self._sample = self._columns.find(config.sample_column or sample, sample)
        if self._sample is None:
            raise DataError(self.path, None, f"no column {sample}, which says whose row it is")
        self._columns.load(self._columns.names, [])
        texts, codes = self._columns.texts(self._sample)
        self._rows: dict[str, int] = {}
        for row, code in enumerate(codes.tolist()):
            if code >= 0 and texts[code] in self._rows:
                raise DataError(*self._columns.place(row, self._sample), f"{one_line(texts[code])} a second time")
            if code >= 0:
                self._rows[texts[code]] = row
        # 3 in one file may be 3.0 in the other.
        self._rows = {plain(text): row for text, row in self._rows.items()} | self._rows

    def has(self, name: str) -> bool:
        return name in self._columns.names

    def _found(self, name: str, ids: list[str]) -> tuple[list[str], np.ndarray, list[int]]:
        texts, codes = self._columns.texts(name)
        rows = []
        for one in ids:
            row = self._rows.get(one, self._rows.get(plain(one)))
            if row is None:
                raise DataError(self.path, f"column {self._sample}", f"no row for the sample {one_line(one)}")
            rows.append(row)
        return texts, codes[rows], rows

    def column(self, name: str, ids: list[str]) -> list[str]:
        texts, codes, rows = self._found(name, ids)
        if (codes < 0).any():
            raise DataError(*self._columns.place(rows[int((codes < 0).argmax())], name), "an empty cell")
        return [texts[code] for code in codes]

    def targets(self, ids: list[str], path: Path, config: "Config") -> tuple[np.ndarray, list[str] | None]:
        name = config.target_column or "target"
        texts, codes, rows = self._found(name, ids)
        if (codes < 0).any():
            raise DataError(*self._columns.place(rows[int((codes < 0).argmax())], name), "an empty cell")
        return encode(texts, codes, config.predict, lambda index: self._columns.place(rows[index], name))


def _wide(columns: Columns, config: "Config") -> Samples:
    if columns.headed:
        target = columns.find(config.target_column, "target") or columns.names[0]
        roles = {role: columns.find(getattr(config, f"{role}_column"), role) for role in ("sample", "group", "split")}
        special = {target, *roles.values()}
        steps = config.channels or [name for name in columns.names if name not in special]
    else:
        if len(columns.names) < 2:
            raise DataError(columns.path, None, "one column, where there must be a label and the steps")
        target, roles, steps = "f0", dict.fromkeys(("sample", "group", "split")), columns.names[1:]
    headed, names = columns.headed, columns.names
    columns.load([target, *roles.values()], steps)
    x = np.stack([columns.values(name) for name in steps], 1)
    texts, codes = columns.texts(target)
    empty = (codes < 0) & np.isnan(x).all(1)
    keep = np.flatnonzero(~empty)
    columns.keep(keep)
    x, codes = x[keep], codes[keep]
    if not len(keep):
        raise DataError(columns.path, None, "has no row of data")
    # Missing values at the end are none: the sample ends there.
    there = ~np.isnan(x)
    lengths = np.where(there.any(1), x.shape[1] - there[:, ::-1].argmax(1), x.shape[1])

    def place(index: int, step: int | None, column: int | str | None) -> tuple[Path, str]:
        name = steps[step or 0] if isinstance(column, int) else column
        if name is not None and not headed:
            name = names.index(name) + 1
        return columns.place(index, name)

    if (codes < 0).any():
        raise DataError(*place(int((codes < 0).argmax()), None, target), "a sample without a target")
    targets, classes = encode(texts, codes, config.predict, lambda index: place(index, None, target))

    def each(role: str) -> list[str] | None:
        if roles[role] is None:
            return None
        texts, codes = columns.texts(roles[role])
        if (codes < 0).any():
            raise DataError(*place(int((codes < 0).argmax()), None, roles[role]), "an empty cell")
        return [texts[code] for code in codes]

    return Samples(
        file=columns.path,
        x=x[:, :, None],
        lengths=lengths.astype(np.int64),
        channels=["0"],
        targets=targets,
        classes=classes,
        per_step=False,
        place=place,
        ids=each("sample"),
        groups=each("group"),
        split=each("split"),
    )


def files_in(folder: Path) -> list[Path]:
    """The tables of a folder that are samples, in the order of their names: those in its folders, or in itself."""
    for pattern in ("*/*", "*"):
        found = [path for path in folder.glob(pattern) if suffix(path) in SUFFIXES and path.is_file()]
        # What an editor or a system hides is no sample.
        shown = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
        if shown:
            return sorted(shown, key=lambda path: path.relative_to(folder).parts)
    return []


def read_folder(folder: Path, config: "Config") -> Samples:
    """Samples of a folder with a table for each, in folders that are named by their class, or with ``labels_path``."""
    paths = files_in(folder)
    nested = bool(paths) and paths[0].parent != folder
    if config.labels_path:
        paths = [path for path in paths if path != config.resolved(config.labels_path)]
    if not paths:
        raise DataError(folder, None, "no tables in it, nor arrays (x.npy, y.npy)")
    if not nested and not config.labels_path:
        raise DataError(folder, None, "tables in no folders of classes; name a table of labels by task.labels_path")
    parts, tables, clocks, channels = [], [], [], config.channels
    per_second, clocked = 1, None
    for path in paths:
        columns = Columns(path, config)
        time = columns.find(config.time_column, "time")
        own = _channels(columns, config, {time})
        if channels is None:
            channels = own
        elif own != channels:
            here, there = (one_line(", ".join(names), 100) for names in (own, channels))
            raise DataError(path, None, f"its columns are {here}, and those of {paths[0].name} are {there}")
        columns.load([time], channels)
        values = np.stack([columns.values(name) for name in channels], 1)
        # Empty lines at the end.
        used = np.flatnonzero(~np.isnan(values).all(1))
        if not len(used):
            raise DataError(path, None, "has no row of data")
        values = values[: used[-1] + 1]
        if time is not None:
            columns.keep(np.arange(len(values)))
            ticks, per_second = columns.ticks(time)
            clocks.append(ticks)
        if clocked not in (None, (time, per_second)):
            raise DataError(path, None, f"its times are not as those of {paths[0].name}")
        clocked = (time, per_second)
        parts.append(values)
        tables.append(columns)

    def place(index: int, step: int | None, column: int | str | None) -> tuple[Path, str]:
        name = channels[column] if isinstance(column, int) else clocked[0] if column == "time" else column
        if step is None:
            return paths[index], name and f"column {name}"
        return tables[index].place(step, name)

    ids = [path.relative_to(folder).as_posix() for path in paths]
    labels = _Labels(config, config.sample_column or "sample") if config.labels_path else None
    if labels is not None:
        ids = [one if one in labels._rows else Path(one).stem for one in ids]
        targets, classes = labels.targets(ids, folder, config)
    else:
        texts = list(dict.fromkeys(path.parent.name for path in paths))
        codes = np.array([texts.index(path.parent.name) for path in paths])
        targets, classes = encode(texts, codes, config.predict, lambda index: (paths[index], None))

    def each(role: str) -> list[str] | None:
        name = getattr(config, f"{role}_column")
        if labels is None or not labels.has(name or role):
            if name is not None:
                raise DataError(folder, None, f"task.{role}_column={one_line(name)}: needs task.labels_path")
            return None
        return labels.column(name or role, ids)

    return Samples(
        file=folder,
        x=np.concatenate(parts),
        lengths=np.array([len(part) for part in parts], np.int64),
        channels=list(channels),
        targets=targets,
        classes=classes,
        per_step=False,
        place=place,
        times=np.concatenate(clocks) if clocks else None,
        per_second=per_second,
        ids=ids,
        groups=each("group"),
        split=each("split"),
    ).check()
