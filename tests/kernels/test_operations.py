"""Every operation against its definition: values, every gradient, any size."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from longwave import kernels
from longwave.benchmarks.cases import (
    EVERY_EQUATION,
    SIZES,
    Case,
    case,
    case_by_unit,
    differences,
    everything,
    excess_errors,
)
from longwave.kernels.operation import OPERATIONS, Operation

ALL = sorted(OPERATIONS)


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that nobody has written to holds NaN."""
    new_empty = Tensor.new_empty

    def poison(self, *shape, **options):
        return new_empty(self, *shape, **options).fill_(float("nan"))

    monkeypatch.setattr(Tensor, "new_empty", poison)
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **options: poison(tensor, tensor.shape, **options))


@pytest.fixture(autouse=True)
def quick():
    """Gradients vanish here: with denormals, or with threads for such small tensors, the reference takes minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", EVERY_EQUATION)
def test_float64_equals_reference(name, size, poisoned):
    assert not differences(case(name, *size))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", EVERY_EQUATION)
def test_float32_errs_as_reference_does(name, size, poisoned):
    assert not excess_errors(case_by_unit(name, *size))


# The states are stored after every 256 steps but the last: 0, 0, 1, 1 and 2 times.
@pytest.mark.parametrize("steps", [255, 256, 257, 512, 513])
def test_unicornn_around_its_default_anchor(steps, poisoned):
    for batch, hidden in ((3, 5), (1, 32)):
        example = case_by_unit("unicornn", steps, batch, hidden)
        example.constants = {}
        assert not differences(example)
        assert not excess_errors(example)


# dt z is what the stored y differ by, of which the fewer digits are left the smaller dt is.
@pytest.mark.parametrize("dt", [1e-3, 0.03, 1.0])
@pytest.mark.parametrize("name", ["linoss", "imex_linoss"])
def test_linoss_with_steps_of_any_size(name, dt, poisoned):
    example = case_by_unit(name, 1000, 3, 5)
    example.inputs["dt"] = torch.full((5,), dt).double().requires_grad_()
    assert not differences(example)
    assert not excess_errors(example)


@pytest.mark.parametrize("name", EVERY_EQUATION)
def test_gradcheck(name):
    example = case(name, 4, 2, 3)
    keys = list(example.inputs)
    assert torch.autograd.gradcheck(
        lambda *values: example.run("cpu", dict(zip(keys, values, strict=True))), tuple(example.inputs.values())
    )


@pytest.mark.parametrize("name", ALL)
def test_any_strides(name):
    example = case(name, 5, 4, 6)
    expected = everything(example, "cpu")
    for key, value in example.inputs.items():
        if value.dim() > 1:
            strided = torch.stack([value, -value], dim=-1).transpose(0, 1).contiguous().transpose(0, 1)[..., 0]
            assert not strided.is_contiguous()
            example.inputs[key] = strided.detach().requires_grad_()
    for key, value in everything(example, "cpu").items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("name", ALL)
def test_strided_cotangent(name):
    example = case(name, 5, 4, 6)
    strided = torch.ones(4, 6, dtype=torch.float64).expand(5, 4, 6)
    gradients = [
        torch.autograd.grad(example.run("cpu")[0], list(example.inputs.values()), cotangent)
        for cotangent in (strided, strided.contiguous())
    ]
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", EVERY_EQUATION)
def test_one_output_used(name):
    example = case(name, 5, 4, 6)
    for i, output in enumerate(example.run("cpu")):
        for key, a, b in zip(
            example.inputs,
            torch.autograd.grad(output.sum(), list(example.inputs.values()), retain_graph=True),
            torch.autograd.grad(
                example.run("reference")[i].sum(), list(example.inputs.values()), materialize_grads=True
            ),
            strict=True,
        ):
            torch.testing.assert_close(a, b, msg=lambda m, i=i, key=key: f"output {i}, {key}: {m}")


@pytest.mark.parametrize("name", ALL)
def test_zero_state_where_none_is_given(name):
    example = case(name, 5, 4, 6)
    zeros = {k: torch.zeros_like(v) if k.startswith("state_") else v for k, v in example.inputs.items()}
    expected = example.run("reference", zeros)
    example.inputs = {k: v for k, v in example.inputs.items() if not k.startswith("state_")}
    for backend in ("reference", "cpu"):
        for a, b in zip(example.run(backend), expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", EVERY_EQUATION)
def test_bits_do_not_depend_on_threads(name):
    example, results = case(name, 40, 50, 37).to(torch.float32), []
    for threads in (1, 2, 3, 64):
        torch.set_num_threads(threads)
        results.append(everything(example, "cpu"))
    for result in results[1:]:
        for key in result:
            assert torch.equal(result[key], results[0][key]), key


@pytest.mark.parametrize("name", ALL)
def test_rows_do_not_see_each_other(name):
    """A row's bits are those that it has alone, and a NaN stays in its row."""
    example = case(name, 9, 20, 37).to(torch.float32)
    with torch.no_grad():
        expected = example.run("cpu")
        example.inputs["pre"][:, 3] = float("nan")
        poisoned = example.run("cpu")
        rows = {
            k: v[:, 5:6] if k == "pre" else v[5:6] if k.startswith("state_") else v for k, v in example.inputs.items()
        }
        alone = example.run("cpu", rows)
    for all_rows, with_nan, one in zip(expected, poisoned, alone, strict=True):
        row = (slice(None),) * (all_rows.dim() - 2)
        assert torch.equal(all_rows[(*row, slice(5, 6))], one)
        assert with_nan[(*row, 3)].isnan().all()
        others = torch.arange(20) != 3
        assert torch.equal(all_rows[(*row, others)], with_nan[(*row, others)])


@pytest.mark.parametrize("name", ALL)
def test_backward_twice_gives_the_same(name):
    example = case(name, 5, 4, 6)
    output = example.run("cpu")[0].square().sum()
    first = torch.autograd.grad(output, list(example.inputs.values()), retain_graph=True)
    second = torch.autograd.grad(output, list(example.inputs.values()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_large_arguments(name):
    """Saturated gates are what they are in the reference."""
    example = case_by_unit(name, 20, 3, 5)
    example.inputs["pre"] = (300 * example.inputs["pre"]).detach().requires_grad_()
    expected, result = everything(example, "reference"), everything(example, "cpu")
    for key in expected:
        torch.testing.assert_close(result[key], expected[key], msg=lambda m, k=key: f"{k}: {m}")
    assert not excess_errors(example)


@pytest.mark.parametrize("name", ALL)
def test_denormal_gradients_are_flushed(name):
    """A cotangent of 1e-38 does not become denormal on its way, and the caller's own setting is left alone."""
    torch.set_flush_denormal(False)
    example = case(name, 60, 2, 32).to(torch.float32)
    output = example.run("cpu")[0][-1]
    gradients = torch.autograd.grad(output, list(example.inputs.values()), torch.full_like(output, 2e-38))
    pre = gradients[0].abs()
    assert not ((pre > 0) & (pre < torch.finfo(torch.float32).tiny)).any()
    assert (torch.tensor([1e-40]) * 1 > 0).all()


@pytest.mark.parametrize("name", [*ALL, "input_cornn"])
def test_operator_registration(name, monkeypatch):
    """The checks of torch.library: schema, fake kernel, autograd, and what torch.compile does with them."""
    call, given = Operation.kernel, []

    def record(self, pre, parameters, state, anchor=0):
        x, *affine = pre if isinstance(pre, kernels.Input) else (pre, None, None)
        leaves = [t if t is None else t.detach().requires_grad_() for t in (*affine, *parameters, *state)]
        given.extend([x.detach().requires_grad_(affine[0] is None), *leaves, anchor])
        return call(self, pre, parameters, state, anchor)

    monkeypatch.setattr(Operation, "kernel", record)
    case(name, 3, 2, 5).to(torch.float32).run("cpu")
    torch.library.opcheck(getattr(torch.ops.longwave, name.removeprefix("input_")).default, tuple(given))


@pytest.mark.parametrize("name", EVERY_EQUATION)
def test_torch_compile_keeps_one_graph(name):
    example = case(name, 6, 3, 5).to(torch.float32)
    keys = list(example.inputs)

    def loss(*values):
        y, *_ = example.run("auto", dict(zip(keys, values, strict=True)))
        return (y * y).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    values = list(example.inputs.values())
    expected = torch.autograd.grad(loss(*values), values)
    for a, b in zip(torch.autograd.grad(compiled(*values), values), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["indrnn", "cornn"])
def test_inductor(name):
    """Compiled to the end, with what comes before and after a kernel fused by PyTorch's own compiler."""
    example = case(name, 6, 3, 5).to(torch.float32)
    keys, values = list(example.inputs), list(example.inputs.values())

    def loss(pre, *rest):
        assert kernels.backend_for(name, pre) == "cpu"
        y, *_ = example.run("auto", dict(zip(keys, (2 * pre.sin(), *rest), strict=True)))
        return (y * y).sum()

    expected = torch.autograd.grad(loss(*values), values)
    compiled = torch.compile(loss, fullgraph=True, backend="inductor")
    torch.testing.assert_close(torch.autograd.grad(compiled(*values), values), expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_equals_torch(name, backend, bias):
    """lstm, gru and rnn are torch.nn.LSTM, torch.nn.GRU and torch.nn.RNN, in value and gradient."""
    torch.manual_seed(0)
    module = getattr(torch.nn, name.upper())(3, 5, bias=bias).double()
    x = torch.randn(7, 4, 3, dtype=torch.float64, requires_grad=True)
    states = [torch.randn(1, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(1 + (name == "lstm"))]
    y, final = module(x, tuple(states) if name == "lstm" else states[0])
    expected = [y, *(final if name == "lstm" else [final])]

    pre = torch.nn.functional.linear(x, module.weight_ih_l0, module.bias_ih_l0 if bias else None)
    if name == "lstm":
        pre = pre + module.bias_hh_l0 if bias else pre
        y, final = kernels.lstm(pre, module.weight_hh_l0, tuple(s[0] for s in states), backend=backend)
        result = [y, *(s[None] for s in final)]
    elif name == "rnn":
        pre = pre + module.bias_hh_l0 if bias else pre
        y, final = kernels.rnn(pre, module.weight_hh_l0, states[0][0], backend=backend)
        result = [y, final[None]]
    else:
        b_n = module.bias_hh_l0[10:] if bias else None
        if bias:
            pre = pre + torch.cat([module.bias_hh_l0[:10], module.bias_hh_l0.new_zeros(5)])
        y, final = kernels.gru(pre, module.weight_hh_l0, b_n, states[0][0], backend=backend)
        result = [y, final[None]]
    leaves = [x, *module.parameters(), *states]
    cotangents = [torch.randn_like(o) for o in expected]
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(
        torch.autograd.grad(result, leaves, cotangents), torch.autograd.grad(expected, leaves, cotangents), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("anchor", [0, 1, 7, 256, 1000])
def test_unicornn_anchors(anchor):
    """Wherever the states are stored, the gradients are the same; in float64, inversion does not drift."""
    example = case("unicornn", 300, 3, 5)
    expected = everything(example, "reference")
    example.constants["anchor"] = anchor
    for key, value in everything(example, "cpu").items():
        torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")


def test_unicornn_keeps_little():
    """Beside pre and the sequence, the graph holds the anchors, two states for every 256 steps, and a few (B, H)."""
    batch, hidden, beside_pre = 4, 32, {}
    for steps in (2048, 4096):
        example, kept = case("unicornn", steps, batch, hidden).to(torch.float32), {}
        example.constants = {}

        def pack(tensor: Tensor, kept=kept) -> Tensor:
            kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            example.run("cpu")
        beside_pre[steps] = sum(kept.values()) - steps * batch * hidden
    assert beside_pre[2048] <= (2 * 2048 // 256 + 8) * batch * hidden
    assert beside_pre[4096] - beside_pre[2048] == 2 * 2048 // 256 * batch * hidden


BACKWARD_MEMORY = """
import torch
from longwave import kernels
from longwave.training.environment import peak_memory_bytes, reset_peak_memory

torch.set_num_threads(1)
device = torch.device("cpu")
for steps in {lengths}:
    pre, cotangent = torch.ones(2, steps, 8, 32)
    w, c = torch.zeros(2, 32)
    leaves = [t.requires_grad_() for t in (pre, w, c)]
    y, _ = kernels.unicornn(*leaves, 0.03, 0.0, backend="cpu")
    reset_peak_memory()
    before = peak_memory_bytes(device)
    torch.autograd.grad(y, leaves, cotangent)
    print((peak_memory_bytes(device) - before) / (4 * y.numel()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_unicornn_backward_takes_little():
    """The gradient of pre, one sequence, and 2 MB at the most, at two lengths: no states are kept but a step's."""
    lengths = (32_768, 65_536)
    command = [sys.executable, "-c", BACKWARD_MEMORY.format(lengths=lengths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for steps, taken in zip(lengths, map(float, done.stdout.split()), strict=True):
        assert 0.9 < taken < 1 + 2**21 / (4 * steps * 8 * 32)


def eigenworms(steps: int, batch: int) -> tuple[Case, Tensor]:
    """UnICORNN's second layer on EigenWorms, dt = 0.0343 and alpha = 0, and a cotangent of the sequence."""
    generator, hidden = torch.Generator().manual_seed(0), 32
    pre = torch.randn(steps, batch, hidden, generator=generator)
    w, c = torch.rand(hidden, generator=generator), 0.2 * torch.rand(hidden, generator=generator) - 0.1
    cotangent = torch.randn(steps, batch, hidden, generator=generator)
    inputs = {"pre": pre, "w": w, "c": c, "dt": torch.full((hidden,), 0.0343), "alpha": torch.zeros(hidden)}
    inputs |= {f"state_{key}": torch.zeros(batch, hidden) for key in "yz"}
    return Case(kernels.unicornn, inputs, {}).to(torch.float64), cotangent


# With alpha = 0 the states grow to 22, and pure inversion in float32 drifts by 1e-3 (measured in numpy).
@pytest.mark.parametrize(("anchor", "tolerance"), [(256, 1e-5), (0, 1e-3)])
def test_unicornn_long_run(anchor, tolerance):
    """T = 17,984, as EigenWorms is long, against a backward pass with every state stored."""
    example, cotangent = eigenworms(17_984, 2)
    example, gradients = example.to(torch.float32), []
    for every in (1, anchor):
        example.constants["anchor"] = every
        y, *_ = example.run("cpu")
        gradients.append(torch.autograd.grad(y, list(example.inputs.values()), cotangent))
    assert 20 < y.abs().max() < 25
    for key, stored, rebuilt in zip(example.inputs, *gradients, strict=True):
        assert (rebuilt - stored).abs().max() <= tolerance * stored.abs().max(), key


def test_unicornn_long_run_equals_reference():
    """The same at T = 4,000, which the reference can do in seconds, and from states that are not zero."""
    example, _ = eigenworms(4000, 2)
    for key in ("state_y", "state_z"):
        example.inputs[key] = torch.full_like(example.inputs[key], 0.5, requires_grad=True)
    assert not differences(example)
    assert not excess_errors(example)
