"""Files of a run; a write that fails is shown to the user."""

import io
import os
from pathlib import Path

from longwave.files import load_intact, replacing, sync_folder
from longwave.training.errors import UserError


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces ``path`` by ``content``, whole or not at all.

    UserError where the disk is full or refuses; the old file is still there.
    """
    try:
        with replacing(path) as out:
            out.write(content)
    except OSError as error:
        where = error.filename2 or error.filename or path
        raise UserError(f"cannot write {where}: {error.strerror or error}; the old file is kept") from error


def save_checkpoint(path: Path, state: dict) -> None:
    """Writes ``state`` to ``path`` and keeps the checkpoint before as ``<stem>.previous<suffix>``.

    UserError where the disk is full or refuses; the checkpoints that are there stay.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    fresh = path.with_name(f"{path.name}.new")
    write_atomic(fresh, buffer.getvalue())
    try:
        # Dying between the two renames leaves the previous one, which is good.
        if path.exists():
            os.replace(path, previous(path))
        os.replace(fresh, path)
        sync_folder(path.parent)
    except OSError as error:
        where = f"{path} and keep the one before as {previous(path)}"
        raise UserError(f"cannot write {where}: {error.strerror or error}") from error


def previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def load_checkpoint(path: Path) -> tuple[dict | None, list[str]]:
    """The newest good checkpoint on the CPU, or None, and a line on each damaged one that was skipped."""
    damaged = []
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            return load_intact(candidate), damaged
        except Exception as error:
            damaged.append(f"{candidate} is damaged ({error})")
    return None, damaged
