"""UnICORNN in Triton: one thread a (batch, unit) column, serial over T, the backward rebuilding the states."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from longwave.kernels.derivatives import refuse_second_derivatives
from longwave.kernels.device import launch_columns, load_steps, tanh


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
    results = _results(pre, w, d, alpha, y_0, z_0, segment)
    launch_columns(unicornn_forward_kernel, pre, (pre, w, d, alpha, y_0, z_0, *results), segment)
    return results


@forward.register_fake
def _results(pre, w, d, alpha, y_0, z_0, segment):
    ends = (triton.cdiv(pre.shape[0], segment), *y_0.shape)
    return torch.empty_like(pre), y_0.new_empty(ends), y_0.new_empty(ends)


@torch.library.custom_op("longwave::unicornn_triton_backward", mutates_args=())
def backward(saved: Sequence[Tensor], cotangents: Sequence[Tensor], segment: int) -> tuple[Tensor, Tensor]:
    """The gradient of pre, and those of w, d, alpha, y_0 and z_0 by column, (5, B, H)."""
    grad_pre, grads = _gradients(saved, cotangents, segment)
    launch_columns(unicornn_backward_kernel, grad_pre, (*saved, *cotangents, grad_pre, *grads), segment)
    return grad_pre, grads


@backward.register_fake
def _gradients(saved, cotangents, segment):
    pre, w = saved[:2]
    return torch.empty_like(pre), w.new_empty(5, *pre.shape[1:])


def _save(ctx, inputs, output):
    *tensors, _y_0, _z_0, ctx.segment = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _differentiate(ctx, grad_y_all, grad_y_end, grad_z_end):
    # Of the ends only the last leaves this file, so only it can have a cotangent.
    cotangents = [grad.contiguous() for grad in (grad_y_all, grad_y_end[-1], grad_z_end[-1])]
    grad_pre, grads = backward(ctx.saved_tensors, cotangents, ctx.segment)
    # No atomics: each column has summed over its time, and this sums the columns of a unit in a fixed order.
    grad_w, grad_d, grad_alpha = grads[:3].sum(dim=1)
    return grad_pre, grad_w, grad_d, grad_alpha, grads[3], grads[4], None


forward.register_autograd(_differentiate, setup_context=_save)
refuse_second_derivatives("unicornn", backward)


def unicornn(
    pre: Tensor, w: Tensor, c: Tensor, dt: Tensor, alpha: Tensor, y_0: Tensor, z_0: Tensor, anchor: int = 256
) -> tuple[Tensor, Tensor, Tensor]:
    """The backend of :func:`longwave.kernels.unicornn`: y for every step, and the final y and z.

    The sequence is of the type of ``pre``, float32, bfloat16 or float16; the state is float32 throughout, since a
    rounded one could not be run backwards. With ``anchor`` 0 only the last state is stored for the backward pass.
    """
    # Once for all steps, and differentiated by PyTorch.
    d = dt.float() * c.float().sigmoid()
    tensors = (pre, w.float(), d, alpha.float(), y_0.float(), z_0.float())
    y_all, y_end, z_end = forward(*(t.contiguous() for t in tensors), anchor or pre.shape[0])
    return y_all, y_end[-1], z_end[-1]
