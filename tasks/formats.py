"""The text formats of the UEA, UCR and Monash archives: ``.ts``, and ``.arff``, relational or one column a step."""

import contextlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import orjson

from longwave.tasks.data import DataError

ENCODING = "utf-8"


@dataclass(frozen=True)
class Part:
    """The series of one file, in its order.

    Args:
        series: N arrays (T, C), float32; T may differ. NaN is a missing value.
        labels: the N labels, as written.
        classes: the labels in the header; None where the label is a number to predict.
        lines: the line number of each series.
    """

    series: list[np.ndarray]
    labels: list[str]
    classes: list[str] | None
    lines: list[int]


def read(file: BinaryIO, name: str) -> Part:
    """Reads a file opened in binary; the suffix of ``name`` selects the format.

    Raises:
        DataError: for a malformed line.
    """
    lines = enumerate(file, 1)
    header = _arff_header if name.endswith(".arff") else _ts_header
    split, classes, equal = header(lines, name)
    series, labels, numbers = [], [], []
    known = None if classes is None else {_plain(label) for label in classes}
    with warnings.catch_warnings():
        # Some versions of numpy only warn of text that is not a number, and return what precedes it.
        warnings.simplefilter("error", DeprecationWarning)
        for number, line in lines:
            line = line.strip()
            if not line or line.startswith((b"#", b"%")):
                continue
            try:
                channels, label = split(line)
                values = np.stack([channel.astype(np.float32) for channel in _same_length(channels)], axis=1)
                if series and values.shape[1] != series[0].shape[1]:
                    raise ValueError(f"{values.shape[1]} channels, where the first series has {series[0].shape[1]}")
                if equal and series and len(values) != len(series[0]):
                    raise ValueError(
                        f"{len(values)} steps, where the first series has {len(series[0])} "
                        "and the header says that all are of one length"
                    )
                _check_label(label, known)
            except ValueError as error:
                raise DataError(name, f"line {number}", str(error)) from error
            series.append(values)
            labels.append(label)
            numbers.append(number)
    if not series:
        raise DataError(name, None, "no series")
    return Part(series, labels, classes, numbers)


def _check_label(label: str, known: set[str] | None) -> None:
    if known is None:
        with contextlib.suppress(ValueError):
            if np.isfinite(float(label)):
                return
        raise ValueError(f"target {label!r} is not a finite number")
    if _plain(label) not in known:
        raise ValueError(f"label {label!r} is none of the header's")


def _plain(label: str) -> str:
    # Some headers list 1 2 where the series say 1.0 2.0.
    try:
        return repr(float(label))
    except ValueError:
        return label


def _same_length(channels: list[np.ndarray]) -> list[np.ndarray]:
    lengths = sorted({len(channel) for channel in channels})
    if len(lengths) > 1:
        raise ValueError(f"channels of {' and '.join(map(str, lengths))} steps in one series")
    return channels


def numbers(text: bytes) -> np.ndarray:
    """Numbers from ``1.5,?,-2e-3``, float64; ``?`` is NaN. Raises ValueError for anything else."""
    try:
        if text.translate(None, b"0123456789+-.eE, "):
            raise ValueError("not all are plain numbers")
        # As JSON: several times faster than numpy, and EigenWorms has 28 million numbers.
        values = np.array(orjson.loads(b"[%b]" % text), np.float64)
    except ValueError:
        try:
            values = np.fromstring(text.replace(b"?", b"nan"), sep=",")
        except (ValueError, DeprecationWarning):
            values = np.empty(0)
    if len(values) != text.count(b",") + 1:
        bad = next((field for field in text.split(b",") if not _is_number(field)), text)
        raise ValueError(f"{_shown(bad)} is not a number")
    if (np.abs(values) > np.finfo(np.float32).max).any():
        raise ValueError("a value that is infinite in 32 bits")
    return values


def _is_number(field: bytes) -> bool:
    try:
        float(field.replace(b"?", b"nan"))
        return b"_" not in field  # a number to Python only
    except ValueError:
        return False


def _shown(text: bytes) -> str:
    shown = text.decode(ENCODING, "replace")
    return repr(shown if len(shown) <= 40 else shown[:40] + "...")


def _header(lines: Iterator[tuple[int, bytes]], name: str, known: str, comments: tuple[str, ...]):
    """Yields the first word, in lower case, and the text of each line up to ``@data``; ``known`` are the words."""
    for number, raw in lines:
        line = raw.decode(ENCODING, "replace").strip()
        if not line or line.startswith(comments):
            continue
        word = line.split()[0].lower()
        if word == "@data":
            return
        if not re.fullmatch(known, word):
            raise DataError(name, f"line {number}", f"{_shown(raw.strip())} comes before @data")
        yield word, line
    raise DataError(name, None, "no line @data")


def _ts_header(lines: Iterator[tuple[int, bytes]], name: str):
    """Reads up to ``@data``; returns a function that splits a line, the classes, and whether all lengths are equal."""
    keys = {word[1:]: line.split()[1:] for word, line in _header(lines, name, "@.*", ("#", "%"))}

    def true(key: str) -> bool:
        return [value.lower() for value in keys.get(key, [])[:1]] == ["true"]

    if not true("classlabel") and not true("targetlabel"):
        raise DataError(name, None, "the header has neither @classLabel true nor @targetLabel true")
    classes = keys["classlabel"][1:] if true("classlabel") else None
    stamped = true("timestamps")

    def split(line: bytes) -> tuple[list[np.ndarray], str]:
        if stamped:
            # A time may hold colons.
            *channels, label = re.split(rb":(?![^(]*\))", line)
        else:
            *channels, label = line.split(b":")
        if not channels:
            raise ValueError("no colon between the values and the label")
        return list(map(_stamped if stamped else numbers, channels)), label.decode(ENCODING, "replace").strip()

    return split, classes, true("equallength")


def _stamped(text: bytes) -> np.ndarray:
    """The values of ``(time,value),(time,value)``, whose times must be evenly spaced."""
    pairs = re.findall(rb"\(([^(),]*),([^(),]*)\)", text)
    if b",".join(b"(%s,%s)" % pair for pair in pairs) != text.replace(b" (", b"(").strip():
        raise ValueError(f"{_shown(text)} is not (time,value),(time,value),...")
    times = [time.decode() for time, _ in pairs]
    try:
        ticks = np.array([float(time) for time in times])
    except ValueError:
        ticks = np.array([np.datetime64(time.strip(), "us") for time in times]).astype(np.int64).astype(float)
    gaps = np.diff(ticks)
    if len(gaps) and not np.allclose(gaps, gaps[0], rtol=1e-6, atol=0):
        raise ValueError("its times are not evenly spaced, which is not supported")
    return numbers(b",".join(value for _, value in pairs))


def _arff_header(lines: Iterator[tuple[int, bytes]], name: str):
    """As :func:`_ts_header`. The last attribute at the top level is the label."""
    attributes: list[tuple[str, str]] = []  # (name, type) at the top level
    inside = False
    for word, line in _header(lines, name, "@relation|@attribute|@end", ("%",)):
        if word == "@end":
            inside = False
        elif word == "@attribute" and not inside:
            found = re.match(r"@attribute\s+('[^']*'|\"[^\"]*\"|\S+)\s*(.*)", line, re.IGNORECASE)
            attributes.append((found[1], found[2]))
            inside = found[2].lower() == "relational"
    if len(attributes) < 2:
        raise DataError(name, None, f"{len(attributes)} attributes, where there must be values and a label")
    relational = attributes[0][1].lower() == "relational"
    kind = attributes[-1][1]
    classes = None
    if kind.startswith("{"):
        classes = [label.strip().strip("'\"") for label in kind.strip("{} ").split(",")]
    elif kind.lower() not in ("numeric", "real"):
        raise DataError(name, None, f"the label is of the type {kind}; it must be {{a,b,...}} or numeric")

    def split(line: bytes) -> tuple[list[np.ndarray], str]:
        if relational:
            quote = line[:1]
            end = line.rfind(quote + b",")
            if quote not in (b"'", b'"') or end < 1:
                raise ValueError("not 'values',label")
            channels, label = [numbers(text) for text in line[1:end].split(rb"\n")], line[end + 2 :]
        else:
            text, _, label = line.rpartition(b",")
            channels = [numbers(text)]
            if len(channels[0]) != len(attributes) - 1:
                raise ValueError(f"{len(channels[0])} values, where the header has {len(attributes) - 1}")
        return _without_tail(channels), label.decode(ENCODING, "replace").strip().strip("'\"")

    return split, classes, False


def _without_tail(channels: list[np.ndarray]) -> list[np.ndarray]:
    """Shorter series are filled up with missing values at the end, in every channel."""
    there = ~np.logical_and.reduce([np.isnan(channel) for channel in _same_length(channels)])
    length = int(np.flatnonzero(there)[-1]) + 1 if there.any() else len(there)
    return [channel[:length] for channel in channels]
