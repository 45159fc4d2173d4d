"""The coRNN recurrence in plain PyTorch: the definition."""

import torch
from torch import Tensor

from longwave.kernels.steps import each_step


def cornn(
    pre: Tensor,
    w_y: Tensor,
    w_z: Tensor,
    dt: float | Tensor,
    gamma: float | Tensor,
    epsilon: float | Tensor,
    state: tuple[Tensor, Tensor] | None = None,
    damping: str = "explicit",
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Coupled oscillators (Rusch & Mishra 2021; tk-rusch/coRNN), whose released code has explicit damping.

        z_n = z_{n-1} + dt (tanh(W_y y_{n-1} + W_z z_{n-1} + pre_n) - gamma y_{n-1} - epsilon z_m)
        y_n = y_{n-1} + dt z_n

    m is n - 1 where damping is explicit. Where it is implicit m is n, and the first line is solved for z_n:

        z_n = (z_{n-1} + dt (tanh(W_y y_{n-1} + W_z z_{n-1} + pre_n) - gamma y_{n-1})) / (1 + epsilon dt)

    Args:
        pre: (T, B, H), the input's contribution V x_n + b for every step.
        w_y: (H, H), acts as ``y @ w_y.T``.
        w_z: (H, H), acts as ``z @ w_z.T``.
        dt: step size: a number, () or (H,); or one for each step, (T, B, 1) or (T, B, H).
        gamma: stiffness: a number, () or (H,).
        epsilon: damping: a number, () or (H,).
        state: initial (y, z), each (B, H); zeros where not given.
        damping: "explicit" or "implicit".

    Returns:
        y for every step, (T, B, H), and the final (y, z).
    """
    y, z = (pre.new_zeros(pre.shape[1:]),) * 2 if state is None else state
    # One product a step: [y, z] (B, 2H) with [W_y, W_z]^T (2H, H).
    w = torch.cat([w_y, w_z], dim=1).T.contiguous()
    steps, sequence = each_step(dt, len(pre)), []
    for drive, dt in zip(pre.unbind(0), steps, strict=True):
        force = torch.addmm(drive, torch.cat([y, z], dim=1), w).tanh()
        if damping == "explicit":
            z = z + dt * (force - gamma * y - epsilon * z)
        else:
            z = (z + dt * (force - gamma * y)) / (1 + epsilon * dt)
        y = y + dt * z
        sequence.append(y)
    return torch.stack(sequence), (y, z)


def z_step(dt: Tensor, epsilon: Tensor, damping: str) -> Tensor:
    """The step of the equation of z: with this one in place of dt, implicit damping is the explicit formula."""
    return dt if damping == "explicit" else dt / (1 + epsilon * dt)
