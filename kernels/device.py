"""Functions that the Triton kernels share."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

# One warp a program spreads few columns over many multiprocessors; 32 such programs on each saturate its schedulers.
BLOCK = 32
# Steps whose loads are issued before the first is needed: 8 steps take about as long as one load from memory.
AHEAD = 8


def launch_columns(
    kernel, like: Tensor, tensors: Sequence[Tensor], *numbers: int, constants: Sequence[bool] = (), parts: int = 1
) -> None:
    """Runs a kernel of a diagonal cell: one thread for each (batch, unit) column of ``like`` (T, B, H).

    ``constants`` are the kernel's constexprs behind BLOCK and AHEAD. There are ``parts`` threads for each column.
    """
    steps, batch, hidden = like.shape
    columns = batch * hidden
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.cuda.device_of(like):
        grid = (triton.cdiv(columns, BLOCK), parts)
        kernel[grid](*tensors, steps, columns, hidden, *numbers, BLOCK, AHEAD, *constants, num_warps=1)


@triton.jit
def tanh(x):
    """tanh in float32 that neither overflows nor loses a NaN (libdevice's does not exist in the interpreter).

    Below 0.625 an odd polynomial (Cephes), since 1 - 2 / (exp(2x) + 1) cancels there; above, exp may become inf, whose
    reciprocal is the right limit.
    """
    square = x * x
    series = (-5.70498872745e-3 * square + 2.06390887954e-2) * square - 5.37397155531e-2
    series = (series * square + 1.33314422036e-1) * square - 3.33332819422e-1
    near = x + x * square * series
    size = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    # A NaN fails both comparisons and leaves through -far, which is NaN too.
    return tl.where(size < 0.625, near, tl.where(x > 0.0, far, -far))


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def load_steps(pointer, stride, first, start, stop, inside, STEP: tl.constexpr, AHEAD: tl.constexpr):
    """A tuple of what ``pointer`` holds at the steps first, first + STEP, ..., 0 for those outside [start, stop).

    A tuple and an unrolled loop rather than a rotating queue: moving a register that a load has yet to fill stalls,
    so a queue of any depth would wait for every load one step after it was issued.
    """
    pointer += first * stride
    values = ()
    for i in tl.static_range(AHEAD):
        n = first + i * STEP
        values += (tl.load(pointer + i * STEP * stride, mask=inside & (n >= start) & (n < stop), other=0.0),)
    return values
