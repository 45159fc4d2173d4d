"""The text formats of the UEA, UCR and Monash archives: ``.ts``, and ``.arff``, relational or one column per step."""

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import orjson

from longwave.schema import one_line
from longwave.tasks.checks import DataError, check, lines

ENCODING = "utf-8"


@dataclass(frozen=True)
class Header:
    """What the header says of the series.

    Args:
        classes: labels; None where the label is a number to predict.
        equal: all are of one length.
        complete: there are no missing values.
    """

    classes: list[str] | None
    equal: bool = False
    complete: bool = False


@dataclass(frozen=True)
class Part:
    """The series of one file, in its order.

    Args:
        series: N arrays (T, C), float32; T may differ. NaN is a missing value; where all channels end with missing
            values, the series ends before them.
        labels: the N labels, as written.
        classes: the labels in the header; None where the label is a number to predict.
        lines: the line number of each series.
    """

    series: list[np.ndarray]
    labels: list[str]
    classes: list[str] | None
    lines: list[int]


def read(file: BinaryIO, name: str, strict: bool = True) -> Part:
    """Reads a file opened in binary; the suffix of ``name``, without ``.gz``, selects the format.

    Args:
        strict: whether the header's word on lengths and missing values is to be kept. Files of other tools often break
            it.

    Raises:
        DataError: for a malformed line.
    """
    numbered = lines(file, name, ended=False)
    header = _arff_header if name.lower().removesuffix(".gz").endswith(".arff") else _ts_header
    split, head = header(numbered, name)
    series, labels, places = [], [], []
    known = None if head.classes is None else {_plain(label) for label in head.classes}
    written = None  # steps of the first series, with missing ones at its end
    for number, line in numbered:
        line = line.strip()
        if not line or line.startswith((b"#", b"%")):
            continue
        place = f"line {number}"
        try:
            channels, label = split(line)
            values = np.stack([channel.astype(np.float32) for channel in _same_length(channels)], axis=1)
            if series and values.shape[1] != series[0].shape[1]:
                raise ValueError(f"{values.shape[1]} channels, where the first series has {series[0].shape[1]}")
            written = written or len(values)
            if strict and head.equal and len(values) != written:
                raise ValueError(
                    f"{len(values)} steps, where the first series has {written} "
                    "and the header says that all are of one length"
                )
            _check_label(label, known, name, place)
            steps = _steps(values)
            if strict and steps < len(values) and head.complete:
                raise ValueError(
                    f"ends with {len(values) - steps} missing values, where the header says @missing false; "
                    "@missing true reads them as the end of the series"
                )
        except ValueError as error:
            raise DataError(name, place, str(error)) from error
        where = f"{place}, step {{}} of channel {{}}".format
        check(np.nan_to_num(values), name, lambda step, channel, where=where: where(step + 1, channel + 1))
        series.append(values[:steps])
        labels.append(label)
        places.append(number)
    if not series:
        raise DataError(name, None, "no series")
    return Part(series, labels, head.classes, places)


def _steps(values: np.ndarray) -> int:
    """Steps of a series (T, C) without the missing ones at its end; all of one that has no value."""
    there = np.flatnonzero(~np.isnan(values).all(1))
    return int(there[-1]) + 1 if len(there) else len(values)


def _check_label(label: str, known: set[str] | None, name: str, place: str) -> None:
    if known is None:
        try:
            target = float(label)
        except ValueError:
            raise ValueError(f"target {one_line(label)!r} is not a finite number") from None
        check([target], name, lambda _: f"{place}, target")
    elif _plain(label) not in known:
        raise ValueError(f"label {one_line(label)!r} is none of the header's")


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
        with warnings.catch_warnings():
            # Some versions of numpy only warn of text that is not a number, and return what precedes it.
            warnings.simplefilter("error", DeprecationWarning)
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


def row(line: bytes, count: int) -> np.ndarray:
    """``count`` numbers with space between them; ValueError for anything else."""
    if b"," in line:
        raise ValueError("a comma, where numbers have space between them")
    fields = line.split()
    if len(fields) != count:
        raise ValueError(f"{len(fields)} numbers, not {count}")
    return numbers(b",".join(fields))


def _is_number(field: bytes) -> bool:
    try:
        float(field.replace(b"?", b"nan"))
        return b"_" not in field  # a number to Python only
    except ValueError:
        return False


def _shown(text: bytes) -> str:
    return repr(one_line(text.decode(ENCODING, "replace"), 43))


def _header(numbered: Iterator[tuple[int, bytes]], name: str, known: str, comments: tuple[str, ...]):
    """Yields number, first word in lower case, and text of each line up to ``@data``; ``known`` are the words."""
    for number, raw in numbered:
        line = raw.decode(ENCODING, "replace").strip()
        if not line or line.startswith(comments):
            continue
        word = line.split()[0].lower()
        if word == "@data":
            return
        if not re.fullmatch(known, word):
            raise DataError(name, f"line {number}", f"{_shown(raw.strip())} comes before @data")
        yield number, word, line
    raise DataError(name, None, "no line @data")


def _ts_header(numbered: Iterator[tuple[int, bytes]], name: str) -> tuple[Callable, Header]:
    """Reads up to ``@data``; returns a function that splits a line into channels and label, and the header."""
    keys = {word[1:]: line.split()[1:] for _, word, line in _header(numbered, name, "@.*", ("#", "%"))}

    def true(key: str, word: str = "true") -> bool:
        return [value.lower() for value in keys.get(key, [])[:1]] == [word]

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
        return list(map(_stamped if stamped else numbers, channels)), label.decode(ENCODING).strip()

    return split, Header(classes, true("equallength"), complete=true("missing", "false"))


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
    with np.errstate(all="ignore"):  # of infinite times
        gaps = np.diff(ticks)
    if len(gaps) and not (gaps[0] > 0 and np.allclose(gaps, gaps[0], rtol=1e-6, atol=0)):
        raise ValueError("its times are not evenly spaced, which is not supported")
    return numbers(b",".join(value for _, value in pairs))


def _arff_header(numbered: Iterator[tuple[int, bytes]], name: str) -> tuple[Callable, Header]:
    """As :func:`_ts_header`. The last attribute at the top level is the label."""
    attributes: list[tuple[str, str]] = []  # (name, type) at the top level
    inside = False
    for number, word, line in _header(numbered, name, "@relation|@attribute|@end", ("%",)):
        if word == "@end":
            inside = False
        elif word == "@attribute" and not inside:
            found = re.match(r"@attribute\s+('[^']*'|\"[^\"]*\"|\S+)\s*(.*)", line, re.IGNORECASE)
            if not found:
                raise DataError(name, f"line {number}", "@attribute without a name")
            attributes.append((found[1], found[2]))
            inside = found[2].lower() == "relational"
    if len(attributes) < 2:
        raise DataError(name, None, f"{len(attributes)} attributes, where there must be values and a label")
    relational = attributes[0][1].lower() == "relational"
    kind = attributes[-1][1]
    classes = None
    if listed := re.match(r"\{((?:'[^']*'|\"[^\"]*\"|[^'\"}])*)\}", kind):
        labels = re.findall(r"'[^']*'|\"[^\"]*\"|[^,'\"]+", listed[1])
        classes = [label.strip().strip("'\"") for label in labels if label.strip()]
    elif kind.lower() not in ("numeric", "real"):
        raise DataError(name, None, f"the label is of the type {one_line(kind)}; it must be {{a,b,...}} or numeric")

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
        return channels, label.decode(ENCODING).strip().strip("'\"")

    return split, Header(classes)
