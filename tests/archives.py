"""Data sets in the formats of the archives: written, and read as plainly as possible."""

import zipfile
from pathlib import Path

import numpy as np


def text(channel: np.ndarray) -> str:
    return ",".join(map(repr, channel.tolist())).replace("nan", "?")


def write_ts(path: Path, series: list[np.ndarray], labels: list, classes: list | None = None) -> Path:
    """Series (T, C) of any lengths; without classes the labels are numbers to predict."""
    equal = len({len(one) for one in series}) == 1
    lines = [
        "# Written by a test.",
        f"@problemName {path.stem.rpartition('_')[0]}",
        "@timeStamps false",
        f"@missing {str(any(np.isnan(one).any() for one in series)).lower()}",
        f"@univariate {str(series[0].shape[1] == 1).lower()}",
        f"@dimensions {series[0].shape[1]}",
        f"@equalLength {str(equal).lower()}",
        *([f"@seriesLength {len(series[0])}"] if equal else []),
        "@targetLabel true" if classes is None else f"@classLabel true {' '.join(map(str, classes))}",
        "@data",
    ]
    for one, label in zip(series, labels, strict=True):
        lines.append(":".join([*map(text, one.T), str(label)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def write_arff(path: Path, series: list[np.ndarray], labels: list, classes: list | None = None) -> Path:
    """The same as ``.arff``: relational where there are several channels; shorter series end with ``?``."""
    steps, channels = max(map(len, series)), series[0].shape[1]
    attributes = [f"@attribute att{t} numeric" for t in range(steps)]
    if channels > 1:
        attributes = ["@attribute relationalAtt relational", *attributes, "@end relationalAtt"]
    kind = "numeric" if classes is None else "{" + ",".join(map(str, classes)) + "}"
    lines = ["% Written by a test.", "@relation 'test'", "", *attributes, f"@attribute target {kind}", "", "@data"]
    for one, label in zip(series, labels, strict=True):
        full = np.full((steps, channels), np.nan)
        full[: len(one)] = one
        values = r"\n".join(map(text, full.T))
        lines.append(f"'{values}',{label}" if channels > 1 else f"{values},{label}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def read_plainly(path: Path) -> tuple[list[np.ndarray], list[str]]:
    """The series (T, C) and labels of a ``.ts`` file without time stamps."""
    lines = path.read_text().split("@data")[1].strip().split("\n")
    fields = [line.split(":") for line in lines]
    series = [np.array([[float(v) for v in channel.split(",")] for channel in row[:-1]]).T for row in fields]
    return series, [row[-1] for row in fields]


def zipped(folder: Path, name: str, *paths: Path) -> Path:
    """Moves files into ``folder/name``."""
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in paths:
            archive.write(path, path.name)
            path.unlink()
    return folder / name


def eigenworms(root: Path, length: int = 9) -> Path:
    """``uea/EigenWorms.zip`` of 128 and 131 series, with 23 exact copies: the last 20 are those 131 before."""
    rng = np.random.default_rng(0)
    series = [rng.normal(2, 3, (length, 6)).round(5) for _ in range(259)]
    labels = [int(rng.integers(1, 6)) for _ in range(259)]
    for copy, of in [*((239 + i, 108 + i) for i in range(20)), (1, 0), (5, 0), (200, 150)]:
        series[copy], labels[copy] = series[of], labels[of]
    parts = [
        write_ts(root / "uea" / f"EigenWorms_{part}.ts", series[where], labels[where], [1, 2, 3, 4, 5])
        for part, where in (("TRAIN", slice(0, 128)), ("TEST", slice(128, 259)))
    ]
    return zipped(root / "uea", "EigenWorms.zip", *parts)


def bidmc(root: Path, length: int = 3, train: int = 5550, test: int = 2399) -> None:
    """The two files of each target; series i begins with i, and its target is i / 100."""
    steps = np.arange(length)[:, None] * np.array([1, -1]) / 8
    for target in ("RR", "HR", "SpO2"):
        for part, where in (("TRAIN", range(train)), ("TEST", range(train, train + test))):
            path = root / "uea" / f"BIDMC32{target}_{part}.ts"
            write_ts(path, [steps + i for i in where], [i / 100 for i in where])
