"""The FastGRNN in Triton: the equation is in reference.py."""

import triton
import triton.language as tl

from longwave.kernels.dense import fused
from longwave.kernels.device import sigmoid, tanh
from longwave.kernels.operation import OPERATIONS


@triton.jit
def forward_step(phase: tl.constexpr, state, product, pre, tape, unit):
    both = product[0] + pre[0]
    z = sigmoid(both + unit[0])
    update = tanh(both + unit[1])
    return ((unit[2] * (1.0 - z) + unit[3]) * update + z * state[0],), (z, update)


@triton.jit
def backward_step(phase: tl.constexpr, state, tape, unit, d_state, d_product):
    z, update = tape
    d = d_state[0]
    d_z = d * (state[0] - unit[2] * update) * z * (1.0 - z)
    d_update = d * (unit[2] * (1.0 - z) + unit[3]) * (1.0 - update * update)
    return (d * z,), (d_z + d_update,), (), (d_z, d_update, d * update * (1.0 - z), d * update)


fastgrnn = fused(OPERATIONS["fastgrnn"], forward_step, backward_step)
