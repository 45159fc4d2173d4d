"""An Input is what ``linear`` makes of it, whether a C kernel computes it in its loop or not."""

import pytest
import torch
from torch import Tensor

from longwave import kernels
from longwave.benchmarks.cases import Case, case
from longwave.kernels.linear import NARROW
from longwave.kernels.operation import OPERATIONS

DENSE = sorted(name for name, operation in OPERATIONS.items() if operation.dense)


def both(example: Case, x: Tensor, *affine: Tensor) -> list[list[Tensor]]:
    """The sequence and the gradients, of ``pre`` by linear and of an Input."""
    given = {key: value for key, value in example.inputs.items() if key != "pre"}
    leaves = [t for t in (x, *affine, *given.values()) if t.requires_grad]
    results = []
    for pre in (kernels.linear(x, *affine), kernels.Input(x, *affine)):
        y = example.run("cpu", {"pre": pre} | given)[0]
        results.append([y.detach(), *torch.autograd.grad((y * y).sum(), leaves)])
    return results


def affine_of(example: Case, channels: int) -> list[Tensor]:
    steps, batch, width = example.inputs["pre"].shape
    torch.manual_seed(0)
    shapes = ((steps, batch, channels), (width, channels), (width,))
    x, *leaves = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return [x, *(leaf.requires_grad_() for leaf in leaves)]


@pytest.mark.parametrize("channels", [1, 2, NARROW, NARROW + 1])
@pytest.mark.parametrize("name", [*DENSE, "unicornn"])
def test_equals_linear(name, channels):
    example = case(name, 35, 9, 17)
    for a, b in zip(*both(example, *affine_of(example, channels)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_without_bias():
    example = case("lstm", 5, 4, 6)
    for a, b in zip(*both(example, *affine_of(example, 2)[:2]), strict=True):
        torch.testing.assert_close(a, b)


def test_strided():
    example = case("cornn", 5, 4, 6)
    x, weight, bias = affine_of(example, 2)
    x = x.transpose(0, 1).contiguous().transpose(0, 1)
    weight = torch.cat([weight, weight], dim=1).detach().requires_grad_()
    for a, b in zip(*both(example, x, weight[:, 1:3], bias), strict=True):
        torch.testing.assert_close(a, b)


def test_gradient_of_x():
    example = case("cornn", 5, 4, 6)
    x, *affine = affine_of(example, 2)
    for a, b in zip(*both(example, x.requires_grad_(), *affine), strict=True):
        assert torch.equal(a, b)


def test_keeps_no_sequence_of_pre():
    """Of a coRNN the graph holds the sequence, a tape of two, and little else that grows with T."""
    kept, (steps, batch, hidden) = {}, (500, 4, 32)
    example = case("input_cornn", steps, batch, hidden)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t.numel()}) or t, lambda t: t):
        example.run("cpu")
    assert sum(kept.values()) < 3.2 * steps * batch * hidden


def test_under_autocast():
    """The product is in bfloat16, the recurrence is not."""
    example = case("cornn", 5, 4, 6).to(torch.float32)
    x, *affine = (t.detach().float() for t in affine_of(example, 2))
    given = {key: value for key, value in example.inputs.items() if key != "pre"}
    with torch.autocast("cpu", torch.bfloat16):
        expected = example.run("cpu", {"pre": kernels.linear(x, *affine).float()} | given)
        result = example.run("cpu", {"pre": kernels.Input(x, *affine)} | given)
    for a, b in zip(result, expected, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_wrong_shapes_are_refused():
    example = case("cornn", 5, 4, 6)
    x, weight, bias = affine_of(example, 2)
    for affine in ((weight[:, :1], bias), (weight, bias[:3]), (weight[:3], bias[:3])):
        with pytest.raises((ValueError, RuntimeError)):
            example.run("cpu", example.inputs | {"pre": kernels.Input(x, *affine)})
