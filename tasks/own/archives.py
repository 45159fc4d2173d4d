"""Files in the formats of the archives, ``.ts`` and ``.arff``, from anywhere."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longwave.tasks import formats
from longwave.tasks.own.delimited import text_of
from longwave.tasks.own.samples import Samples, encode

if TYPE_CHECKING:
    from longwave.tasks.files import Config


def read(path: Path, config: "Config") -> Samples:
    """Samples of one file; what its header says of lengths and missing values is not relied on.

    Raises:
        DataError: for a malformed line.
    """
    part = formats.read(io.BytesIO(text_of(path)), str(path), strict=False)
    texts = list(dict.fromkeys(part.labels))
    index = {text: position for position, text in enumerate(texts)}
    predict = config.predict
    if predict == "auto":
        predict = "numbers" if part.classes is None else "classes"

    def place(sample: int, step: int | None, column: int | str | None) -> tuple[Path, str]:
        where = f"line {part.lines[sample]}"
        if isinstance(column, int):
            where += f", step {(step or 0) + 1} of channel {column + 1}"
        return path, where

    codes = np.array([index[label] for label in part.labels])
    targets, classes = encode(texts, codes, predict, lambda sample: place(sample, None, None))
    return Samples(
        file=path,
        x=np.concatenate(part.series),
        lengths=np.array([len(one) for one in part.series], np.int64),
        channels=[str(channel) for channel in range(part.series[0].shape[1])],
        targets=targets,
        classes=classes,
        per_step=False,
        place=place,
    ).check()
