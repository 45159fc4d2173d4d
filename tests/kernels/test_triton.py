"""The Triton kernels, in the interpreter on CPU tensors against the definitions, and compiled ahead of time."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from longwave import kernels
from longwave.kernels.library import DeclarationError
from longwave.kernels.operation import OPERATIONS
from tests.kernels.checks import EPSILON, arguments, assert_as_good, backend, call, cotangents, error, run, single

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("poison", "interpreter")

ROOT = Path(__file__).parents[2]

# Each T, B and H that the C kernels are tested at, but not each with each, for which the interpreter is too slow.
EACH = [(1, 1, 1), (2, 3, 5), (257, 1, 5), (1000, 1, 2), (3, 50, 5)]
DIAGONAL = [*EACH, (17, 3, 127), (255, 1, 32), (256, 3, 5), (9, 2, 128), (9, 2, 256)]
SIZES = {
    "unicornn": DIAGONAL,
    "indrnn": DIAGONAL,
    "linoss": DIAGONAL,
}
DENSE = sorted(name for name, operation in OPERATIONS.items() if operation.dense)
SIZES |= {name: [(1, 1, 1), (2, 3, 5), (5, 2, 33)] for name in DENSE}
SLOW = [(name, *size) for name in DENSE for size in [(257, 1, 5), (3, 50, 5), (3, 2, 127), (2, 3, 200), (2, 1, 300)]]
SLOW += [("cornn", 1000, 1, 2), ("cornn", 2, 50, 128), ("lem", 2, 3, 256), ("lstm", 2, 1, 1000)]
# Two products, a gradient of pre that is not that of the products, two phases: all that the dense cells share.
QUICK = ["unicornn", "indrnn", "cornn", "gru", "lem"]
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SIZES]


def slow(name: str, size: tuple[int, int, int]) -> bool:
    """Long ones, LinOSS, which has tests of its own, and but for one the sizes of cells that share all with others."""
    if OPERATIONS[name].dense:
        return name not in QUICK and size != (2, 3, 5)
    return size[0] > (100 if name == "linoss" else 500)


CASES = [
    pytest.param(name, *size, marks=[pytest.mark.slow] * slow(name, size))
    for name, sizes in SIZES.items()
    for size in sizes
]
CASES += [pytest.param(*slow, marks=pytest.mark.slow) for slow in SLOW]


@pytest.mark.parametrize(("name", "steps", "batch", "hidden"), CASES)
def test_values_and_gradients(name, steps, batch, hidden):
    given = arguments(name, steps, batch, hidden)
    grads = cotangents(name, given)
    exact = run(name, given, grads, "reference")
    plain = run(name, single(given), grads, "reference")
    found = run(name, single(given), grads, "triton")
    assert all(value.dtype == torch.float32 for value in found.values())
    assert_as_good(found, exact, plain)


def test_implicit_damping():
    given = arguments("cornn", 5, 3, 37)
    grads = cotangents("cornn", given)
    exact, explicit = (run("cornn", given, grads, "reference", damping=d) for d in ("implicit", "explicit"))
    assert error(explicit["sequence"], exact["sequence"]) > 1e-3
    plain = run("cornn", single(given), grads, "reference", damping="implicit")
    assert_as_good(run("cornn", single(given), grads, "triton", damping="implicit"), exact, plain)


@pytest.mark.parametrize("name", QUICK[2:])
@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"MULTIPROCESSORS": 1}, lambda p: p.rows == 4),
        ({"MOST_TILES": 19, "MULTIPROCESSORS": 1}, lambda p: p.resident > 0 and p.groups > 0),
        ({"MOST_TILES": 8, "MULTIPROCESSORS": 1}, lambda p: p.resident == 0 and p.groups > 0),
        ({"MOST_UNITS": 32, "MULTIPROCESSORS": 1}, lambda p: p.block < p.hidden and p.groups == 0),
    ],
    ids=["rows", "ring", "all in the ring", "units"],
)
def test_every_division_of_the_work(name, numbers, expected, monkeypatch):
    dense = importlib.import_module("longwave.kernels.dense")
    for key, value in numbers.items():
        monkeypatch.setattr(dense, key, value)
    size = (3, 9, 37)
    plans = [dense.plan(OPERATIONS[name], size[2], size[1], dense.MULTIPROCESSORS, back)[0] for back in (False, True)]
    assert any(map(expected, plans))
    given = arguments(name, *size)
    grads = cotangents(name, given)
    exact, plain = (run(name, values, grads, "reference") for values in (given, single(given)))
    assert_as_good(run(name, single(given), grads, "triton"), exact, plain)


@pytest.mark.parametrize("name", ["rnn", "lem"])
def test_tensor_cores_where_tf32_is_allowed(name, monkeypatch):
    """The interpreter multiplies in float32 even so."""
    dense = importlib.import_module("longwave.kernels.dense")
    monkeypatch.setattr(dense, "MULTIPROCESSORS", 1)
    sizes = {"rnn": (2, 17, 100), "lem": (2, 17, 61)}[name]
    operation, given = OPERATIONS[name], arguments(name, *sizes)
    grads = cotangents(name, given)
    exact, plain = (run(name, values, grads, "reference") for values in (given, single(given)))
    for precision, rows in (("ieee", 4), ("tf32", 16)):
        monkeypatch.setattr(dense, "tf32_allowed", lambda precision=precision: precision == "tf32")
        assert dense.plan(operation, sizes[2], sizes[1], 1, tf32=dense.tf32_allowed())[0].rows == rows
        assert_as_good(run(name, single(given), grads, "triton"), exact, plain)


def test_tf32_is_that_of_pytorch():
    dense = importlib.import_module("longwave.kernels.dense")
    before = torch.get_float32_matmul_precision()
    for precision in ("high", "highest"):
        torch.set_float32_matmul_precision(precision)
        assert dense.tf32_allowed() == (precision == "high")
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("anchor", [0, 1, 7, 256])
def test_anchors(anchor):
    given = arguments("unicornn", 60, 2, 5)
    grads = cotangents("unicornn", given)
    exact = run("unicornn", given, grads, "reference")
    plain = run("unicornn", single(given), grads, "reference")
    assert_as_good(run("unicornn", single(given), grads, "triton", anchor=anchor), exact, plain)


def test_anchors_hold_back_the_drift():
    # alpha = 0 as for EigenWorms and IMDB: no restoring force, states that grow, and the recurrent weights of a
    # trained layer rather than a new one.
    given = arguments("unicornn", 600, 1, 32)
    given |= {"w": 4 * given["w"], "dt": torch.full((32,), 0.205).double(), "alpha": torch.zeros(32).double()}
    grads = cotangents("unicornn", given)
    exact = run("unicornn", given, grads, "reference")
    plain = run("unicornn", single(given), grads, "reference")
    assert exact["sequence"].abs().max() > 10
    anchored, inverted = (run("unicornn", single(given), grads, "triton", anchor=anchor) for anchor in (256, 0))
    assert_as_good(anchored, exact, plain)
    far, near = (error(found["gradient of c"], exact["gradient of c"]) for found in (inverted, anchored))
    assert near < far < 1e-2


HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)


@HALF
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name, dtype):
    given = arguments(name, 40, 3, 33) if name not in DENSE else arguments(name, 6, 2, 17)
    given["pre"] = given["pre"].to(dtype).double()
    grads = cotangents(name, given)
    grads[0] = grads[0].to(dtype).double()
    exact = run(name, given, grads, "reference")
    plain = run(name, single(given), grads, "reference")
    found = run(name, single(given) | {"pre": given["pre"].to(dtype)}, grads, "triton")
    rounded = {"sequence", "gradient of pre"} | ({"gradient of u"} if name == "indrnn" else set())
    for key in rounded:
        assert error(found.pop(key), exact.pop(key)) < torch.finfo(dtype).eps
    # All else comes from the float32 state, and is as good as if pre had been float32.
    assert_as_good(found, exact, {key: plain[key] for key in found})


@HALF
@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("name", NAMES)
def test_types_in_half_precision(name, backend, dtype):
    """The sequence is of the type of pre, final states are float32, a gradient is of the type of its argument."""
    given = single(arguments(name, 5, 3, 4))
    grads = cotangents(name, given)
    halved = {key: value.to(dtype) for key, value in given.items()}
    states = OPERATIONS[name].states
    for inputs in (
        given | {"pre": halved["pre"]},
        halved,
        halved | {key: given[key] for key in states},
        given | {key: halved[key] for key in ("pre", *states)},
    ):
        found = run(name, inputs, grads, backend)
        expected = run(name, {key: value.float() for key, value in inputs.items()}, grads, "reference")
        for key, value in found.items():
            argument = key.removeprefix("gradient of ")
            own = dtype if key == "sequence" else inputs[argument].dtype if argument in inputs else torch.float32
            assert value.dtype == own, key
            # Rounded at most once on its way out, for IndRNN's u twice.
            assert error(value, expected[key].double()) < 4 * torch.finfo(dtype).eps, key


@pytest.mark.parametrize("name", NAMES)
def test_twice_is_the_same_to_the_bit(name):
    given = arguments(name, 20, 18, 5) if name not in DENSE else arguments(name, 4, 3, 40)
    grads = cotangents(name, given)
    first, second = (run(name, single(given), grads, "triton") for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_what_has_the_other_derivatives_is_named(name):
    given = {key: value.requires_grad_() for key, value in single(arguments(name, 3, 2, 4)).items()}
    (gradient,) = torch.autograd.grad(call(name, given, "triton")[0].sum(), given["pre"], create_graph=True)
    with pytest.raises(RuntimeError, match=f"^{name}: no second derivatives; use backend='reference'$"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match=f"^{name}: no derivatives by torch.func .*; use backend='reference'$"):
        torch.func.jacrev(lambda pre: call(name, given | {"pre": pre}, "triton")[0])(given["pre"])


@pytest.mark.parametrize("name", NAMES)
def test_strides_do_not_matter(name):
    given = arguments(name, 9, 3, 5)
    dense = run(name, single(given), cotangents(name, given), "triton")
    turned = {key: value.float().transpose(-1, 0).contiguous().transpose(-1, 0) for key, value in given.items()}
    assert not turned["pre"].is_contiguous()
    strided = run(name, turned, [g.mT.contiguous().mT for g in cotangents(name, given)], "triton")
    assert all(torch.equal(dense[key], strided[key]) for key in dense)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_the_sequence_or_of_the_final_state_alone(name):
    given = arguments(name, 9, 3, 5)
    for only in range(1 + len(OPERATIONS[name].states)):
        # An expanded cotangent, as that of a sum is.
        exact, found = (
            torch.autograd.grad(call(name, leaves, backend)[only].sum(), list(leaves.values()), materialize_grads=True)
            for leaves, backend in (
                ({k: v.clone().requires_grad_() for k, v in given.items()}, "reference"),
                ({k: v.float().requires_grad_() for k, v in given.items()}, "triton"),
            )
        )
        for one, other in zip(found, exact, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
def test_tanh():
    """y_1 = z_1 = -tanh(pre) where the initial state is 0 and the step is 1."""
    pre = torch.cat([torch.logspace(-30, 30, 400), torch.linspace(0, 10, 400), torch.tensor([torch.inf])])
    pre = torch.cat([pre, -pre, torch.tensor([torch.nan])])[None, :, None]
    one = torch.ones(1)
    y, _ = kernels.unicornn(pre, one, 100 * one, 1.0, 0.0, backend="triton")
    exact = pre.double().tanh()
    assert torch.equal(y.isnan(), exact.isnan())
    error = ((-y.double() - exact).abs() / exact.abs().clamp(min=1e-37)).nan_to_num()
    assert error.max() < 2 * EPSILON


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_kept(name):
    given = single(arguments(name, 4, 2, 3))
    given["pre"][1, 0, 0] = torch.nan
    sequence, *final = call(name, given, "triton")
    expected, *_ = call(name, given, "reference")
    assert torch.equal(sequence.isnan(), expected.isnan())
    assert all(state[0, 0].isnan() for state in final)


@pytest.mark.parametrize("name", SIZES)
def test_float64_is_refused(name):
    with pytest.raises(RuntimeError, match=r"backend='triton' cannot run: .*float32, pre is float64"):
        call(name, arguments(name, 2, 1, 3), "triton")


@pytest.mark.parametrize("name", NAMES)
def test_compile_keeps_the_graph(name):
    given = single(arguments(name, 5, 2, 3))
    grads = cotangents(name, given)
    eager = run(name, given, grads, "triton")

    fused = backend(name)
    leaves = {key: value.clone().requires_grad_() for key, value in given.items()}
    options = {"damping": "explicit"} if name == "cornn" else {}
    results = torch.compile(fused, backend="aot_eager", fullgraph=True)(*leaves.values(), **options)
    pulled = torch.autograd.grad(results, list(leaves.values()), [g.float() for g in grads])
    assert all(torch.equal(a, b) for a, b in zip([*results, *pulled], eager.values(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_compile_keeps_the_graph_of_the_public_operation(name):
    """With its checks, the choice of the backend and numbers in place of tensors."""
    given = single(arguments(name, 5, 2, 3))
    given |= {key: 0.5 for key in ("dt", "gamma", "epsilon", "alpha") if key in given}
    leaves = {key: value.requires_grad_() for key, value in given.items() if isinstance(value, torch.Tensor)}

    def loss(*values):
        sequence, *final = call(name, given | dict(zip(leaves, values, strict=True)), "triton")
        return (sequence * sequence).sum() + sum(state.sum() for state in final)

    values = list(leaves.values())
    expected = torch.autograd.grad(loss(*values), values)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(*values), values), expected)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_auto_is_triton_for_cuda_tensors(name, monkeypatch):
    """With tensors that know of a CUDA device and hold nothing."""
    # They need no interpreter.
    monkeypatch.delenv("TRITON_INTERPRET")
    with FakeTensorMode():
        tensors = {dtype: torch.empty(2, 3, 12, dtype=dtype, device="cuda") for dtype in (torch.float32, torch.float64)}
        on_cpu = torch.empty(2, 3, 12)
    expected = "triton" if name in SIZES else "reference"
    assert kernels.backend_for(name, tensors[torch.float32]) == expected
    assert kernels.backend_for(name, tensors[torch.float64]) == "reference"
    assert kernels.backend_for(name, on_cpu) == "cpu"
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    assert kernels.backend_for(name, tensors[torch.float32]) == "reference"


def operator_arguments(name: str, given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list, list]:
    """What the operator of a dense cell gets: pre, parameters, states."""
    operation, (pre, *tensors) = OPERATIONS[name], given.values()
    states = len(operation.states)
    if operation.cpu is None:
        parameters = tensors[:-states]
    else:
        options = {"damping": "explicit"} if name == "cornn" else {}
        parameters = operation.cpu(lambda _, parameters, state: parameters, pre, *tensors, **options)
    return pre, [value.detach().requires_grad_() for value in parameters], tensors[-states:]


@pytest.mark.parametrize("name", NAMES)
def test_operator_registration(name):
    """PyTorch's own checks: schema, fake kernel, autograd, and all of them under tracing with dynamic shapes."""
    given = single(arguments(name, 5, 2, 3))
    if name == "unicornn":
        # The operator takes the step itself, and the steps between anchors.
        given["d"] = given.pop("dt")
        given = {key: given[key] for key in ("pre", "w", "d", "alpha", "y", "z")}
    if name == "linoss":
        # The operator takes the damping, and the steps of a segment.
        given = {"pre": given.pop("pre"), "s": given["a"].neg().exp(), **given}
    leaves = [value.requires_grad_() for value in given.values()]
    options = {"unicornn": [2], "linoss": [8]}.get(name, [])
    if name in DENSE:
        leaves = operator_arguments(name, given)
    torch.library.opcheck(getattr(torch.ops.longwave, f"{name}_triton").default, (*leaves, *options))


# Where it is neither a declaration that cpu.c contradicts nor one that contradicts itself.
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"units": 2}, "declared by products={'y': 3, 'z': 1}, units=2, but the kernel gets"),
        ({"products": {"y": 2, "z": 1}}, "declared by products={'y': 2, 'z': 1}, units=1, but the kernel gets"),
    ],
    ids=str,
)
def test_other_parameters_than_declared_are_an_error(changes, reason, monkeypatch):
    copy = f"copy_{uuid.uuid4().hex}"
    monkeypatch.setitem(OPERATIONS, copy, None)
    step = importlib.import_module("longwave.kernels.lem.triton")
    fused = importlib.import_module("longwave.kernels.dense").fused
    copied = fused(replace(OPERATIONS["lem"], name=copy, **changes), step.forward_step, step.backward_step)
    with pytest.raises(DeclarationError, match=re.escape(reason)):
        copied(*single(arguments("lem", 2, 1, 3)).values())


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_step_that_returns_another_number_of_blocks_is_an_error(direction, monkeypatch):
    copy = f"copy_{uuid.uuid4().hex}"
    monkeypatch.setitem(OPERATIONS, copy, None)
    rnn, modrelu = (importlib.import_module(f"longwave.kernels.{name}.triton") for name in ("rnn", "modrelu_rnn"))
    steps = {
        "forward": (modrelu.forward_step, rnn.backward_step),
        "backward": (rnn.forward_step, modrelu.backward_step),
    }
    dense = importlib.import_module("longwave.kernels.dense")
    copied = dense.fused(replace(OPERATIONS["rnn"], name=copy), *steps[direction])
    leaves = [value.requires_grad_() for value in single(arguments("rnn", 2, 1, 3)).values()]
    with pytest.raises(Exception, match=r"AssertionError|IndexError"):
        torch.autograd.grad(copied(*leaves)[0].sum(), leaves)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiles_ahead_of_time_without_spills():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "longwave.kernels.machine_code", "--quick"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name in SIZES:
        for direction in ("forward", "backward"):
            assert f"| {name} {direction}" in done.stdout
