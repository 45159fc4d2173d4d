"""The time loop on thread-block clusters: on CPU tensors by the emulator, and compiled by NVRTC."""

import importlib
import re

import pytest
import torch

from longwave.kernels import cluster, library
from longwave.kernels.operation import OPERATIONS
from tests.kernels.checks import arguments, assert_as_good, cotangents, run, single

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("poison", "interpreter")

DENSE = sorted(name for name, operation in OPERATIONS.items() if operation.dense)
# (T, B, H), then blocks of a cluster, threads, registers of a thread for weights, most rows.
SIZES = [
    ((5, 2, 33), 2, 64, 32, 1),  # units left over, weights in registers and in shared memory
    ((1, 1, 1), 2, 64, 64, 2),  # a block without units, a row that does not exist
    ((7, 5, 20), 4, 64, 16, 3),  # pairs of two rounds, a last cluster of fewer rows
    ((4, 3, 50), 2, 128, 0, 8),  # no weight in registers
]


@pytest.fixture
def divided(monkeypatch):
    """Has the Triton backend run on clusters of given sizes."""
    dense = importlib.import_module("longwave.kernels.dense")

    def divide(blocks=0, threads=cluster.THREADS, registers=None, rows=cluster.MOST_ROWS, multiprocessors=4):
        given = {"clusters": (blocks,)} if blocks else {}
        given |= {"registers": (registers, registers)} if registers is not None else {}
        given |= {"threads": threads, "most_rows": rows}

        def choose(operation, dtype, like, backward=False):
            _, batch, hidden = like.shape
            return cluster.plan(operation, hidden, batch, multiprocessors, backward, **given)

        monkeypatch.setattr(cluster, "choose", choose)
        monkeypatch.setattr(dense, "L1", -1)

    return divide


# Each cell at one size at least; all sizes with two products, a gradient of pre of its own, two phases.
QUICK = ["cornn", "gru", "lem"]
CASES = [
    pytest.param(name, size, marks=[pytest.mark.slow] * (name not in QUICK and size is not SIZES[2]))
    for name in DENSE
    for size in SIZES
]


@pytest.mark.parametrize(("name", "sizes"), CASES, ids=str)
def test_values_and_gradients(name, sizes, divided):
    shape, *division = sizes
    divided(*division)
    given = arguments(name, *shape)
    grads = cotangents(name, given)
    exact, plain = (run(name, values, grads, "reference") for values in (given, single(given)))
    assert_as_good(run(name, single(given), grads, "triton"), exact, plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "multiprocessors"),
    [(name, (3, 9, 256), 132) for name in DENSE] + [("rnn", (2, 9, 1000), 32), ("cornn", (40, 4, 256), 132)],
)
def test_as_divided_on_a_card(name, shape, multiprocessors, divided):
    divided(multiprocessors=multiprocessors)
    given = arguments(name, *shape)
    grads = cotangents(name, given)
    exact, plain = (run(name, values, grads, "reference") for values in (given, single(given)))
    assert_as_good(run(name, single(given), grads, "triton"), exact, plain)


@pytest.mark.parametrize("name", ["cornn", "gru", "lem"])
def test_threads_may_run_in_any_order(name, divided, monkeypatch):
    """A missing barrier shows: threads run one after the other, each until it waits."""
    divided(2, 64, 32, 3)
    given = single(arguments(name, 4, 3, 20))
    grads = cotangents(name, given)
    emulate, found = cluster.emulate, []
    threads = list(range(2 * 64))
    shuffled = torch.randperm(len(threads), generator=torch.Generator().manual_seed(0)).tolist()
    for order in (threads, threads[::-1], shuffled):
        monkeypatch.setattr(cluster, "emulate", lambda *rest, order=order: emulate(*rest[:4], order))
        found.append(run(name, given, grads, "triton"))
    assert all(torch.equal(other[key], value) for other in found[1:] for key, value in found[0].items())


@pytest.mark.parametrize("barrier", ["sync_block", "sync_cluster"])
@pytest.mark.parametrize("place", range(2))
def test_a_missing_barrier_shows(barrier, place, divided, monkeypatch, tmp_path):
    """Without a barrier of the loop, orders differ, or a result is wrong."""
    text = (cluster.FOLDER / "dense.h").read_text()
    calls = [match.start() for match in re.finditer(rf"{barrier}\(\);", text)]
    # Of forward's loop, then of backward's.
    chosen = {"sync_block": calls[-2:], "sync_cluster": [calls[-3], calls[-1]]}[barrier][place]
    (tmp_path / "dense.h").write_text(text[:chosen] + ";" + text[chosen + len(barrier) + 3 :])
    (tmp_path / "emulator.h").write_text((cluster.FOLDER / "emulator.h").read_text())
    monkeypatch.setattr(cluster, "FOLDER", tmp_path)
    divided(2, 64, 32, 3)
    given = arguments("cornn", 4, 3, 20)
    grads = cotangents("cornn", given)
    exact, plain = (run("cornn", values, grads, "reference") for values in (given, single(given)))
    emulate, wrong = cluster.emulate, 0
    for order in (range(128), range(127, -1, -1)):
        monkeypatch.setattr(cluster, "emulate", lambda *rest, order=order: emulate(*rest[:4], order))
        try:
            assert_as_good(run("cornn", single(given), grads, "triton"), exact, plain)
        except AssertionError:
            wrong += 1
    assert wrong


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_read_as_it_is(dtype, divided):
    divided(2, 64, 32, 3)
    given = single(arguments("gru", 6, 2, 17))
    given["pre"] = given["pre"].to(dtype)
    grads = [value.to(dtype) if i == 0 else value for i, value in enumerate(cotangents("gru", given))]
    found = run("gru", given, grads, "triton")
    same = run("gru", given | {"pre": given["pre"].float()}, grads, "triton")
    assert torch.equal(found["sequence"], same["sequence"].to(dtype))
    assert torch.equal(found["gradient of pre"], same["gradient of pre"].to(dtype))
    assert torch.equal(found["gradient of w_h"], same["gradient of w_h"])


def test_gradient_of_the_final_state_alone(divided):
    divided(2, 64, 32, 3)
    given = single(arguments("lem", 5, 2, 9))
    leaves = {key: value.requires_grad_() for key, value in given.items()}
    values = list(leaves.values())
    rest = {key: value for key, value in leaves.items() if key not in ("y", "z")}
    kernels = importlib.import_module("longwave.kernels")
    found, expected = (
        torch.autograd.grad(kernels.lem(**rest, state=(leaves["y"], leaves["z"]), backend=backend)[1][0].sum(), values)
        for backend in ("triton", "reference")
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_barrier_that_not_all_reach_is_an_error(divided, monkeypatch, tmp_path):
    text = (cluster.FOLDER / "dense.h").read_text()
    changed = text.replace("    sync_cluster();\n    for", "    if (thread_index()) sync_cluster();\n    for", 1)
    assert changed != text
    (tmp_path / "dense.h").write_text(changed)
    (tmp_path / "emulator.h").write_text((cluster.FOLDER / "emulator.h").read_text())
    monkeypatch.setattr(cluster, "FOLDER", tmp_path)
    divided(2, 64, 32, 3)
    given = single(arguments("rnn", 4, 3, 20))
    with pytest.raises(RuntimeError, match="rnn_cluster: some threads wait for ever"):
        run("rnn", given, cotangents("rnn", given), "triton")


@pytest.mark.parametrize(
    ("name", "hidden", "batch", "backward", "blocks", "rows", "whole"),
    [
        ("cornn", 256, 120, False, 4, 4, True),
        ("cornn", 256, 120, True, 4, 4, True),
        ("lstm", 256, 128, False, 8, 8, True),
        ("lem", 256, 128, False, 8, 8, True),
        ("modrelu_rnn", 1024, 128, True, 16, 8, False),
        ("cornn", 256, 4, False, 4, 1, True),
    ],
)
def test_plan(name, hidden, batch, backward, blocks, rows, whole):
    """On an H100, of 132 multiprocessors."""
    p = cluster.plan(OPERATIONS[name], hidden, batch, 132, backward)
    assert (p.cluster, p.rows) == (blocks, rows)
    assert all(phase.resident == phase.length for phase in p.phases) == whole
    assert p.shared <= cluster.SHARED
    assert p.cluster * p.width >= hidden


def test_what_no_cluster_holds():
    assert cluster.plan(OPERATIONS["lstm"], 1024, 128, 132) is None
    assert cluster.plan(OPERATIONS["cornn"], 256, 120, 1) is None


@pytest.mark.parametrize("architecture", [90, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [n if n == "lem" else pytest.param(n, marks=pytest.mark.slow) for n in DENSE])
def test_compiles_without_spills(name, architecture):
    pytest.importorskip("cuda.bindings")
    code = importlib.import_module("longwave.kernels.machine_code")
    for backward in (False, True):
        p = cluster.plan(OPERATIONS[name], 256, 128, 132, backward)
        binary = cluster.translated(cluster.source(OPERATIONS[name], p, torch.float32), architecture)
        instructions, registers = code.disassembly(binary)
        assert registers <= 255
        assert not [text for _, text in instructions if re.search(r"\b(STL|LDL)\b", text)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_compiles_for_half_precision(dtype):
    pytest.importorskip("cuda.bindings")
    p = cluster.plan(OPERATIONS["gru"], 256, 128, 132)
    assert cluster.translated(cluster.source(OPERATIONS["gru"], p, dtype), 90)


def test_what_nvrtc_refuses_is_one_line():
    pytest.importorskip("cuda.bindings")
    p = cluster.plan(OPERATIONS["rnn"], 256, 128, 132)
    given = cluster.source(OPERATIONS["rnn"], p, torch.float32)
    with pytest.raises(library.BuildError, match=r"^rnn_cluster: NVRTC: dense.h\(.*error: [^\n]*$"):
        cluster.translated(library.Source(given.name, given.path, given.options[1:], given.headers), 90)


def test_a_card_that_refuses_runs_without_clusters(monkeypatch, caplog):
    """One line says why, once."""
    driver = pytest.importorskip("cuda.bindings.driver")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def cuModuleLoadData(code):
        return (driver.CUresult.CUDA_ERROR_INVALID_IMAGE,)

    monkeypatch.setattr(driver, "cuModuleLoadData", cuModuleLoadData)
    p = cluster.plan(OPERATIONS["rnn"], 300, 128, 132)
    given = cluster.source(OPERATIONS["rnn"], p, torch.float32)
    answers = {cluster.loaded(given, p, 0) for _ in range(2)}
    assert [type(answer) for answer in answers] == [library.BuildError]
    assert caplog.messages == [
        "No clusters for rnn_cluster, whose weights are read from L2: cuModuleLoadData: CUDA_ERROR_INVALID_IMAGE"
    ]
