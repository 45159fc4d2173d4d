"""The FastRNN in Triton: the equation is in reference.py."""

import triton
import triton.language as tl

from longwave.kernels.dense import fused
from longwave.kernels.device import tanh
from longwave.kernels.operation import OPERATIONS


@triton.jit
def forward_step(phase: tl.constexpr, state, product, pre, tape, unit):
    update = tanh(product[0] + pre[0])
    return (unit[0] * update + unit[1] * state[0],), (update,)


@triton.jit
def backward_step(phase: tl.constexpr, state, tape, unit, d_state, d_product):
    (update,), (d,), (alpha, beta) = tape, d_state, unit
    return (d * beta,), (d * alpha * (1.0 - update * update),), (), (d * update, d * state[0])


fastrnn = fused(OPERATIONS["fastrnn"], forward_step, backward_step)
