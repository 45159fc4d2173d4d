"""The GRU in Triton: the equation is in reference.py."""

import triton
import triton.language as tl

from longwave.kernels.dense import fused
from longwave.kernels.device import sigmoid, tanh
from longwave.kernels.operation import OPERATIONS


@triton.jit
def forward_step(phase: tl.constexpr, state, product, pre, tape, unit):
    r = sigmoid(product[0] + pre[0])
    u = sigmoid(product[1] + pre[1])
    of_m = product[2] + unit[0]
    m = tanh(pre[2] + r * of_m)
    return (m + u * (state[0] - m),), (r, u, m, of_m)


@triton.jit
def backward_step(phase: tl.constexpr, state, tape, unit, d_state, d_product):
    r, u, m, of_m = tape
    d_h = d_state[0]
    d_m = d_h * (1.0 - u) * (1.0 - m * m)
    d_r = d_m * of_m * r * (1.0 - r)
    d_u = d_h * (state[0] - m) * u * (1.0 - u)
    return (d_h * u,), (d_r, d_u, d_m * r), (d_r, d_u, d_m), (d_m * r,)


gru = fused(OPERATIONS["gru"], forward_step, backward_step, own_d_pre=True)
