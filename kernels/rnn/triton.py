"""Elman's RNN in Triton: the equation is in reference.py."""

import triton
import triton.language as tl

from longwave.kernels.dense import fused
from longwave.kernels.device import tanh
from longwave.kernels.operation import OPERATIONS


@triton.jit
def forward_step(phase: tl.constexpr, state, product, pre, tape, unit):
    h = tanh(product[0] + pre[0])
    return (h,), (h,)


@triton.jit
def backward_step(phase: tl.constexpr, state, tape, unit, d_state, d_product):
    return (tl.full(tape[0].shape, 0.0, tl.float32),), (d_state[0] * (1.0 - tape[0] * tape[0]),), (), ()


rnn = fused(OPERATIONS["rnn"], forward_step, backward_step)
