"""The time loop on thread-block clusters: on CPU tensors by the emulator, and compiled by NVRTC."""

import ctypes
import importlib
import re
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from longwave.kernels import cluster, library
from longwave.kernels.operation import OPERATIONS
from tests.kernels import emulator
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
        monkeypatch.setattr(cluster, "launch", emulator.launch)
        monkeypatch.setattr(dense, "L1", -1)

    return divide


# Two products, a gradient of pre that is not that of the products, two phases.
QUICK = ["cornn", "gru", "lem"]
CASES = [
    pytest.param(name, sizes, marks=[pytest.mark.slow] * (name not in QUICK or i % 2))
    for name in DENSE
    for i, sizes in enumerate(SIZES)
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


def in_order(monkeypatch, order):
    """Has the threads of a cluster run in this order."""
    monkeypatch.setattr(cluster, "launch", partial(emulator.launch, order=order))


@pytest.mark.parametrize("name", ["cornn", "gru", "lem"])
def test_threads_may_run_in_any_order(name, divided, monkeypatch):
    """A missing barrier shows: threads run one after the other, each until it waits."""
    divided(2, 64, 32, 3)
    given = single(arguments(name, 4, 3, 20))
    grads = cotangents(name, given)
    threads, found = list(range(2 * 64)), []
    shuffled = torch.randperm(len(threads), generator=torch.Generator().manual_seed(0)).tolist()
    for order in (threads, threads[::-1], shuffled):
        in_order(monkeypatch, order)
        found.append(run(name, given, grads, "triton"))
    assert all(torch.equal(other[key], value) for other in found[1:] for key, value in found[0].items())


HEADER = (cluster.FOLDER / "dense.h").read_text()
BARRIERS = [match.span() for match in re.finditer(r"sync_(block|cluster)\(\);", HEADER)]


@pytest.mark.parametrize("place", [BARRIERS[0], *(pytest.param(p, marks=pytest.mark.slow) for p in BARRIERS[1:])])
def test_a_missing_barrier_shows(place, divided, monkeypatch, tmp_path):
    """In one order or the other a result is wrong, or a block waits for ever."""
    first, last = place
    (tmp_path / "dense.h").write_text(HEADER[:first] + ";" + HEADER[last:])
    monkeypatch.setattr(cluster, "FOLDER", tmp_path)
    divided(2, 64, 32, 3)
    given = arguments("cornn", 4, 3, 17)
    grads = cotangents("cornn", given)
    exact, plain = (run("cornn", values, grads, "reference") for values in (given, single(given)))
    wrong = 0
    for order in (range(128), range(127, -1, -1)):
        in_order(monkeypatch, order)
        try:
            assert_as_good(run("cornn", single(given), grads, "triton"), exact, plain)
        except (AssertionError, RuntimeError):
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
    changed = HEADER.replace("    sync_cluster();\n    for", "    if (thread_index()) sync_cluster();\n    for", 1)
    assert changed != HEADER
    (tmp_path / "dense.h").write_text(changed)
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
        # In two turns of 13 clusters of 5 rows, where 16 of 8 rows would take two as well.
        ("lstm", 256, 128, False, 8, 5, True),
        ("lem", 256, 128, False, 8, 5, True),
        ("modrelu_rnn", 1024, 128, True, 16, 7, False),
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


@pytest.mark.parametrize("shared", [99 * 1024, cluster.SHARED])
@pytest.mark.parametrize("name", DENSE)
def test_every_plan_fits(name, shared):
    """Into the shared memory of compute capability 12, and of 9."""
    plans = [
        cluster.plan(OPERATIONS[name], hidden, batch, 132, backward, shared=shared)
        for hidden in (1, 96, 250, 256, 330, 512, 1000)
        for batch in (1, 37, 128, 1000)
        for backward in (False, True)
    ]
    found = [p for p in plans if p]
    assert len(found) > len(plans) / 2
    for p in found:
        assert p.shared <= shared
        assert 1 <= p.rows <= cluster.MOST_ROWS
        assert (p.cluster - 1) * p.width < p.hidden + 4 * p.cluster
        assert all(phase.slices * phase.groups <= p.threads and phase.length % 4 == 0 for phase in p.phases)


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
    with pytest.raises(library.BuildError, match=r"^dense.h\(.*error: [^\n]*$"):
        cluster.translated(library.Source(given.name, given.path, given.options[1:], given.headers), 90)


@pytest.fixture
def driver(monkeypatch):
    """CUDA's driver of a card that there is not: what it is asked, by function."""
    driver = pytest.importorskip("cuda.bindings.driver")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=7))
    answers = {
        "cuModuleLoadData": "module",
        "cuModuleGetFunction": 12,
        "cuFuncSetAttribute": None,
        "cuOccupancyMaxActiveClusters": 3,
        "cuLaunchKernel": None,
    }
    asked = {name: [] for name in answers}

    def function(name, *arguments):
        if name == "cuLaunchKernel":
            # What they point to is there during the call.
            *arguments, pointers, _ = arguments
            loop = ctypes.cast(pointers, ctypes.POINTER(ctypes.POINTER(cluster.Loop)))[0][0]
            arguments += [loop.steps, loop.batch, loop.y, loop.d_y]
        asked[name].append(tuple(arguments))
        if isinstance(answers[name], driver.CUresult):
            return (answers[name],)
        return (driver.CUresult.CUDA_SUCCESS, answers[name])

    for name in answers:
        replaced = partial(function, name)
        replaced.__name__ = name
        monkeypatch.setattr(driver, name, replaced)
    return SimpleNamespace(asked=asked, answers=answers, result=driver.CUresult)


def test_what_is_launched(driver):
    p = cluster.plan(OPERATIONS["rnn"], 1000, 50, 132)
    given, loop = cluster.source(OPERATIONS["rnn"], p, torch.float32), cluster.Loop(5, 50, y=11)
    cluster.launch(given, p, loop, 7, 0)
    cluster.launch(given, p, loop, 7, 0)
    (code,), (function,) = driver.asked["cuModuleLoadData"], driver.asked["cuModuleGetFunction"]
    assert code[0].startswith(b"\x7fELF")
    assert function == ("module", b"forward")
    assert [value for _, _, value in driver.asked["cuFuncSetAttribute"]] == [p.shared, 1]
    ((_, config),) = driver.asked["cuOccupancyMaxActiveClusters"]
    assert (config.attrs[0].value.clusterDim.x, config.numAttrs, config.blockDimX) == (16, 1, 256)
    launched = (12, 7 * 16, 1, 1, 256, 1, 1, p.shared, 7, 5, 50, 11, None)
    assert driver.asked["cuLaunchKernel"] == [launched, launched]


def test_what_is_chosen(driver, monkeypatch):
    """A card is asked once for each size; one without clusters, or a tensor on the CPU, has none."""
    properties = SimpleNamespace(multi_processor_count=132, shared_memory_per_block_optin=cluster.SHARED)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    caches = (cluster._chosen, cluster.loaded)
    for cache in caches:
        cache.cache_clear()
    like = SimpleNamespace(is_cuda=True, shape=(5, 128, 256), get_device=lambda: 0)
    expected = cluster.plan(OPERATIONS["gru"], 256, 128, 132)
    assert [cluster.choose(OPERATIONS["gru"], torch.float32, like) for _ in range(2)] == [expected, expected]
    assert len(driver.asked["cuOccupancyMaxActiveClusters"]) == 1
    assert cluster.choose(OPERATIONS["gru"], torch.float32, torch.empty(5, 128, 256)) is None
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert cluster.choose(OPERATIONS["gru"], torch.float32, like) is None
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("cuModuleLoadData", "cuModuleLoadData: CUDA_ERROR_INVALID_IMAGE"),
        ("cuOccupancyMaxActiveClusters", "the card has no room for a cluster of 4 blocks"),
        ("nvrtcCreateProgram", "no such library"),
    ],
)
def test_a_card_that_refuses_runs_without_clusters(function, reason, driver, monkeypatch, caplog):
    """One line says why, once, for both passes."""
    cluster._tell.cache_clear()
    cluster.loaded.cache_clear()

    def missing(*_):
        raise RuntimeError("no such library\nsecond line")

    driver.answers |= {"cuModuleLoadData": driver.result.CUDA_ERROR_INVALID_IMAGE} if "Load" in function else {}
    driver.answers |= {"cuOccupancyMaxActiveClusters": 0} if "Occupancy" in function else {}
    if function == "nvrtcCreateProgram":
        missing.__name__ = function
        monkeypatch.setattr("cuda.bindings.nvrtc.nvrtcCreateProgram", missing)
    for backward in (False, True):
        p = cluster.plan(OPERATIONS["rnn"], 300, 128, 132, backward)
        assert cluster.loaded(cluster.source(OPERATIONS["rnn"], p, torch.float32), p, 0) == reason
    assert caplog.messages == [f"No clusters for rnn_cluster, whose weights are read from L2: {reason}"]
    cluster.loaded.cache_clear()
