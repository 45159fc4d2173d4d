"""The recurrence with a leaky ReLU in Triton: the equation is in reference.py."""

import triton
import triton.language as tl

from longwave.kernels.dense import fused
from longwave.kernels.operation import OPERATIONS


@triton.jit
def forward_step(phase: tl.constexpr, state, product, pre, tape, unit):
    v = product[0] + pre[0]
    return (tl.where(v > 0.0, v, unit[0] * v),), (v,)


@triton.jit
def backward_step(phase: tl.constexpr, state, tape, unit, d_state, d_product):
    v, d = tape[0], d_state[0]
    d_v = tl.where(v > 0.0, d, unit[0] * d)
    return (tl.full(v.shape, 0.0, tl.float32),), (d_v,), (), (tl.where(v > 0.0, 0.0, d * v),)


leaky_relu_rnn = fused(OPERATIONS["leaky_relu_rnn"], forward_step, backward_step)
