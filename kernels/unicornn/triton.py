"""UnICORNN in Triton: one thread a (batch, unit) column, serial over T, the backward rebuilding the states."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from longwave.kernels.device import load_steps, tanh

# One warp a program spreads few columns over many multiprocessors; 32 such programs on each saturate its schedulers.
BLOCK = 32
# Steps whose loads are issued before the first is needed: 8 steps take about as long as one load from memory.
AHEAD = 8


@triton.jit(do_not_specialize=["steps", "columns", "hidden", "segment"])
def unicornn_forward_kernel(
    pre,  # (T, B, H)
    w,  # (H)
    d,  # (H)
    alpha,  # (H)
    y_0,  # (B, H)
    z_0,  # (B, H)
    y_all,  # (T, B, H)
    y_end,  # (S, B, H), at the end of each segment
    z_end,  # (S, B, H)
    steps,
    columns,
    hidden,
    segment,
    BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    unit = column % hidden
    w = tl.load(w + unit, mask=inside, other=0.0)
    d = tl.load(d + unit, mask=inside, other=0.0)
    alpha = tl.load(alpha + unit, mask=inside, other=0.0)
    y = tl.load(y_0 + column, mask=inside, other=0.0)
    z = tl.load(z_0 + column, mask=inside, other=0.0)
    # T * B * H can exceed 2^31.
    stride = columns.to(tl.int64)
    pre += column
    y_all += column
    y_end += column
    z_end += column
    for start in range(0, steps, segment):
        stop = tl.minimum(start + segment, steps)
        pre_ahead = load_steps(pre, stride, start, start, stop, inside, 1, AHEAD)
        for first in range(start, stop, AHEAD):
            pre_now = pre_ahead
            pre_ahead = load_steps(pre, stride, first + AHEAD, start, stop, inside, 1, AHEAD)
            y_now = y_all + first * stride
            for i in tl.static_range(AHEAD):
                if first + i < stop:
                    z -= d * (tanh(w * y + pre_now[i].to(tl.float32)) + alpha * y)
                    y += d * z
                    tl.store(y_now + i * stride, y, mask=inside)
        tl.store(y_end, y, mask=inside)
        tl.store(z_end, z, mask=inside)
        y_end += stride
        z_end += stride


@triton.jit(do_not_specialize=["steps", "columns", "hidden", "segment"])
def unicornn_backward_kernel(
    pre,  # (T, B, H)
    w,  # (H)
    d,  # (H)
    alpha,  # (H)
    y_end,  # (S, B, H)
    z_end,  # (S, B, H)
    grad_y_all,  # (T, B, H)
    grad_y_last,  # (B, H)
    grad_z_last,  # (B, H)
    grad_pre,  # (T, B, H)
    grad_w,  # (B, H), as the five below: each column its own sum over T
    grad_d,
    grad_alpha,
    grad_y_0,
    grad_z_0,
    steps,
    columns,
    hidden,
    segment,
    BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    unit = column % hidden
    w = tl.load(w + unit, mask=inside, other=0.0)
    d = tl.load(d + unit, mask=inside, other=0.0)
    alpha = tl.load(alpha + unit, mask=inside, other=0.0)
    along_y = tl.load(grad_y_last + column, mask=inside, other=0.0)
    along_z = tl.load(grad_z_last + column, mask=inside, other=0.0)
    along_w = tl.full((BLOCK,), 0.0, tl.float32)
    along_d = tl.full((BLOCK,), 0.0, tl.float32)
    along_alpha = tl.full((BLOCK,), 0.0, tl.float32)
    stride = columns.to(tl.int64)
    pre += column
    grad_y_all += column
    grad_pre += column
    segments = (steps + segment - 1) // segment
    y_end += column + segments * stride
    z_end += column + segments * stride
    for back in range(segments):
        start = (segments - 1 - back) * segment
        stop = tl.minimum(start + segment, steps)
        y_end -= stride
        z_end -= stride
        y = tl.load(y_end, mask=inside, other=0.0)
        z = tl.load(z_end, mask=inside, other=0.0)
        pre_ahead = load_steps(pre, stride, stop - 1, start, stop, inside, -1, AHEAD)
        grad_ahead = load_steps(grad_y_all, stride, stop - 1, start, stop, inside, -1, AHEAD)
        for done in range(0, stop - start, AHEAD):
            last = stop - 1 - done
            pre_now = pre_ahead
            grad_now = grad_ahead
            pre_ahead = load_steps(pre, stride, last - AHEAD, start, stop, inside, -1, AHEAD)
            grad_ahead = load_steps(grad_y_all, stride, last - AHEAD, start, stop, inside, -1, AHEAD)
            grad_pre_now = grad_pre + last * stride
            for i in tl.static_range(AHEAD):
                if last - i >= start:
                    # (y, z) are those after the step, and become those before it.
                    z_after = z
                    y -= d * z
                    force = tanh(w * y + pre_now[i].to(tl.float32))
                    pull = force + alpha * y
                    z += d * pull
                    along_y += grad_now[i].to(tl.float32)
                    along_z += d * along_y
                    along_d += along_y * z_after - along_z * pull
                    along_pull = -d * along_z
                    along_pre = along_pull * (1.0 - force * force)
                    along_w += along_pre * y
                    along_alpha += along_pull * y
                    along_y += along_pre * w + along_pull * alpha
                    tl.store(grad_pre_now - i * stride, along_pre, mask=inside)
    tl.store(grad_w + column, along_w, mask=inside)
    tl.store(grad_d + column, along_d, mask=inside)
    tl.store(grad_alpha + column, along_alpha, mask=inside)
    tl.store(grad_y_0 + column, along_y, mask=inside)
    tl.store(grad_z_0 + column, along_z, mask=inside)


@torch.library.custom_op("longwave::unicornn_triton", mutates_args=())
def forward(
    pre: Tensor, w: Tensor, d: Tensor, alpha: Tensor, y_0: Tensor, z_0: Tensor, segment: int
) -> tuple[Tensor, Tensor, Tensor]:
    """y for every step, and (y, z) at the end of each segment: what the backward starts each segment from."""
    y_all, y_end, z_end = _results(pre, w, d, alpha, y_0, z_0, segment)
    steps, batch, hidden = pre.shape
    columns = batch * hidden
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.cuda.device_of(pre):
        unicornn_forward_kernel[(triton.cdiv(columns, BLOCK),)](
            *(pre, w, d, alpha, y_0, z_0, y_all, y_end, z_end, steps, columns, hidden, segment, BLOCK, AHEAD),
            num_warps=1,
        )
    return y_all, y_end, z_end


@forward.register_fake
def _results(pre, w, d, alpha, y_0, z_0, segment):
    segments = triton.cdiv(pre.shape[0], segment)
    y_end, z_end = (y_0.new_empty(segments, *y_0.shape) for _ in range(2))
    return torch.empty_like(pre), y_end, z_end


@torch.library.custom_op("longwave::unicornn_triton_backward", mutates_args=())
def backward(
    pre: Tensor,
    w: Tensor,
    d: Tensor,
    alpha: Tensor,
    y_end: Tensor,
    z_end: Tensor,
    grad_y_all: Tensor,
    grad_y_last: Tensor,
    grad_z_last: Tensor,
    segment: int,
) -> tuple[Tensor, Tensor]:
    """The gradient of pre, and those of w, d, alpha, y_0 and z_0 by column, (5, B, H)."""
    grad_pre, grads = _gradients(pre, w, d, alpha, y_end, z_end, grad_y_all, grad_y_last, grad_z_last, segment)
    steps, batch, hidden = pre.shape
    columns = batch * hidden
    with torch.cuda.device_of(pre):
        unicornn_backward_kernel[(triton.cdiv(columns, BLOCK),)](
            *(pre, w, d, alpha, y_end, z_end, grad_y_all, grad_y_last, grad_z_last, grad_pre, *grads),
            *(steps, columns, hidden, segment, BLOCK, AHEAD),
            num_warps=1,
        )
    return grad_pre, grads


@backward.register_fake
def _gradients(pre, w, d, alpha, y_end, z_end, grad_y_all, grad_y_last, grad_z_last, segment):
    return torch.empty_like(pre), w.new_empty(5, *pre.shape[1:])


def _save(ctx, inputs, output):
    pre, w, d, alpha, _, _, ctx.segment = inputs
    _, y_end, z_end = output
    ctx.save_for_backward(pre, w, d, alpha, y_end, z_end)


def _differentiate(ctx, grad_y_all, grad_y_end, grad_z_end):
    # Of the ends only the last leaves this file, so only it can have a cotangent.
    cotangents = (grad_y_all.contiguous(), grad_y_end[-1].contiguous(), grad_z_end[-1].contiguous())
    grad_pre, grads = backward(*ctx.saved_tensors, *cotangents, ctx.segment)
    # No atomics: each column has summed over its time, and this sums the columns of a unit in a fixed order.
    grad_w, grad_d, grad_alpha = grads[:3].sum(dim=1)
    return grad_pre, grad_w, grad_d, grad_alpha, grads[3], grads[4], None


forward.register_autograd(_differentiate, setup_context=_save)


def unicornn(
    pre: Tensor, w: Tensor, c: Tensor, dt: Tensor, alpha: Tensor, y_0: Tensor, z_0: Tensor, anchor: int = 256
) -> tuple[Tensor, Tensor, Tensor]:
    """The fused UnICORNN recurrence; the equations are at :func:`longwave.kernels.unicornn`.

    The state is float32 throughout, whatever the dtype of ``pre``, since a rounded one could not be run backwards.

    Args:
        pre: (T, B, H); float32, bfloat16 or float16.
        w: (H,).
        c: (H,).
        dt: (H,).
        alpha: (H,).
        y_0: (B, H), initial position.
        z_0: (B, H), initial velocity.
        anchor: the state is stored every ``anchor`` steps for the backward pass; 0 stores the last one only.

    Returns:
        y for every step, (T, B, H), in the dtype of ``pre``; the final y and z, (B, H), in float32.
    """
    # Once for all steps, and differentiated by PyTorch.
    d = dt.float() * c.float().sigmoid()
    tensors = (pre, w.float(), d, alpha.float(), y_0.float(), z_0.float())
    y_all, y_end, z_end = forward(*(t.contiguous() for t in tensors), anchor or pre.shape[0])
    return y_all, y_end[-1], z_end[-1]
