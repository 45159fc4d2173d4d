"""The input's contribution for all steps, with a gradient that is quick where the input has few channels."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longwave.kernels.derivatives import transformed

# Up to this many channels a plain product is far slower than reading its operands: 32 ms for 25,000 x 512 and 2.
NARROW = 16
# Rows of a product in a batch of products.
ROWS = 128


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``: x W^T + b, in value and in every gradient.

    A sequence of few channels makes the weight's gradient a product of two long, narrow matrices, on which the
    libraries of a CPU waste most of their time. There it is a batch of short ones, which gives a bias's as well.

    Args:
        x: (..., D).
        weight: (G, D).
        bias: (G,) or None.

    Returns:
        (..., G).
    """
    narrow = x.device.type == "cpu" and x.shape[-1] <= NARROW and not torch.is_autocast_enabled("cpu")
    if narrow and torch.is_grad_enabled() and not transformed():
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Input(NamedTuple):
    """The input's contribution V x_n + b for every step, in place of the ``pre`` of an operation.

    It is :func:`linear`, in the type of the weight. The C kernel of a dense cell computes it in its loop where x has up
    to 16 channels and needs no gradient: then neither ``pre`` nor its gradient is ever in memory.

    Args:
        x: (T, B, D).
        weight: V, (gates * H, D).
        bias: b, (gates * H,) or None.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None

    def narrow(self) -> bool:
        """True if a C kernel may compute it."""
        given = [t for t in self if t is not None]
        return (
            self.x.dim() == 3
            and 1 <= self.x.shape[2] <= NARROW
            and not self.x.requires_grad
            and not torch.is_autocast_enabled("cpu")
            and self.weight.shape[1:] == self.x.shape[2:]
            and (self.bias is None or self.bias.shape == self.weight.shape[:1])
            and all((t.device, t.dtype) == (self.x.device, self.x.dtype) for t in given)
        )

    def outline(self) -> Tensor:
        """A tensor with the shape, type and device of :func:`linear`, and no memory."""
        return self.weight.detach().new_zeros(()).expand(*self.x.shape[:2], len(self.weight))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        d_x = gradient @ weight if ctx.needs_input_grad[0] else None
        gradient = gradient.reshape(-1, gradient.shape[-1])
        x = x.reshape(-1, x.shape[-1])
        if ctx.biased:
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)  # the bias is the weight of a 1
        whole = len(x) // ROWS * ROWS
        # Not unflatten, which has no rule for a batch of gradients.
        left, right = (t[:whole].reshape(whole // ROWS, ROWS, t.shape[1]) for t in (x, gradient))
        both = torch.bmm(left.transpose(1, 2), right).sum(0) + x[whole:].T @ gradient[whole:]  # (D, G) or (D + 1, G)
        return (d_x, both[:-1].T, both[-1]) if ctx.biased else (d_x, both.T, None)
