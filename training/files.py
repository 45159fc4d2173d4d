"""Files that survive: written whole or not at all, whenever the process dies."""

import io
import os
import zipfile
from pathlib import Path

import torch

from longwave.training.errors import UserError


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces ``path`` by ``content``: a temporary file, fsync, rename.

    Raises:
        UserError: where the disk is full or refuses; the old file is still there.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}; what was there before is kept") from error


def _sync_folder(folder: Path) -> None:
    # Makes the rename itself durable; not every system lets a folder be opened.
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_checkpoint(path: Path, state: dict) -> None:
    """Writes ``state`` to ``path`` and keeps what was there as ``<stem>.previous<suffix>``.

    Raises:
        UserError: where the disk is full or refuses; the checkpoints that are there stay.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    fresh = path.with_name(f"{path.name}.new")
    write_atomic(fresh, buffer.getvalue())
    try:
        # Dying between the two renames leaves the previous one, which is good.
        if path.exists():
            os.replace(path, previous(path))
        os.replace(fresh, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; {previous(path)} is kept") from error


def previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def load_checkpoint(path: Path) -> tuple[dict | None, list[str]]:
    """The newest good checkpoint on the CPU, or None, and a line on each damaged one that was passed over."""
    damaged = []
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            # torch.load reads some damaged files without complaint; the checksums inside tell.
            with zipfile.ZipFile(candidate) as archive:
                bad = archive.testzip()
            if bad is not None:
                raise zipfile.BadZipFile(f"wrong checksum of {bad}")
            return torch.load(candidate, map_location="cpu", weights_only=True), damaged
        except Exception as error:
            damaged.append(f"{candidate} is damaged ({error})")
    return None, damaged
