"""The recurrence with modReLU in Triton: the equation is in reference.py."""

import triton
import triton.language as tl

from longwave.kernels.dense import fused
from longwave.kernels.operation import OPERATIONS


@triton.jit
def sign(v):
    """+1, -1, or 0, and NaN where v is."""
    return tl.where(v > 0.0, 1.0, tl.where(v < 0.0, -1.0, v))


@triton.jit
def forward_step(phase: tl.constexpr, state, product, pre, tape, unit):
    v = product[0] + pre[0]
    size = tl.abs(v) + unit[0]
    # A NaN is not below 0.
    return (sign(v) * tl.where(size < 0.0, 0.0, size),), (v,)


@triton.jit
def backward_step(phase: tl.constexpr, state, tape, unit, d_state, d_product):
    v = tape[0]
    d = tl.where(tl.abs(v) + unit[0] > 0.0, d_state[0], 0.0)
    # |v| has no slope at 0, and neither has sign(v).
    d_v = tl.where((v > 0.0) | (v < 0.0), d, 0.0)
    return (tl.full(v.shape, 0.0, tl.float32),), (d_v,), (), (d * sign(v),)


modrelu_rnn = fused(OPERATIONS["modrelu_rnn"], forward_step, backward_step)
