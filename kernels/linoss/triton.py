"""LinOSS in Triton: one thread a (batch, unit) column, serial over T, or over segments of it that a scan joins."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from longwave.kernels.derivatives import refuse_second_derivatives
from longwave.kernels.device import AHEAD, BLOCK, launch_columns, load_steps
from longwave.kernels.linoss.reference import damping

# Programs of one warp that keep a card busy: 8 for each of 128 multiprocessors. Not those of the card at hand, so that
# a result does not depend on it.
PROGRAMS = 1024
# Steps of the serial loop that take as long as the three launches of a scan in place of one: 10 microseconds.
LAUNCHES = 1024
# The shortest segment.
SHORTEST = 64


def segment_length(steps: int, columns: int) -> int:
    """Steps of a segment: a power of two where columns are few and steps many, else all of them, the serial loop.

    A scan has the steps of a segment one after the other twice, and those that join the segments.
    """
    wanted = max(SHORTEST, steps * triton.cdiv(columns, BLOCK) // PROGRAMS)
    segment = 1 << (wanted.bit_length() - 1)
    return segment if 2 * segment + steps // segment + LAUNCHES < steps else steps


@triton.jit(do_not_specialize=["steps", "columns", "hidden", "segment"])
def linoss_forward_kernel(
    pre,  # (T, B, H)
    s,  # (H)
    a,  # (H)
    dt,  # (H)
    y_start,  # (S, B, H), at the start of each segment; without SEQUENCE (B, H), that of the first: the others are 0
    z_start,
    y_all,  # (T, B, H), with SEQUENCE, as the two below
    y_kept,  # (T / AHEAD, B, H), before every AHEAD-th step
    z_kept,
    y_end,  # (B, H), after the last step; without SEQUENCE at the end of each segment, (S, B, H)
    z_end,
    steps,
    columns,
    hidden,
    segment,
    BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
    SEQUENCE: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    unit = column % hidden
    s = tl.load(s + unit, mask=inside, other=0.0)
    a = tl.load(a + unit, mask=inside, other=0.0)
    dt = tl.load(dt + unit, mask=inside, other=0.0)
    # T * B * H can exceed 2^31.
    stride = columns.to(tl.int64)
    own = tl.program_id(1) * stride
    start = tl.program_id(1) * segment
    stop = tl.minimum(start + segment, steps)
    if SEQUENCE:
        y = tl.load(y_start + own + column, mask=inside, other=0.0)
        z = tl.load(z_start + own + column, mask=inside, other=0.0)
    else:
        y = tl.load(y_start + column, mask=inside & (start == 0), other=0.0)
        z = tl.load(z_start + column, mask=inside & (start == 0), other=0.0)
    pre += column
    y_all += column
    y_kept += column
    z_kept += column
    pre_ahead = load_steps(pre, stride, start, start, stop, inside, 1, AHEAD)
    for first in range(start, stop, AHEAD):
        pre_now = pre_ahead
        pre_ahead = load_steps(pre, stride, first + AHEAD, start, stop, inside, 1, AHEAD)
        if SEQUENCE:
            tl.store(y_kept + first // AHEAD * stride, y, mask=inside)
            tl.store(z_kept + first // AHEAD * stride, z, mask=inside)
        y_now = y_all + first * stride
        for i in tl.static_range(AHEAD):
            if first + i < stop:
                z = s * (z + dt * (pre_now[i].to(tl.float32) - a * y))
                y += dt * z
                if SEQUENCE:
                    tl.store(y_now + i * stride, y, mask=inside)
    if SEQUENCE:
        tl.store(y_end + column, y, mask=inside & (stop == steps))
        tl.store(z_end + column, z, mask=inside & (stop == steps))
    else:
        tl.store(y_end + own + column, y, mask=inside)
        tl.store(z_end + own + column, z, mask=inside)


@triton.jit(do_not_specialize=["steps", "columns", "hidden", "segment"])
def linoss_adjoint_kernel(
    s,  # (H)
    a,  # (H)
    dt,  # (H)
    grad_y_all,  # (T, B, H)
    grad_y_last,  # (B, H)
    grad_z_last,  # (B, H)
    y_end,  # (S, B, H), the gradients at the start of each segment, where those at its end are 0 but for the last one's
    z_end,
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
    s = tl.load(s + unit, mask=inside, other=0.0)
    a = tl.load(a + unit, mask=inside, other=0.0)
    dt = tl.load(dt + unit, mask=inside, other=0.0)
    stride = columns.to(tl.int64)
    own = tl.program_id(1) * stride
    start = tl.program_id(1) * segment
    stop = tl.minimum(start + segment, steps)
    along_y = tl.load(grad_y_last + column, mask=inside & (stop == steps), other=0.0)
    along_z = tl.load(grad_z_last + column, mask=inside & (stop == steps), other=0.0)
    grad_y_all += column
    grad_ahead = load_steps(grad_y_all, stride, stop - 1, start, stop, inside, -1, AHEAD)
    for done in range(0, stop - start, AHEAD):
        last = stop - 1 - done
        grad_now = grad_ahead
        grad_ahead = load_steps(grad_y_all, stride, last - AHEAD, start, stop, inside, -1, AHEAD)
        for i in tl.static_range(AHEAD):
            if last - i >= start:
                along_y += grad_now[i].to(tl.float32)
                along_z = s * (along_z + dt * along_y)
                along_y -= a * (dt * along_z)
    tl.store(y_end + own + column, along_y, mask=inside)
    tl.store(z_end + own + column, along_z, mask=inside)


@triton.jit(do_not_specialize=["segments", "columns", "hidden", "segment"])
def linoss_join_kernel(
    s,  # (H)
    a,  # (H)
    dt,  # (H)
    y_first,  # (B, H), where the first segment starts
    z_first,
    y_end,  # (S, B, H), the end of each segment, but the first from 0
    z_end,
    y_start,  # (S, B, H), where each segment starts
    z_start,
    segments,
    columns,
    hidden,
    segment,
    BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
    BACKWARD: tl.constexpr,  # the gradients, from the last segment to the first
):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    unit = column % hidden
    # In float64: an error in the power would be made again at each segment.
    s = tl.load(s + unit, mask=inside, other=0.0).to(tl.float64)
    a = tl.load(a + unit, mask=inside, other=0.0).to(tl.float64)
    dt = tl.load(dt + unit, mask=inside, other=0.0).to(tl.float64)
    # (y, z) after a step without drive, by that before.
    yy = 1.0 - dt * dt * s * a
    yz = dt * s
    zy = -dt * s * a
    zz = s
    if BACKWARD:
        yz, zy = zy, yz
    power = 1
    while power < segment:
        trace, both = yy + zz, yz * zy
        yy = yy * yy + both
        zz = zz * zz + both
        yz *= trace
        zy *= trace
        power *= 2
    stride = columns.to(tl.int64)
    y = tl.load(y_first + column, mask=inside, other=0.0).to(tl.float64)
    z = tl.load(z_first + column, mask=inside, other=0.0).to(tl.float64)
    if BACKWARD:
        column += (segments - 1) * stride
        stride = -stride
    y_end += column
    z_end += column
    y_start += column
    z_start += column
    y_ahead = load_steps(y_end, stride, 0, 0, segments, inside, 1, AHEAD)
    z_ahead = load_steps(z_end, stride, 0, 0, segments, inside, 1, AHEAD)
    for first in range(0, segments, AHEAD):
        y_now = y_ahead
        z_now = z_ahead
        y_ahead = load_steps(y_end, stride, first + AHEAD, 0, segments, inside, 1, AHEAD)
        z_ahead = load_steps(z_end, stride, first + AHEAD, 0, segments, inside, 1, AHEAD)
        for i in tl.static_range(AHEAD):
            if first + i < segments:
                tl.store(y_start + (first + i) * stride, y.to(tl.float32), mask=inside)
                tl.store(z_start + (first + i) * stride, z.to(tl.float32), mask=inside)
                # The end of the first segment is its own.
                carried_y = tl.where(first + i > 0, yy * y + yz * z, 0.0)
                carried_z = tl.where(first + i > 0, zy * y + zz * z, 0.0)
                y = carried_y + y_now[i]
                z = carried_z + z_now[i]


@triton.jit(do_not_specialize=["steps", "columns", "hidden", "segment"])
def linoss_backward_kernel(
    pre,  # (T, B, H)
    s,  # (H)
    a,  # (H)
    dt,  # (H)
    y_kept,  # (T / AHEAD, B, H), before every AHEAD-th step
    z_kept,
    grad_y_all,  # (T, B, H)
    y_start,  # (S, B, H), the gradients at the end of each segment
    z_start,
    grad_pre,  # (T, B, H)
    grad_s,  # (S, B, H), each column its own sum over a segment, as the two below
    grad_a,
    grad_dt,
    grad_y_0,  # (B, H)
    grad_z_0,  # (B, H)
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
    s = tl.load(s + unit, mask=inside, other=0.0)
    a = tl.load(a + unit, mask=inside, other=0.0)
    dt = tl.load(dt + unit, mask=inside, other=0.0)
    stride = columns.to(tl.int64)
    own = tl.program_id(1) * stride + column
    start = tl.program_id(1) * segment
    stop = tl.minimum(start + segment, steps)
    along_y = tl.load(y_start + own, mask=inside, other=0.0)
    along_z = tl.load(z_start + own, mask=inside, other=0.0)
    along_s = tl.full((BLOCK,), 0.0, tl.float32)
    along_a = tl.full((BLOCK,), 0.0, tl.float32)
    along_dt = tl.full((BLOCK,), 0.0, tl.float32)
    pre += column
    y_kept += column
    z_kept += column
    grad_y_all += column
    grad_pre += column
    groups = (stop - start + AHEAD - 1) // AHEAD
    first = start + (groups - 1) * AHEAD
    pre_ahead = load_steps(pre, stride, first, start, stop, inside, 1, AHEAD)
    grad_ahead = load_steps(grad_y_all, stride, first, start, stop, inside, 1, AHEAD)
    y_ahead = tl.load(y_kept + first // AHEAD * stride, mask=inside, other=0.0)
    z_ahead = tl.load(z_kept + first // AHEAD * stride, mask=inside, other=0.0)
    for _ in range(groups):
        pre_now = pre_ahead
        grad_now = grad_ahead
        y = y_ahead
        z = z_ahead
        before = first - AHEAD
        pre_ahead = load_steps(pre, stride, before, start, stop, inside, 1, AHEAD)
        grad_ahead = load_steps(grad_y_all, stride, before, start, stop, inside, 1, AHEAD)
        y_ahead = tl.load(y_kept + before // AHEAD * stride, mask=inside & (before >= start), other=0.0)
        z_ahead = tl.load(z_kept + before // AHEAD * stride, mask=inside & (before >= start), other=0.0)
        # The steps again, which cannot be undone: the implicit one contracts.
        y_before = ()
        force = ()
        raw_z = ()
        for i in tl.static_range(AHEAD):
            y_before += (y,)
            force += (pre_now[i].to(tl.float32) - a * y,)
            raw_z += (z + dt * force[i],)
            z = s * raw_z[i]
            y += dt * z
        grad_pre_now = grad_pre + first * stride
        for i in tl.static_range(AHEAD - 1, -1, -1):
            if first + i < stop:
                along_y += grad_now[i].to(tl.float32)
                along_z += dt * along_y
                along_dt += along_y * (s * raw_z[i])
                along_s += along_z * raw_z[i]
                along_z *= s
                along_dt += along_z * force[i]
                along_pre = dt * along_z
                along_a -= along_pre * y_before[i]
                along_y -= a * along_pre
                tl.store(grad_pre_now + i * stride, along_pre, mask=inside)
        first = before
    tl.store(grad_s + own, along_s, mask=inside)
    tl.store(grad_a + own, along_a, mask=inside)
    tl.store(grad_dt + own, along_dt, mask=inside)
    tl.store(grad_y_0 + column, along_y, mask=inside & (start == 0))
    tl.store(grad_z_0 + column, along_z, mask=inside & (start == 0))


@torch.library.custom_op("longwave::linoss_triton", mutates_args=())
def forward(
    pre: Tensor, s: Tensor, a: Tensor, dt: Tensor, y_0: Tensor, z_0: Tensor, segment: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y for every step, the final y and z, and both before every AHEAD-th step."""
    y_all, y_last, z_last, y_kept, z_kept = results = _results(pre, s, a, dt, y_0, z_0, segment)
    units, states, segments = (s, a, dt), (y_0, z_0), triton.cdiv(pre.shape[0], segment)
    rest = (y_all, y_kept, z_kept)
    if segments > 1:
        ends = y_0.new_empty(2, segments, *y_0.shape)
        _launch(linoss_forward_kernel, pre, segment, (pre, *units, *states, *rest, *ends), False)
        states = _joined(units, states, ends, segment, False)
    _launch(linoss_forward_kernel, pre, segment, (pre, *units, *states, *rest, y_last, z_last), True)
    return results


@forward.register_fake
def _results(pre, s, a, dt, y_0, z_0, segment):
    kept = (triton.cdiv(pre.shape[0], AHEAD), *y_0.shape)
    return torch.empty_like(pre), *(y_0.new_empty(shape) for shape in (y_0.shape, y_0.shape, kept, kept))


@torch.library.custom_op("longwave::linoss_triton_backward", mutates_args=())
def backward(
    saved: Sequence[Tensor], cotangents: Sequence[Tensor], segment: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of pre, those of s, a and dt by segment and column, (3, S, B, H), and those of y_0 and z_0."""
    pre, *units, _, _ = saved
    grad_y_all, *states = cotangents
    grad_pre, sums, *initial = gradients = _gradients(saved, cotangents, segment)
    if sums.shape[1] > 1:
        ends = torch.empty_like(sums[:2])
        _launch(linoss_adjoint_kernel, pre, segment, (*units, grad_y_all, *states, *ends))
        states = _joined(units, states, ends, segment, True)
    _launch(linoss_backward_kernel, pre, segment, (*saved, grad_y_all, *states, grad_pre, *sums, *initial))
    return gradients


@backward.register_fake
def _gradients(saved, cotangents, segment):
    pre, s = saved[:2]
    columns = pre.shape[1:]
    sums = s.new_empty(3, triton.cdiv(pre.shape[0], segment), *columns)
    return torch.empty_like(pre), sums, s.new_empty(columns), s.new_empty(columns)


def _launch(kernel, like: Tensor, segment: int, tensors: Sequence[Tensor], *constants: bool) -> None:
    launch_columns(kernel, like, tensors, segment, constants=constants, parts=triton.cdiv(like.shape[0], segment))


def _joined(units, first, ends: Tensor, segment: int, backward: bool) -> Tensor:
    """What each segment starts from, (2, S, B, H)."""
    starts = torch.empty_like(ends)
    tensors = (*units, *first, *ends, *starts)
    launch_columns(linoss_join_kernel, ends[0], tensors, segment, constants=(backward,))
    return starts


def _save(ctx, inputs, output):
    *tensors, _y_0, _z_0, ctx.segment = inputs
    ctx.save_for_backward(*tensors, *output[3:])


def _differentiate(ctx, grad_y_all, grad_y_last, grad_z_last, *_):
    cotangents = [grad.contiguous() for grad in (grad_y_all, grad_y_last, grad_z_last)]
    grad_pre, sums, *initial = backward(ctx.saved_tensors, cotangents, ctx.segment)
    # No atomics: each column has summed over its segments, and this sums those of a unit in a fixed order.
    return grad_pre, *sums.sum(dim=(1, 2)), *initial, None


forward.register_autograd(_differentiate, setup_context=_save)
refuse_second_derivatives("linoss", backward)


def linoss(
    pre: Tensor, a: Tensor, dt: Tensor, y_0: Tensor, z_0: Tensor, discretisation: str = "im"
) -> tuple[Tensor, Tensor, Tensor]:
    """The backend of :func:`longwave.kernels.linoss`: y for every step, and the final y and z.

    The sequence is of the type of ``pre``, float32, bfloat16 or float16; the state is float32 throughout.
    """
    a, dt = a.float(), dt.float()
    # Once for all steps, and differentiated by PyTorch.
    s = damping(a, dt, discretisation)
    tensors = (pre, s, a, dt, y_0.float(), z_0.float())
    segment = segment_length(pre.shape[0], pre.shape[1] * pre.shape[2])
    y_all, y_last, z_last, *_ = forward(*(t.contiguous() for t in tensors), segment)
    return y_all, y_last, z_last
