"""The coRNN recurrence in plain PyTorch: the definition."""

import torch
from torch import Tensor


def cornn(
    pre: Tensor,
    w_y: Tensor,
    w_z: Tensor,
    dt: float | Tensor,
    gamma: float | Tensor,
    epsilon: float | Tensor,
    state: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Coupled oscillators with explicit damping, as in the released code (Rusch & Mishra 2021; tk-rusch/coRNN).

        z_n = z_{n-1} + dt (tanh(W_y y_{n-1} + W_z z_{n-1} + pre_n) - gamma y_{n-1} - epsilon z_{n-1})
        y_n = y_{n-1} + dt z_n

    Args:
        pre: (T, B, H), the input's contribution V x_n + b for every step.
        w_y: (H, H), acts as ``y @ w_y.T``.
        w_z: (H, H), acts as ``z @ w_z.T``.
        dt: step size: a number, () or (H,).
        gamma: stiffness: a number, () or (H,).
        epsilon: damping: a number, () or (H,).
        state: initial (y, z), each (B, H); zeros where not given.

    Returns:
        y for every step, (T, B, H), and the final (y, z).
    """
    y, z = (pre.new_zeros(pre.shape[1:]),) * 2 if state is None else state
    # One product a step: [y, z] (B, 2H) with [W_y, W_z]^T (2H, H).
    w = torch.cat([w_y, w_z], dim=1).T.contiguous()
    sequence = []
    for drive in pre.unbind(0):
        force = torch.addmm(drive, torch.cat([y, z], dim=1), w).tanh()
        z = z + dt * (force - gamma * y - epsilon * z)
        y = y + dt * z
        sequence.append(y)
    return torch.stack(sequence), (y, z)
