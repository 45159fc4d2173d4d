"""Texts with separators, such as CSV: Arrow reads the columns; where it cannot, Python's ``csv`` finds the line."""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longwave.schema import counted, one_line
from longwave.tasks.checks import DataError, decoded, lines
from longwave.tasks.own.samples import MARKS, number

if TYPE_CHECKING:
    import pyarrow as pa

    from longwave.tasks.files import Config

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "space": " "}


def text_of(path: Path) -> bytes:
    """Content of a text, unpacked where it is compressed by gzip, without a byte order mark.

    Raises:
        DataError: where it cannot be read, is damaged, empty or no text.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(path, None, f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return content.removeprefix(b"\xef\xbb\xbf")


class Delimited:
    """A text with separators.

    Attributes:
        sep: the separator: the one that is set, else the one that the first line has most of.
        names: the columns; None where the first line is data.
    """

    def __init__(self, path: Path, config: "Config"):
        self.path, self.comma = path, config.decimal == "comma"
        content = text_of(path)
        if config.encoding.lower() not in ("utf-8", "utf8"):
            try:
                content = content.decode(config.encoding).removeprefix("\ufeff").encode()
            except (UnicodeDecodeError, LookupError) as error:
                raise DataError(path, None, f"task.encoding={config.encoding}: {one_line(str(error), 100)}") from error
        next(lines(io.BytesIO(content), path, ended=False))
        self._whole, self._comment, self.sep = content, (config.comment or "").encode(), ""
        found = next(((number, line) for number, line in self._lines() if line.strip()), None)
        if found is None:
            raise DataError(path, None, "has no line of data")
        line = decoded(found[1], path, f"line {found[0]}").strip("\r\n")
        most = max(",;\t|", key=line.count)
        self.sep = SEPARATORS[config.sep] if config.sep else most if most in line else " "
        commented = self._comment and (content.startswith(self._comment) or b"\n" + self._comment in content)
        rewritten = commented or self.sep == " "
        self.content = b"".join(line for _, line in self._lines()) if rewritten else content
        row = next(csv.reader([" ".join(line.split()) if self.sep == " " else line], delimiter=self.sep))
        self.names = None if self._is_data(row) else [cell.strip() for cell in row]

    def _is_data(self, row: list[str]) -> bool:
        """Whether the first line is no header: all cells but a label are numbers or missing."""
        values = [self.value(cell) for cell in row[1:]]
        # The numbers of the steps.
        if values in (list(range(len(values))), list(range(1, len(values) + 1))):
            return False
        missing = [cell.strip() in MARKS for cell in row[1:]]
        return any(v is not None for v in values) and all(
            v is not None or m for v, m in zip(values, missing, strict=True)
        )

    def value(self, cell: str) -> float | None:
        """A finite number, or None."""
        return number(cell.replace(",", ".") if self.comma else cell)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        for index, line in enumerate(io.BytesIO(self._whole), 1):
            if not self._comment or not line.startswith(self._comment):
                yield index, b" ".join(line.split()) + b"\n" if self.sep == " " else line

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells of every record of data."""
        current = 0

        def texts() -> Iterator[str]:
            nonlocal current
            for index, line in self._lines():
                current = index
                yield decoded(line, self.path, f"line {index}")

        headed = self.names is not None
        for row in csv.reader(texts(), delimiter=self.sep):
            if not row:
                continue
            if headed:
                headed = False
                continue
            yield current, row

    def line_of(self, row: int) -> int:
        """Line number of a row of data, from 0."""
        return next((line for index, (line, _) in enumerate(self.records()) if index == row), 0)

    def table(self, texts: Sequence[str], values: Sequence[str], marks: Sequence[str]) -> "pa.Table":
        """Columns as text, and as float64.

        Args:
            texts, values: names, or where there is no header positions as ``f0``.
            marks: of missing values.

        Raises:
            DataError: for a row with another number of cells, a cell that is no number.
        """
        import pyarrow as pa
        from pyarrow import csv as arrow

        types = {name: pa.float64() for name in values} | {name: pa.string() for name in texts}
        try:
            return arrow.read_csv(
                pa.BufferReader(self.content),
                arrow.ReadOptions(column_names=self._unique(), skip_rows=0 if self.names is None else self._above()),
                arrow.ParseOptions(delimiter=self.sep, newlines_in_values=b'"' in self.content),
                arrow.ConvertOptions(
                    column_types=types,
                    include_columns=list(types),
                    null_values=[*MARKS, *(mark for mark in marks if mark not in MARKS)],
                    strings_can_be_null=True,
                    decimal_point="," if self.comma else ".",
                ),
            )
        except pa.ArrowException as error:
            self._explain(list(values), {*MARKS, *marks})
            raise DataError(self.path, None, one_line(" ".join(str(error).split()), 200)) from error

    def positions(self) -> list[str]:
        """Names of columns without a header."""
        return [f"f{index}" for index in range(len(next(self.records())[1]))]

    def _unique(self) -> list[str]:
        """A name for each column; those that nobody asks for by name may have none, or the same."""
        if self.names is None:
            return self.positions()
        seen: set[str] = set()
        found = []
        for index, name in enumerate(self.names):
            found.append(name if name and name not in seen else f"\0{index}")
            seen.add(name)
        return found

    def _above(self) -> int:
        """Lines of ``content`` up to the header and with it."""
        for index, line in enumerate(io.BytesIO(self.content), 1):
            if line.strip():
                return index
        return 0

    def _explain(self, values: list[str], marks: set[str]) -> None:
        """Raises DataError for the first record that is wrong."""
        names = self._unique()
        columns = [(names.index(name), name) for name in values]
        first = 0
        for line, row in self.records():
            first = first or line
            if len(row) != len(names):
                what = "the header" if self.names is not None else "the first line"
                raise DataError(
                    self.path, f"line {line}", f"{counted(len(row), 'field')}, where {what} has {len(names)}"
                )
            for index, name in columns:
                cell = row[index].strip()
                if cell not in marks and self.value(cell) is None:
                    hint = ""
                    if not self.comma and number(cell.replace(",", ".")) is not None:
                        hint = "; use task.decimal=comma"
                    elif line == first:
                        hint = "; where the column is no channel, name those that are by task.channels"
                    where = f"line {line}, column {name if self.names is not None else index + 1}"
                    raise DataError(self.path, where, f"{one_line(cell)!r} is not a number{hint}")
        if not first:
            raise DataError(self.path, None, "has no row of data")
