"""Whatever happens to a file, it is read or refused by one line."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from longwave.tasks.checks import DataError
from longwave.tasks.files import Config
from tests.archives import write_arff, write_ts

GESTURES = Path(__file__).parents[2] / "data" / "gestures.csv"
JUNK = (
    b"\n",
    b",",
    b'"',
    b"'",
    b"?",
    b"NaN",
    b"inf",
    b"1e400",
    b"-",
    b"\0",
    b"\xff",
    b"\r",
    b"{",
    b":",
    b"@data\n",
    b"#",
)
X = np.random.default_rng(0).normal(size=(24, 5, 2)).astype(np.float32)
Y = np.array(["a", "b"])[np.arange(24) % 2]


def csv(folder: Path) -> Path:
    (folder / "my.csv").write_bytes(GESTURES.read_bytes())
    return folder / "my.csv"


def npz(folder: Path) -> Path:
    np.savez(folder / "my.npz", x=X, y=Y, lengths=np.full(24, 4), t=np.arange(5.0))
    return folder / "my.npz"


def table(folder: Path) -> Path:
    columns = {"sample": np.arange(120) // 5, "target": Y[np.arange(120) // 5], "v": X[:, :, 0].ravel()}
    parquet.write_table(pa.table(columns), folder / "my.parquet")
    return folder / "my.parquet"


def ts(folder: Path) -> Path:
    return write_ts(folder / "my.ts", list(X), list(Y), ["a", "b"])


def arff(folder: Path) -> Path:
    return write_arff(folder / "my.arff", list(X), list(Y), ["a", "b"])


@pytest.mark.parametrize("write", [csv, npz, table, ts, arff])
def test_damage(write, tmp_path):
    path = write(tmp_path)
    whole, rng, read = path.read_bytes(), random.Random(0), 0
    refused: list[str] = []
    Config(path=str(path)).build(0, tmp_path)
    for _ in range(40):
        content = bytearray(whole)
        place = rng.randrange(len(content))
        how = rng.randrange(4)
        if how == 0:
            content[place:place] = rng.choice(JUNK)
        elif how == 1:
            del content[place : place + rng.choice([1, 5, 50])]
        elif how == 2:
            content[place] = rng.randrange(256)
        else:
            del content[place:]
        path.write_bytes(content)
        try:
            Config(path=str(path), missing="mask").build(0, tmp_path).batch(0, 4)
            read += 1
        except DataError as error:
            refused.append(str(error))
    assert len(refused) + read == 40
    assert refused
    assert all(path.name in message and "\n" not in message for message in refused)
