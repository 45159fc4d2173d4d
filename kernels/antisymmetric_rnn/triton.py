"""The AntisymmetricRNN in Triton, plain and gated: the equation is in reference.py."""

import triton
import triton.language as tl

from longwave.kernels.dense import fused
from longwave.kernels.device import sigmoid, tanh
from longwave.kernels.operation import OPERATIONS


@triton.jit
def forward_step(phase: tl.constexpr, state, product, pre, tape, unit):
    force = tanh(product[0] + pre[0])
    return (state[0] + unit[0] * force,), (force,)


@triton.jit
def backward_step(phase: tl.constexpr, state, tape, unit, d_state, d_product):
    force = tape[0]
    d = d_state[0] * unit[0] * (1.0 - force * force)
    return d_state, (d,), (), (d_state[0] * force,)


@triton.jit
def gated_forward_step(phase: tl.constexpr, state, product, pre, tape, unit):
    # Both gates take the same product.
    u = sigmoid(product[0] + pre[0])
    force = tanh(product[0] + pre[1])
    return (state[0] + unit[0] * u * force,), (u, force)


@triton.jit
def gated_backward_step(phase: tl.constexpr, state, tape, unit, d_state, d_product):
    u, force = tape
    d = d_state[0] * unit[0]
    d_u = d * force * u * (1.0 - u)
    d_force = d * u * (1.0 - force * force)
    return d_state, (d_u + d_force,), (d_u, d_force), (d_state[0] * u * force,)


antisymmetric_rnn = fused(OPERATIONS["antisymmetric_rnn"], forward_step, backward_step)
gated_antisymmetric_rnn = fused(
    OPERATIONS["gated_antisymmetric_rnn"], gated_forward_step, gated_backward_step, own_d_pre=True
)
