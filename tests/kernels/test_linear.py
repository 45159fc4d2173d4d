import pytest
import torch
from torch.nn import functional as F

from longwave import kernels


@pytest.mark.parametrize("shape", [(1, 1), (17, 3), (64, 4), (500, 5)])
@pytest.mark.parametrize(("channels", "outputs"), [(1, 1), (2, 20), (16, 7), (17, 7)])
@pytest.mark.parametrize("biased", [True, False])
def test_is_torchs_in_value_and_gradients(shape, channels, outputs, biased):
    torch.manual_seed(0)
    x = torch.randn(*shape, channels, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(outputs, channels, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(outputs, dtype=torch.float64, requires_grad=True) if biased else None
    leaves = [x, weight] + [bias] * biased
    ours, theirs = kernels.linear(x, weight, bias), F.linear(x, weight, bias)
    assert torch.equal(ours, theirs)
    assert (type(ours.grad_fn).__name__ == "_LinearBackward") == (channels <= 16)
    cotangent = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad(y, leaves, cotangent) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("biased", [True, False])
def test_the_gradient_of_a_strided_sequence(biased):
    torch.manual_seed(0)
    x = torch.randn(2, 130, 3, dtype=torch.float64).transpose(0, 1)
    leaves = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((4, 3), (4,))[: 1 + biased]]
    assert torch.autograd.gradcheck(lambda *leaves: kernels.linear(x, *leaves), leaves)


def test_of_another_type_under_autocast():
    x, weight, bias = torch.randn(5, 2, 3), torch.randn(4, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = kernels.linear(x, weight, bias)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert weight.grad.dtype == torch.float32
