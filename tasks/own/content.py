"""Checksums of a user's files, by which a run is named."""

import contextlib
import functools
import hashlib
import json
from pathlib import Path

from longwave.files import replacing
from longwave.tasks.base import data_root
from longwave.tasks.own import arrays, tables

# Files of more bytes are parsed once, and hashed once as long as they do not change.
LARGE = 16_000_000


def content_of(paths: dict[str, Path]) -> str:
    """sha256 of the one path; or of the checksums of several, by their keys. That of a folder is of names and sums."""
    sums = {}
    for key, path in paths.items():
        if path.is_dir():
            found = [(file.relative_to(path).as_posix(), digest(file)) for file in _files_in(path)]
            sums[key] = hashlib.sha256(json.dumps(found).encode()).hexdigest()
        else:
            sums[key] = digest(path)
    return sums["path"] if len(sums) == 1 else hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def _files_in(folder: Path) -> list[Path]:
    """What is read of a folder."""
    pair = pair_in(folder)
    return list(pair) if pair else arrays.files_in(folder) or tables.files_in(folder)


def pair_in(folder: Path) -> tuple[Path, Path] | None:
    """The one pair ``*_TRAIN``, ``*_TEST`` of a folder."""
    for ending in (".ts", ".arff", ".tsv", ".csv", ".txt"):
        found = [path for path in folder.glob(f"*_TRAIN{ending}") if test_of(path).is_file()]
        if len(found) == 1:
            return found[0], test_of(found[0])
    return None


def test_of(path: Path) -> Path:
    """The other file of a pair."""
    return path.with_name(path.name.replace("_TRAIN", "_TEST"))


def digest(path: Path) -> str:
    """sha256 of a file, computed once for as long as it does not change."""
    status = path.stat()
    return _hashed(path, (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))


@functools.lru_cache(maxsize=100_000)
def _hashed(path: Path, state: tuple[int, ...]) -> str:
    """sha256 of a file in a state; that of a large one is noted in the cache."""
    if state[0] < LARGE:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    place = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
    note = data_root() / "cache" / f"sha256-{place}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        kept = json.loads(note.read_text())
        if kept["state"] == list(state):
            return kept["sha256"]
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    # A data root that cannot be written to is no obstacle.
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        with replacing(note) as out:
            out.write(json.dumps({"state": list(state), "sha256": found}).encode())
    return found
