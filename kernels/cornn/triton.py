"""The coRNN in Triton: the equation is in reference.py."""

import triton
import triton.language as tl

from longwave.kernels.dense import fused
from longwave.kernels.device import tanh
from longwave.kernels.operation import OPERATIONS


@triton.jit
def forward_step(phase: tl.constexpr, state, product, pre, tape, unit):
    y, z = state
    # The step of z is another one than that of y where damping is implicit.
    dt, dt_z, gamma, epsilon = unit
    force = tanh(product[0] + pre[0])
    z += dt_z * (force - gamma * y - epsilon * z)
    return (y + dt * z, z), (force,)


@triton.jit
def backward_step(phase: tl.constexpr, state, tape, unit, d_state, d_product):
    y, z = state
    z_after, force = tape
    dt, dt_z, gamma, epsilon = unit
    d_y, d_z = d_state
    d_z += dt * d_y
    d_acceleration = dt_z * d_z
    d_unit = (d_y * z_after, d_z * (force - gamma * y - epsilon * z), -d_acceleration * y, -d_acceleration * z)
    d_state = (d_y - d_acceleration * gamma, d_z - d_acceleration * epsilon)
    return d_state, (d_acceleration * (1.0 - force * force),), (), d_unit


cornn = fused(OPERATIONS["cornn"], forward_step, backward_step)
