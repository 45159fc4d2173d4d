"""Checks of the content of data files, before training."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from longwave.schema import one_line

# Sums of squares of more cannot be formed in 32 bits.
LARGEST = 1e15

# First bytes, in small letters, of a file that is not the text that it should be.
_OTHERS = {
    b"\x1f\x8b": "is compressed by gzip; unpack it",
    b"pk\x03\x04": "is a zip archive; unpack it",
    b"\xff\xfe": "is in UTF-16; convert it to UTF-8",
    b"\xfe\xff": "is in UTF-16; convert it to UTF-8",
    b"\xef\xbb\xbf": "begins with a byte order mark; remove it",
    b"<html": "is an HTML page, not the file",
    b"<!doctype": "is an HTML page, not the file",
}


class DataError(OSError):
    """A data file that is missing, wrong or malformed: ``<file>, <place>: <reason>``.

    Args:
        file: its path, or its name.
        place: where in the file, such as ``line 7``; None is the whole file.
        reason: what is wrong and what to do about it.
    """

    def __init__(self, file: Path | str, place: str | None, reason: str):
        place = place and one_line(place, 200)
        super().__init__(f"{file}, {place}: {reason}" if place else f"{file}: {reason}")
        self.file, self.place, self.reason = file, place, reason

    def __reduce__(self):
        return DataError, (self.file, self.place, self.reason)


def check(
    values: npt.ArrayLike,
    file: Path | str,
    place: Callable[..., str | None],
    low: float = -LARGEST,
    high: float = LARGEST,
    whole: bool = False,
) -> None:
    """Checks that values are finite and in [low, high], and whole numbers if ``whole``, as classes are.

    Args:
        values: of any shape; NaN is refused.
        place: from the index of a value to its place in ``file``.

    Raises:
        DataError: for the first value that is not.
    """
    values = np.asarray(values)
    good = (values >= low) & (values <= high)  # false for NaN
    if whole:
        good &= np.floor(values) == values
    if not good.all():
        index = tuple(map(int, np.unravel_index(np.argmin(good), good.shape)))
        kind = "whole number" if whole else "number"
        raise DataError(file, place(*index), f"{values[index]:g} is not a {kind} from {low:g} to {high:g}")


def decoded(content: bytes, file: Path | str, place: str | None = None) -> str:
    """A text in UTF-8; ``place`` is where it stands, by default its line.

    Raises:
        DataError: for another encoding, or a zero byte, which no text has.
    """

    def where(index: int) -> str:
        number = content.count(b"\n", 0, index) + 1
        return place or f"line {number}"

    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        reason = f"the byte {content[error.start]:#04x} is not UTF-8; convert the file to UTF-8"
        raise DataError(file, where(error.start), reason) from error
    if "\0" in text:
        raise DataError(file, where(content.index(b"\0")), "a zero byte, which no text has")
    return text


def lines(file: BinaryIO, name: Path | str, ended: bool = True) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and content of every line of a text.

    Args:
        name: of the file.
        ended: whether the last line must have its end; without it the file was cut.

    Raises:
        DataError: for an empty file, or one in another format or encoding.
    """
    number, line = 0, b""
    for number, line in enumerate(file, 1):
        if number == 1:
            start = line[:20].lstrip().lower()
            for other, reason in _OTHERS.items():
                if start.startswith(other):
                    raise DataError(name, None, reason)
        yield number, line
    if number == 0:
        raise DataError(name, None, "is empty")
    if ended and not line.endswith(b"\n"):
        raise DataError(name, f"line {number}", "has no end; the file was cut")
