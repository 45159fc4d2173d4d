"""The UGRNN in Triton: the equation is in reference.py."""

import triton
import triton.language as tl

from longwave.kernels.dense import fused
from longwave.kernels.device import sigmoid, tanh
from longwave.kernels.operation import OPERATIONS


@triton.jit
def forward_step(phase: tl.constexpr, state, product, pre, tape, unit):
    g = sigmoid(product[0] + pre[0])
    c = tanh(product[1] + pre[1])
    return (c + g * (state[0] - c),), (g, c)


@triton.jit
def backward_step(phase: tl.constexpr, state, tape, unit, d_state, d_product):
    g, c = tape
    d = d_state[0]
    return (d * g,), (d * (state[0] - c) * g * (1.0 - g), d * (1.0 - g) * (1.0 - c * c)), (), ()


ugrnn = fused(OPERATIONS["ugrnn"], forward_step, backward_step)
