import errno
import os

import pytest
import torch

from longwave.training.errors import UserError
from longwave.training.files import load_checkpoint, previous, save_checkpoint, write_atomic


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pt"


def state(step):
    return {"step": step, "weights": torch.full((1000,), float(step))}


def test_the_newest_is_loaded_and_the_one_before_is_kept(path):
    assert load_checkpoint(path) == (None, [])
    for step in (1, 2, 3):
        save_checkpoint(path, state(step))
    loaded, damaged = load_checkpoint(path)
    assert loaded["step"] == 3
    assert torch.equal(loaded["weights"], state(3)["weights"])
    assert damaged == []
    assert torch.load(previous(path))["step"] == 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["checkpoint.previous.pt", "checkpoint.pt"]


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    # Within the thousand weights, which make up most of the file.
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(path, damage):
    save_checkpoint(path, state(1))
    save_checkpoint(path, state(2))
    damage(path)
    loaded, damaged = load_checkpoint(path)
    assert loaded["step"] == 1
    assert len(damaged) == 1
    assert "checkpoint.pt is damaged" in damaged[0]
    damage(previous(path))
    loaded, damaged = load_checkpoint(path)
    assert loaded is None
    assert len(damaged) == 2


def test_dying_between_the_renames_loses_nothing(path, monkeypatch):
    save_checkpoint(path, state(1))
    replace = os.replace

    def die(source, target):
        if str(target).endswith("checkpoint.pt") and str(source).endswith(".new"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, state(2))
    assert load_checkpoint(path)[0]["step"] == 1


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_said_and_the_old_file_stays(tmp_path, monkeypatch, call):
    path = tmp_path / "record.json"
    write_atomic(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(UserError, match=r"record\.json: No space left on device"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
