"""IndRNN in Triton: one thread a (batch, unit) column, serial over T."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from longwave.kernels.derivatives import refuse_second_derivatives
from longwave.kernels.device import launch_columns, load_steps


@triton.jit(do_not_specialize=["steps", "columns", "hidden"])
def indrnn_forward_kernel(
    pre,  # (T, B, H)
    u,  # (H)
    h_0,  # (B, H)
    h_all,  # (T, B, H)
    h_last,  # (B, H)
    steps,
    columns,
    hidden,
    BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    u = tl.load(u + column % hidden, mask=inside, other=0.0)
    h = tl.load(h_0 + column, mask=inside, other=0.0)
    # T * B * H can exceed 2^31.
    stride = columns.to(tl.int64)
    pre += column
    h_all += column
    pre_ahead = load_steps(pre, stride, 0, 0, steps, inside, 1, AHEAD)
    for first in range(0, steps, AHEAD):
        pre_now = pre_ahead
        pre_ahead = load_steps(pre, stride, first + AHEAD, 0, steps, inside, 1, AHEAD)
        h_now = h_all + first * stride
        for i in tl.static_range(AHEAD):
            if first + i < steps:
                h = pre_now[i].to(tl.float32) + u * h
                # Not maximum(h, 0), which would turn a NaN into 0.
                h = tl.where(h < 0.0, 0.0, h)
                tl.store(h_now + i * stride, h, mask=inside)
    tl.store(h_last + column, h, mask=inside)


@triton.jit(do_not_specialize=["steps", "columns", "hidden"])
def indrnn_backward_kernel(
    u,  # (H)
    h_0,  # (B, H)
    h_all,  # (T, B, H)
    grad_h_all,  # (T, B, H)
    grad_h_last,  # (B, H)
    grad_pre,  # (T, B, H)
    grad_u,  # (B, H), each column its own sum over T
    grad_h_0,  # (B, H)
    steps,
    columns,
    hidden,
    BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    u = tl.load(u + column % hidden, mask=inside, other=0.0)
    along_h = tl.load(grad_h_last + column, mask=inside, other=0.0)
    along_u = tl.full((BLOCK,), 0.0, tl.float32)
    stride = columns.to(tl.int64)
    h_all += column
    grad_h_all += column
    grad_pre += column
    h = tl.load(h_all + (steps - 1) * stride, mask=inside, other=0.0).to(tl.float32)
    h_0 = tl.load(h_0 + column, mask=inside, other=0.0)
    before_ahead = load_steps(h_all, stride, steps - 2, 0, steps, inside, -1, AHEAD)
    grad_ahead = load_steps(grad_h_all, stride, steps - 1, 0, steps, inside, -1, AHEAD)
    for done in range(0, steps, AHEAD):
        last = steps - 1 - done
        before_now = before_ahead
        grad_now = grad_ahead
        before_ahead = load_steps(h_all, stride, last - AHEAD - 1, 0, steps, inside, -1, AHEAD)
        grad_ahead = load_steps(grad_h_all, stride, last - AHEAD, 0, steps, inside, -1, AHEAD)
        grad_pre_now = grad_pre + last * stride
        for i in tl.static_range(AHEAD):
            n = last - i
            if n >= 0:
                along_h += grad_now[i].to(tl.float32)
                along_pre = tl.where(h <= 0.0, 0.0, along_h)
                h = tl.where(n > 0, before_now[i].to(tl.float32), h_0)
                along_u += along_pre * h
                along_h = along_pre * u
                tl.store(grad_pre_now - i * stride, along_pre, mask=inside)
    tl.store(grad_u + column, along_u, mask=inside)
    tl.store(grad_h_0 + column, along_h, mask=inside)


@torch.library.custom_op("longwave::indrnn_triton", mutates_args=())
def forward(pre: Tensor, u: Tensor, h_0: Tensor) -> tuple[Tensor, Tensor]:
    """h for every step, and the last one in float32."""
    h_all, h_last = _results(pre, u, h_0)
    launch_columns(indrnn_forward_kernel, pre, (pre, u, h_0, h_all, h_last))
    return h_all, h_last


@forward.register_fake
def _results(pre, u, h_0):
    return torch.empty_like(pre), torch.empty_like(h_0)


@torch.library.custom_op("longwave::indrnn_triton_backward", mutates_args=())
def backward(
    u: Tensor, h_0: Tensor, h_all: Tensor, grad_h_all: Tensor, grad_h_last: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of pre, of u by column, (B, H), and of h_0."""
    given = (u, h_0, h_all, grad_h_all, grad_h_last)
    gradients = _gradients(*given)
    launch_columns(indrnn_backward_kernel, h_all, (*given, *gradients))
    return gradients


@backward.register_fake
def _gradients(u, h_0, h_all, *_):
    return torch.empty_like(h_all), torch.empty_like(h_0), torch.empty_like(h_0)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:], output[0])


def _differentiate(ctx, grad_h_all, grad_h_last):
    grad_pre, grad_u, grad_h_0 = backward(*ctx.saved_tensors, grad_h_all.contiguous(), grad_h_last.contiguous())
    # No atomics: each column has summed over its time, and this sums the columns of a unit in a fixed order.
    return grad_pre, grad_u.sum(dim=0), grad_h_0


forward.register_autograd(_differentiate, setup_context=_save)
refuse_second_derivatives("indrnn", backward)


def indrnn(pre: Tensor, u: Tensor, h_0: Tensor) -> tuple[Tensor, Tensor]:
    """The backend of :func:`longwave.kernels.indrnn`: h for every step, and the final h.

    The sequence is of the type of ``pre``, float32, bfloat16 or float16; the state is float32. The gradient of u uses
    the stored h, so that it is rounded as ``pre`` is.
    """
    return forward(*(t.contiguous() for t in (pre, u.float(), h_0.float())))
