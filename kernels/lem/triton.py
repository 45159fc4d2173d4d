"""The LEM in Triton: the equation is in reference.py."""

import triton
import triton.language as tl

from longwave.kernels.dense import fused
from longwave.kernels.device import sigmoid, tanh
from longwave.kernels.operation import OPERATIONS


@triton.jit
def forward_step(phase: tl.constexpr, state, product, pre, tape, unit):
    y, z = state
    dt = unit[0]
    if phase == 0:
        # Gates before they are multiplied by dt.
        gate_y = sigmoid(product[0] + pre[0])
        gate_z = sigmoid(product[1] + pre[1])
        force_z = tanh(product[2] + pre[2])
        return (y, z + dt * gate_z * (force_z - z)), (gate_y, gate_z, force_z)
    else:
        force_y = tanh(product[0] + pre[3])
        return (y + dt * tape[0] * (force_y - y), z), (force_y,)


@triton.jit
def backward_mix(d, s, gate, force, dt):
    """Gradients of s + dt gate (force - s), given that of it: of s, of both products, of dt."""
    d_gate = d * (force - s)
    return d - d * dt * gate, d_gate * dt * gate * (1.0 - gate), d * dt * gate * (1.0 - force * force), d_gate * gate


@triton.jit
def backward_step(phase: tl.constexpr, state, tape, unit, d_state, d_product):
    y, z = state
    _, gate_y, gate_z, force_z, force_y = tape
    d_y, d_z = d_state
    if phase == 1:
        d_y, d_gate_y, d_force_y, d_dt = backward_mix(d_y, y, gate_y, force_y, unit[0])
        nothing = tl.full(d_y.shape, 0.0, tl.float32)
        return (d_y, d_z), (d_gate_y, nothing, nothing, d_force_y), (), (d_dt,)
    else:
        d_z, d_gate_z, d_force_z, d_dt = backward_mix(d_z, z, gate_z, force_z, unit[0])
        return (d_y, d_z), (d_product[0], d_gate_z, d_force_z, d_product[3]), (), (d_dt,)


lem = fused(OPERATIONS["lem"], forward_step, backward_step)
