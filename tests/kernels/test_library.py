"""The cache of compiled kernels, and what happens where they cannot be compiled."""

import ctypes
import logging
import multiprocessing
import os
from dataclasses import replace

import pytest
import torch

from longwave import kernels
from longwave.kernels import library
from longwave.kernels.operation import OPERATIONS

INDRNN = OPERATIONS["indrnn"].source


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache, and a process that has loaded nothing."""
    monkeypatch.setenv("LONGWAVE_CACHE", str(tmp_path))
    library._built.cache_clear()
    library._tell.cache_clear()
    yield tmp_path
    library._built.cache_clear()
    library._tell.cache_clear()


def libraries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_built_once(fresh, monkeypatch):
    path = library.build(INDRNN, torch.float32)
    monkeypatch.setattr(library, "_compile", None)
    assert library.build(INDRNN, torch.float32) == path
    assert libraries(fresh) == [path.name]


def test_other_type_flags_or_declaration_is_another_library(fresh, monkeypatch):
    paths = {library.build(INDRNN, torch.float32), library.build(INDRNN, torch.float64)}
    monkeypatch.setattr(library, "_FLAGS", (*library._FLAGS, "-O2"))
    paths.add(library.build(INDRNN, torch.float32))
    monkeypatch.setattr(library, "_cpu", lambda: "another")
    paths.add(library.build(INDRNN, torch.float32))
    paths.add(library.build(replace(INDRNN, options=(*INDRNN.options, "-DMORE")), torch.float32))
    assert len(paths) == 5


def test_source_and_headers_are_in_the_key(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    source, keys = library.Source("cell", tmp_path / "cell.c", headers=own), set()
    for path in (source.path, tmp_path / "a.h", own / "b.h", source.path):
        path.write_text(f"int x{len(keys)};")
        keys.add(library._key(source, []))
    assert len(keys) == 4


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[:-1] + b"x"]
)
def test_damaged_library_is_rebuilt(fresh, damage):
    path = library.build(INDRNN, torch.float32)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    again = library.build(INDRNN, torch.float32)
    assert len(again.read_bytes()) == len(whole)
    assert libraries(fresh) == [again.name]
    assert kernels.backend_for("indrnn", torch.zeros(1)) == "cpu"


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler", "no C compiler: 'no-such-compiler' is not on the PATH"),
        ("no-such-compiler cc", "no C compiler: 'no-such-compiler' is not on the PATH"),
        ("false", "false failed"),
        ("env false", "env false failed"),
        ("'cc", 'no C compiler: CC="\'cc": No closing quotation'),
    ],
)
def test_without_a_compiler_the_reference_runs(fresh, monkeypatch, caplog, compiler, reason):
    monkeypatch.setenv("CC", compiler)
    pre, u = torch.randn(3, 2, 4), torch.rand(4)
    with caplog.at_level(logging.WARNING, "longwave"):
        for _ in range(3):
            assert kernels.backend_for("indrnn", pre) == "reference"
            y, _ = kernels.indrnn(pre, u)
    assert torch.equal(y, kernels.indrnn(pre, u, backend="reference")[0])
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert "\n" not in record.getMessage()
    with pytest.raises(RuntimeError, match="indrnn: backend='cpu' cannot run: "):
        kernels.indrnn(pre, u, backend="cpu")


@pytest.mark.parametrize("compiler", ["env cc", "  cc ", ""])
def test_compiler_of_several_words(fresh, monkeypatch, compiler):
    monkeypatch.setenv("CC", compiler)
    assert kernels.backend_for("indrnn", torch.zeros(1)) == "cpu"


def test_missing_compiler_is_told_once_for_all(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CC", "no-such-compiler")
    with caplog.at_level(logging.WARNING, "longwave"):
        for name in ("indrnn", "lstm", "cornn"):
            assert kernels.backend_for(name, torch.zeros(1)) == "reference"
    assert len(caplog.records) == 1


def test_cache_that_cannot_be_written(fresh, monkeypatch, caplog):
    (fresh / "file").write_text("")
    monkeypatch.setenv("LONGWAVE_CACHE", str(fresh / "file" / "cache"))
    assert kernels.backend_for("indrnn", torch.zeros(1)) == "reference"
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        (0o777, "may be written by others (mode 777)"),
        (0o770, "may be written by others (mode 770)"),
        (0o700, "belongs to another user (uid 54321)"),
    ],
)
def test_a_cache_of_others_is_not_loaded(fresh, monkeypatch, caplog, mode, reason):
    library.build(INDRNN, torch.float32)
    fresh.chmod(mode)
    if "uid" in reason:
        if os.getuid() != 0:
            pytest.skip("only root can give a folder to another user")
        os.chown(fresh, 54321, -1)
    with caplog.at_level(logging.WARNING, "longwave"):
        assert kernels.backend_for("indrnn", torch.zeros(1)) == "reference"
    (record,) = caplog.records
    message = record.getMessage()
    assert f"the cache {str(fresh)!r} {reason}: make it yours alone" in message
    assert "LONGWAVE_CACHE" in message
    assert "\n" not in message


@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_a_library_that_others_may_write_is_built_again(fresh, mode):
    library.build(INDRNN, torch.float32).chmod(mode)
    assert library.build(INDRNN, torch.float32).stat().st_mode & 0o777 == 0o700


def test_the_default_cache_is_safe(tmp_path, monkeypatch):
    monkeypatch.delenv("LONGWAVE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    before = os.umask(0)
    try:
        path = library.build(INDRNN, torch.float32)
    finally:
        os.umask(before)
    assert path.parent == tmp_path / "new" / "longwave" / "kernels"
    assert {file.stat().st_mode & 0o777 for file in (path, path.parent)} == {0o700}
    monkeypatch.setattr(library, "_compile", None)
    assert library.build(INDRNN, torch.float32) == path


def test_processes_at_once(fresh):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        paths = pool.starmap(library.build, [(INDRNN, torch.float32)] * 3, chunksize=1)
    assert {path.name for path in paths} <= set(libraries(fresh))
    for path in paths:
        ctypes.CDLL(str(path))
    # Compilers give the same bytes each time, or else there is one library of each.
    assert 1 <= len(libraries(fresh)) <= 3
