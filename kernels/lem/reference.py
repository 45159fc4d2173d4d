"""The LEM recurrence in plain PyTorch: the definition."""

import torch
from torch import Tensor

from longwave.kernels.steps import each_step


def lem(
    pre: Tensor, w_y: Tensor, w_z: Tensor, dt: float | Tensor = 1.0, state: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Long expressive memory (Rusch et al. 2022; tk-rusch/LEM).

        d1  = dt sigmoid(W_1 y_{n-1} + pre_1)
        d2  = dt sigmoid(W_2 y_{n-1} + pre_2)
        z_n = (1 - d2) z_{n-1} + d2 tanh(W_3 y_{n-1} + pre_3)
        y_n = (1 - d1) y_{n-1} + d1 tanh(W_z z_n + pre_4)

    Args:
        pre: (T, B, 4H), the input's contribution and all biases for every step, in the order d1, d2, z, y.
        w_y: (3H, H), [W_1; W_2; W_3], acts as ``y @ w_y.T``.
        w_z: (H, H), acts as ``z @ w_z.T``.
        dt: step size: a number, () or (H,); or one for each step, (T, B, 1) or (T, B, H).
        state: initial (y, z), each (B, H); zeros where not given.

    Returns:
        y for every step, (T, B, H), and the final (y, z).
    """
    hidden = pre.shape[2] // 4
    y, z = (pre.new_zeros(pre.shape[1], hidden),) * 2 if state is None else state
    w_y, w_z = w_y.T.contiguous(), w_z.T.contiguous()
    steps, sequence = each_step(dt, len(pre)), []
    for drive, dt in zip(pre.unbind(0), steps, strict=True):
        d1, d2, force = torch.addmm(drive[:, : 3 * hidden], y, w_y).chunk(3, dim=1)
        d1, d2 = dt * d1.sigmoid(), dt * d2.sigmoid()
        z = z + d2 * (force.tanh() - z)
        y = y + d1 * (torch.addmm(drive[:, 3 * hidden :], z, w_z).tanh() - y)
        sequence.append(y)
    return torch.stack(sequence), (y, z)
