"""The Neural RDE's Triton kernels, in the interpreter on CPU tensors against the definition."""

import importlib
import os
import subprocess
import sys

import pytest
import torch

from longwave import kernels
from longwave.benchmarks.cases import everything, excess_errors, nrde_case

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("poison")


@pytest.fixture(scope="module", autouse=True)
def module():
    """Imports the kernels under the interpreter: whether a kernel is interpreted is decided where it is defined."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield importlib.import_module("longwave.kernels.nrde.triton")


# Two blocks of rows, several tiles of units and of terms, one of everything, no inner layer, several.
CASES = [
    ((1, 1, 2, 1), {}),
    ((1, 17, 5, 3), {"repeat_last": True}),
    ((1, 17, 5, 3), {"solver": "heun", "adjoint": True, "repeat_last": True}),
    ((2, 1, 34, 2), {"solver": "euler"}),
    ((2, 1, 34, 2), {"solver": "euler", "adjoint": True}),
    ((2, 2, 3, 6), {"solver": "heun", "inner": 0, "repeat_last": True}),
    ((1, 2, 3, 3), {"solver": "heun", "inner": 2, "repeats": 2, "adjoint": True}),
    ((1, 2, 3, 3), {"inner": 1, "repeats": 3}),
]


@pytest.mark.parametrize(("size", "options"), CASES, ids=str)
def test_values_and_gradients(size, options):
    assert not excess_errors(nrde_case(*size, **options), "triton")


@pytest.mark.parametrize("adjoint", [False, True])
def test_segments_change_nothing_but_the_order_of_sums(module, adjoint, monkeypatch):
    """Where the last block of a segment is another, and the repeated one has a segment of its own."""
    example = nrde_case(3, 3, 3, 2, solver="euler", adjoint=adjoint, repeat_last=True).to(torch.float32)
    expected = everything(example, "triton")
    for rows in (1, 6):
        monkeypatch.setattr(module, "SEGMENT", rows)
        for key, value in everything(example, "triton").items():
            torch.testing.assert_close(value, expected[key], msg=lambda m, key=key: f"{key}: {m}")


def test_twice_is_the_same_to_the_bit():
    example = nrde_case(2, 18, 5, 3, solver="euler").to(torch.float32)
    first, second = (everything(example, "triton") for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_nan_stays_in_its_row():
    example = nrde_case(2, 3, 4, 2, solver="euler").to(torch.float32)
    inputs = {key: value.detach().clone() for key, value in example.inputs.items()}
    inputs["x"][0, 1] = float("nan")
    found, _ = example.run("triton", inputs)
    assert found[:, 1].isnan().all()
    assert found[:, [0, 2]].isfinite().all()


def test_without_blocks():
    x, h = torch.randn(0, 3, 2), torch.randn(3, 4, requires_grad=True)
    parameters = [torch.randn(*shape, requires_grad=True) for shape in ((3, 4), (8, 3), (3,), (8,))]
    sequence = kernels.nrde(x, h, parameters[:2], parameters[2:], repeat_last=True, backend="triton")
    assert sequence.shape == (0, 3, 4)
    assert not any(gradient.any() for gradient in torch.autograd.grad(sequence.sum(), [h, *parameters]))


def test_operator_registration():
    """The checks of torch.library: schema, fake kernel, autograd, and what torch.compile does with them."""
    values = [value.detach().requires_grad_() for value in nrde_case(1, 1, 3, 1).to(torch.float32).inputs.values()]
    parameters = torch.cat([value.detach().flatten() for value in values[2:]]).requires_grad_()
    numbers = (5, 1, 1, "euler", False, False, True)
    torch.library.opcheck(torch.ops.longwave.nrde_triton.default, (*values[:2], parameters, *numbers))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(dtype):
    example = nrde_case(1, 2, 3, 2, solver="euler").to(dtype)
    found, expected = everything(example, "triton"), everything(example.to(torch.float32), "triton")
    for key, value in found.items():
        assert value.dtype == dtype
        torch.testing.assert_close(value.float(), expected[key], rtol=0.02, atol=0.02)
    with torch.no_grad():
        assert torch.equal(
            example.run("triton")[0].float(), example.to(torch.float32).run("triton")[0].to(dtype).float()
        )


def test_float64_is_refused():
    with pytest.raises(
        RuntimeError, match=r"^nrde: backend='triton' cannot run: the Triton kernels compute in float32"
    ):
        nrde_case(1, 1, 2).run("triton")


@pytest.mark.slow
def test_machine_code():
    """For three cards, with no GPU: they compile, and keep in registers what is theirs."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "longwave.kernels.nrde.machine_code"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| nrde ")]
    assert len(rows) == 3
    assert all(row.split("|")[3].strip() == "0" for row in rows)
