"""The LSTM in Triton: the equation is in reference.py."""

import triton
import triton.language as tl

from longwave.kernels.dense import fused
from longwave.kernels.device import sigmoid, tanh
from longwave.kernels.operation import OPERATIONS


@triton.jit
def forward_step(phase: tl.constexpr, state, product, pre, tape, unit):
    i = sigmoid(product[0] + pre[0])
    f = sigmoid(product[1] + pre[1])
    g = tanh(product[2] + pre[2])
    o = sigmoid(product[3] + pre[3])
    c = f * state[1] + i * g
    return (o * tanh(c), c), (i, f, g, o)


@triton.jit
def backward_step(phase: tl.constexpr, state, tape, unit, d_state, d_product):
    c_after, i, f, g, o = tape
    d_h, d_c = d_state
    # Again, rather than from the tape: it costs less than the memory.
    c = tanh(c_after)
    d_c += d_h * o * (1.0 - c * c)
    d_product = (
        d_c * g * i * (1.0 - i),
        d_c * state[1] * f * (1.0 - f),
        d_c * i * (1.0 - g * g),
        d_h * c * o * (1.0 - o),
    )
    return (tl.full(c.shape, 0.0, tl.float32), d_c * f), d_product, (), ()


lstm = fused(OPERATIONS["lstm"], forward_step, backward_step)
