"""The Neural RDE's steps against their definition: values, every gradient, any size and option; what is refused."""

import re

import pytest
import torch
from torch import Tensor

from longwave import kernels
from longwave.benchmarks.cases import NRDE_OPTIONS as OPTIONS
from longwave.benchmarks.cases import NRDE_SIZES as SIZES
from longwave.benchmarks.cases import differences, everything, excess_errors, nrde_case
from longwave.kernels.library import DeclarationError
from longwave.kernels.nrde import SOLVERS, source


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Memory that nobody has written to holds NaN."""
    new_empty = Tensor.new_empty

    def poison(self, *shape, **options):
        return new_empty(self, *shape, **options).fill_(float("nan"))

    monkeypatch.setattr(Tensor, "new_empty", poison)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_and_gradients(size, options):
    example = nrde_case(*size, **options)
    assert not differences(example)
    # How a single number is rounded is luck.
    assert size == (1, 1, 1, 1) or not excess_errors(example)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_agreement_to_rounding_in_float64(options):
    """To 1e-12 of the largest number."""
    example = nrde_case(9, 5, 6, **options)
    expected = everything(example, "reference")
    for key, value in everything(example, "cpu").items():
        assert (value - expected[key]).abs().max() <= 1e-12 * expected[key].abs().max(), key


@pytest.mark.parametrize("options", [option for option in OPTIONS if "adjoint" not in option], ids=str)
def test_gradcheck(options):
    example = nrde_case(3, 2, 3, 2, **options)
    keys = list(example.inputs)
    assert torch.autograd.gradcheck(
        lambda *values: example.run("cpu", dict(zip(keys, values, strict=True))), tuple(example.inputs.values())
    )


@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_bits_do_not_depend_on_threads(options):
    example, results = nrde_case(40, 50, 18, **options).to(torch.float32), []
    for threads in (1, 2, 3, 64):
        torch.set_num_threads(threads)
        results.append(everything(example, "cpu"))
    for result in results[1:]:
        for key, value in result.items():
            assert torch.equal(value, results[0][key]), key


def test_rows_do_not_see_each_other():
    """A row's bits are those that it has alone, and a NaN stays in its row."""
    example = nrde_case(4, 20, 18).to(torch.float32)
    with torch.no_grad():
        expected, _ = example.run("cpu")
        inputs = dict(example.inputs)
        inputs["x"] = inputs["x"].clone()
        inputs["x"][:, 3] = float("nan")
        poisoned, _ = example.run("cpu", inputs)
        alone, _ = example.run("cpu", inputs | {"x": inputs["x"][:, 5:6], "state_h": inputs["state_h"][5:6]})
    assert torch.equal(expected[:, 5:6], alone)
    assert poisoned[:, 3].isnan().all()
    others = torch.arange(20) != 3
    assert torch.equal(expected[:, others], poisoned[:, others])


@pytest.mark.parametrize("adjoint", [False, True])
def test_only_the_gradients_that_are_asked_for(adjoint):
    """That of x costs more, and is the only one that may be left out in the kernel."""
    example = nrde_case(3, 4, 5, adjoint=adjoint)
    expected = everything(example, "cpu")
    for key, value in example.inputs.items():
        others = {k: v if k == key else v.detach() for k, v in example.inputs.items()}
        (gradient,) = torch.autograd.grad(example.run("cpu", others)[0].sum(), value)
        (whole,) = torch.autograd.grad(example.run("cpu")[0].sum(), value)
        assert torch.equal(gradient, whole)
        assert gradient.shape == expected[f"gradient of {key}"].shape


def test_nothing_is_kept_where_no_gradient_is_asked_for():
    example = nrde_case(3, 2, 4)
    values = [value.detach() for value in example.inputs.values()]
    parameters = torch.cat([value.flatten() for value in values[2:]])
    assert [*torch.ops.longwave.nrde(*values[:2], parameters, 7, 1, 1, "rk4", False, False, False)[1].shape] == [0]
    with torch.no_grad():
        assert torch.equal(example.run("cpu")[0], nrde_case(3, 2, 4).run("cpu")[0])
    leaf = parameters.requires_grad_()
    sequence, _ = torch.ops.longwave.nrde(*values[:2], leaf, 7, 1, 1, "rk4", False, False, False)
    with pytest.raises(RuntimeError, match=r"^nrde: nothing was kept for the backward pass$"):
        sequence.sum().backward()


def test_any_strides():
    example = nrde_case(4, 3, 6)
    expected = everything(example, "cpu")
    for key, value in example.inputs.items():
        strided = torch.stack([value, -value], dim=-1)[..., 0]
        assert not strided.is_contiguous()
        example.inputs[key] = strided.detach().requires_grad_()
    for key, value in everything(example, "cpu").items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (2, 0)])
def test_without_blocks_or_rows(steps, batch, adjoint):
    x, h = torch.randn(steps, batch, 2), torch.randn(batch, 4, requires_grad=True)
    parameters = [torch.randn(*shape, requires_grad=True) for shape in ((3, 4), (8, 3), (3,), (8,))]
    for backend in ("cpu", "reference"):
        options = {"adjoint": adjoint, "repeat_last": True, "backend": backend}
        sequence = kernels.nrde(x, h, parameters[:2], parameters[2:], **options)
        assert sequence.shape == (steps + (steps > 0), batch, 4)
        if backend == "cpu":
            gradients = torch.autograd.grad(sequence.sum(), [h, *parameters])
            assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
def test_operator_registration(options):
    """The checks of torch.library: schema, fake kernel, autograd, and what torch.compile does with them."""
    adjoint = options.get("adjoint", False)
    values = [value.detach().requires_grad_() for value in nrde_case(3, 2, 5).to(torch.float32).inputs.values()]
    parameters = torch.cat([value.detach().flatten() for value in values[2:]]).requires_grad_()
    numbers = (9, 1, 1, "rk4", adjoint, True, not adjoint)
    torch.library.opcheck(torch.ops.longwave.nrde.default, (*values[:2], parameters, *numbers))


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_torch_compile_keeps_one_graph(options):
    example = nrde_case(4, 3, 5, **options).to(torch.float32)
    keys, values = list(example.inputs), list(example.inputs.values())

    def loss(*values):
        y, _ = example.run("auto", dict(zip(keys, values, strict=True)))
        return (y * y).sum()

    expected = torch.autograd.grad(loss(*values), values)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*values), values), expected)


def arguments() -> dict:
    x, state, *rest = nrde_case(3, 2, 4, 6, inner=1, width=5).inputs.values()
    return {"x": x, "state": state, "weights": rest[::2], "biases": rest[1::2]}


def replaced(values: list[Tensor], index: int, value) -> list:
    return [value if i == index else old for i, old in enumerate(values)]


@pytest.mark.parametrize(
    ("key", "index", "change", "error", "message"),
    [
        ("solver", None, lambda _: "midpoint", ValueError, "solver='midpoint': must be one of euler, heun, rk4"),
        ("repeats", None, lambda _: 0, ValueError, "repeats=0: must be a whole number, 1 or more"),
        ("repeats", None, lambda _: 1.5, ValueError, "repeats=1.5: must be a whole number, 1 or more"),
        ("backend", None, lambda _: "fast", ValueError, "backend='fast': must be one of auto, reference, cpu, triton"),
        ("x", None, lambda x: x[0], ValueError, "x must be (T, B, D), state (B, H), weights[0] (W, H), got (2, 6), "),
        ("x", None, lambda x: x.long(), TypeError, "x must be floating-point tensors, got torch.int64"),
        ("x", None, lambda x: 5, TypeError, "x must be a tensor, got int"),
        ("x", None, lambda x: x[..., :5], ValueError, "weights[2] must be (H * D, W) = (20, 5), got (24, 5)"),
        ("x", None, lambda x: x[..., :0], ValueError, "weights[2] must be (H * D, W) = (0, 5), got (24, 5)"),
        ("state", None, lambda s: s[:1], ValueError, "state must be (B, H) = (2, 4), got (1, 4)"),
        ("state", None, lambda s: s.float(), TypeError, "state must be torch.float64 as x is, got torch.float32"),
        ("weights", 0, lambda w: w[:, :3], ValueError, "weights[0] must be (W, H) = (5, 4), got (5, 3)"),
        ("weights", 1, lambda w: w[:3], ValueError, "weights[1] must be (W, W) = (5, 5), got (3, 5)"),
        ("weights", 2, lambda w: w.to("meta"), ValueError, "weights[2] must be on cpu as x is, got meta"),
        ("biases", 2, lambda b: b[:3], ValueError, "biases[2] must be (H * D,) = (24,), got (3,)"),
        ("biases", 1, lambda b: None, TypeError, "biases[1] must be a tensor, got NoneType"),
        ("biases", None, lambda b: b[:2], ValueError, "3 weights and 2 biases: must be equally many, two or more"),
    ],
)
def test_what_is_refused(key, index, change, error, message):
    given = arguments()
    old = given.get(key)
    given[key] = change(old) if index is None else replaced(old, index, change(old[index]))
    with pytest.raises(error, match=f"^nrde: {re.escape(message)}[^\n]*$"):
        kernels.nrde(**given)


def test_empty_channels_are_refused():
    given = arguments()
    given["x"] = given["x"][..., :0]
    given["weights"], given["biases"] = (replaced(given[k], 2, given[k][2][:0]) for k in ("weights", "biases"))
    with pytest.raises(ValueError, match=re.escape("nrde: D, H and W must not be 0, got (0, 4, 5)")):
        kernels.nrde(**given)


def test_half_precision_runs_on_the_reference():
    assert kernels.backend_for("nrde", torch.zeros(1, dtype=torch.bfloat16)) == "reference"
    assert kernels.backend_for("nrde", torch.zeros(1)) == "cpu"
    half = {k: v.bfloat16() if isinstance(v, Tensor) else [p.bfloat16() for p in v] for k, v in arguments().items()}
    assert torch.equal(kernels.nrde(**half), kernels.nrde(**half, backend="reference"))
    with pytest.raises(RuntimeError, match=r"^nrde: backend='cpu' cannot run: the C kernels are for float32"):
        kernels.nrde(**half, backend="cpu")


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ((((), (0.5, 0.5)), (0.5, 0.5)), "mine: stage 1 must have 1 weights, has 2"),
        ((((), (0.5,)), (1.0,)), "mine: 2 stages and 1 weights of their slopes"),
        (((), ()), "mine: 0 stages and 0 weights of their slopes"),
    ],
)
def test_a_solver_that_is_no_explicit_method_is_an_error(solver, message):
    with pytest.raises(DeclarationError, match=f"^nrde: {message}$"):
        source({**SOLVERS, "mine": solver})


def test_the_docstring_is_the_definition():
    for word in ("F(h)", "Args:", "backend:", "Returns:", "(T, B, H)"):
        assert word in kernels.nrde.__doc__
