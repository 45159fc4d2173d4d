"""The cache of compiled kernels, and what happens where they cannot be compiled."""

import ctypes
import logging
import multiprocessing
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
    (tmp_path / "cell.c").write_text("int x;")
    (tmp_path / "a.h").write_text("")
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    keys = {library._key(tmp_path / "cell.c", [])}
    (tmp_path / "a.h").write_text("int y;")
    keys.add(library._key(tmp_path / "cell.c", []))
    (tmp_path / "cell.c").write_text("int z;")
    keys.add(library._key(tmp_path / "cell.c", []))
    assert len(keys) == 3


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


def test_processes_at_once(fresh):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        paths = pool.starmap(library.build, [(INDRNN, torch.float32)] * 3, chunksize=1)
    assert {path.name for path in paths} <= set(libraries(fresh))
    for path in paths:
        ctypes.CDLL(str(path))
    # Compilers give the same bytes each time, or else there is one library of each.
    assert 1 <= len(libraries(fresh)) <= 3
