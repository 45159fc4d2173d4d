"""Columns of one table, CSV or Parquet: numbers, texts and times."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longwave.schema import one_line
from longwave.tasks.checks import DataError
from longwave.tasks.own.delimited import Delimited
from longwave.tasks.own.samples import MARKS, UNITS, number

if TYPE_CHECKING:
    from longwave.tasks.files import Config

PARQUET = (".parquet", ".pq")


def suffix(path: Path) -> str:
    """Of a file, without ``.gz``."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


class Columns:
    """Columns of one table, whatever its format.

    Attributes:
        names: those that may be asked for.
    """

    def __init__(self, path: Path, config: "Config"):
        self.path, self.config = path, config
        self._text = None
        if suffix(path) in (".parquet", ".pq"):
            import pyarrow as pa
            from pyarrow import parquet

            try:
                self._file = parquet.ParquetFile(path)
                self.names = [name for name in self._file.schema_arrow.names if not name.startswith("__index_level_")]
            except (pa.ArrowException, OSError, ValueError) as error:
                raise DataError(
                    path, None, f"no Parquet file ({one_line(' '.join(str(error).split()), 150)})"
                ) from error
        else:
            self._text = Delimited(path, config)
            self.names = [name for name in self._text.names or self._text.positions() if name]
        self._table = self._kept = None

    @property
    def headed(self) -> bool:
        return self._text is None or self._text.names is not None

    def find(self, name: str | None, default: str) -> str | None:
        """A column that may be there under its default name, or must be there under a name that was set."""
        if name is None:
            return default if default in self.names else None
        if name not in self.names:
            there = one_line(", ".join(self.names), 200)
            raise DataError(self.path, None, f"no column {one_line(name)}; there are {there or 'none'}")
        return name

    def load(self, texts: Sequence[str | None], values: Sequence[str]) -> int:
        """Reads columns; gives the number of rows. A column that is None is passed over."""
        wanted = list(dict.fromkeys(name for name in texts if name is not None))
        for name in [*wanted, *values]:
            if self.names.count(name) > 1:
                raise DataError(self.path, None, f"two columns {one_line(name)}")
        if self._text is not None:
            marks = [mark for mark in self.config.missing_marks if number(mark) is None]
            self._table = self._text.table(wanted, values, marks)
        else:
            import pyarrow as pa

            try:
                self._table = self._file.read(columns=list(dict.fromkeys([*wanted, *values])))
            except (pa.ArrowException, OSError, ValueError) as error:
                raise DataError(self.path, None, f"is damaged ({one_line(str(error), 150)})") from error
        self._kept = None
        return self._table.num_rows

    def keep(self, rows: np.ndarray) -> None:
        """Goes on with some of the rows alone."""
        if len(rows) < self._table.num_rows:
            self._kept, self._table = rows, self._table.take(rows)

    def missing(self, name: str) -> np.ndarray:
        """Whether each cell of a column is empty."""
        return self._table[name].is_null().to_numpy(zero_copy_only=False)

    def place(self, row: int, column: str | None) -> tuple[Path, str]:
        """File, and the place of a row of data (from 0) in it."""
        row = row if self._kept is None else int(self._kept[row])
        where = f"row {row + 1}" if self._text is None else f"line {self._text.line_of(row)}"
        return self.path, where if column is None else f"{where}, column {column}"

    def values(self, name: str) -> np.ndarray:
        """A column of numbers, float32; NaN where it is missing."""
        import pyarrow as pa
        from pyarrow import compute

        column = self._table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_null)
        if not any(kind(column.type) for kind in kinds):
            raise DataError(self.path, f"column {name}", f"of type {column.type}; must be numbers")
        found = compute.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
        for mark in self.config.missing_marks:
            value = number(mark)
            if value is not None:
                found = np.where(found == value, np.nan, found)
        with np.errstate(over="ignore"):
            return found.astype(np.float32)

    def texts(self, name: str) -> tuple[list[str], np.ndarray]:
        """The different texts of a column, in the order of their appearance, and the index of each row's; -1 for none.

        Numbers with a decimal comma have a point.
        """
        import pyarrow as pa
        from pyarrow import compute

        column = self._table[name]
        if not pa.types.is_dictionary(column.type):
            if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
                column = compute.cast(column, pa.string())
            column = column.dictionary_encode()
        column = column.unify_dictionaries()
        if not column.num_chunks:
            return [], np.empty(0, np.int64)
        raw = [None if text is None else str(text).strip() for text in column.chunk(0).dictionary.to_pylist()]
        if self._text is not None and self._text.comma:
            raw = [text.replace(",", ".") if text and self._text.value(text) is not None else text for text in raw]
        # A dictionary may have a text twice, or one that no row has.
        parts = [chunk.indices.fill_null(len(raw)).to_numpy(zero_copy_only=False) for chunk in column.chunks]
        codes = np.concatenate(parts).astype(np.int64)
        found: dict[str, int] = {}
        _, first = np.unique(codes, return_index=True)
        index = np.full(len(raw) + 1, -1, np.int64)
        for code in codes[np.sort(first)].tolist():
            if code < len(raw) and raw[code] not in (None, *MARKS):
                index[code] = found.setdefault(raw[code], len(found))
        return list(found), index[codes]

    def ticks(self, name: str) -> tuple[np.ndarray, int]:
        """A column of times, int64 or float64, and how many units a second has."""
        import pyarrow as pa
        from pyarrow import compute

        column, config = self._table[name], self.config
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
            raise DataError(*self.place(row, name), "a time is missing")
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            return compute.cast(column, pa.timestamp("us"), safe=False).cast(pa.int64()).to_numpy(), UNITS["us"]
        if pa.types.is_integer(column.type):
            return column.cast(pa.int64()).to_numpy(), UNITS[config.time_unit]
        if pa.types.is_floating(column.type):
            return column.to_numpy().astype(np.float64), UNITS[config.time_unit]
        if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
            raise DataError(self.path, f"column {name}", f"of type {column.type}; must be numbers or times")
        column = compute.utf8_trim_whitespace(column)
        if config.time_format is not None:
            return self._formatted(column, name, config.time_format), UNITS["us"]
        numeric = compute.replace_substring(column, ",", ".") if self._text is not None and self._text.comma else column
        for kind in (pa.int64(), pa.float64()):
            try:
                return compute.cast(numeric, kind).to_numpy(), UNITS[config.time_unit]
            except pa.ArrowInvalid:
                continue
        for kind in (pa.timestamp("ns"), pa.timestamp("ns", "UTC")):
            try:
                return compute.cast(column, kind).cast(pa.int64()).to_numpy(), UNITS["ns"]
            except pa.ArrowInvalid:
                continue
        row = next((row for row, text in enumerate(column.to_pylist()) if not _is_time(text)), 0)
        text = one_line(column[row].as_py())
        reason = f"{text!r} is not a number or ISO time, as others are; set task.time_format"
        raise DataError(*self.place(row, name), reason)

    def _formatted(self, column: Any, name: str, form: str) -> np.ndarray:
        """Microseconds since 1970 of times in a format of ``strptime``."""
        import pyarrow as pa
        from pyarrow import compute

        if not {"%f", "%z", "%Z"} & {form[i : i + 2] for i in range(len(form))}:
            found = compute.strptime(column, format=form, unit="us", error_is_null=True)
            if not found.null_count:
                return found.cast(pa.int64()).to_numpy()
        ticks = np.empty(len(column), np.int64)
        for row, text in enumerate(column.to_pylist()):
            try:
                when = datetime.strptime(text, form)
            except ValueError as error:
                raise DataError(*self.place(row, name), f"{one_line(text)!r} is not {form}") from error
            when = when if when.tzinfo else when.replace(tzinfo=UTC)
            ticks[row] = round(when.timestamp() * 1e6)
        return ticks


def _is_time(text: str) -> bool:
    if number(text) is not None:
        return True
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
