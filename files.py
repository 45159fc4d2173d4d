"""Files that are written whole or not at all, whenever the process dies."""

import contextlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that replaces ``path`` once it is complete: ``<path>.tmp``, fsync, rename; an error leaves ``path``.

    Where two processes may write one path at a time, a lock has to keep them apart.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        # Whatever stands in the way of the file is no reason to lose what went wrong.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def open_to_others(path: Path) -> str | None:
    """How a user who is neither this one nor root may change a file or folder, or None."""
    found = path.stat()
    if hasattr(os, "getuid") and found.st_uid not in (0, os.getuid()):
        return f"belongs to another user (uid {found.st_uid})"
    return f"may be written by others (mode {found.st_mode & 0o777:o})" if found.st_mode & 0o022 else None


def sync_folder(folder: Path) -> None:
    """Makes a rename in it durable; not every system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_intact(path: Path) -> dict:
    """What ``torch.save`` wrote, on the CPU; raises an exception of any kind for a damaged file."""
    import torch

    # torch.load reads some damaged files without complaint; the checksums inside tell.
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise zipfile.BadZipFile(f"wrong checksum of {bad}")
    return torch.load(path, map_location="cpu", weights_only=True)
