"""The UnICORNN recurrence in plain PyTorch: the definition."""

import torch
from torch import Tensor

from longwave.kernels.steps import each_step


def unicornn(
    pre: Tensor,
    w: Tensor,
    c: Tensor,
    dt: float | Tensor,
    alpha: float | Tensor,
    state: tuple[Tensor, Tensor] | None = None,
    anchor: int = 256,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Undamped, independent, controlled oscillators, by symplectic Euler (Rusch & Mishra 2021; tk-rusch/unicornn).

        d   = dt sigmoid(c)
        z_n = z_{n-1} - d (tanh(w y_{n-1} + pre_n) + alpha y_{n-1})
        y_n = y_{n-1} + d z_n

    Args:
        pre: (T, B, H), the input's contribution V x_n + b for every step.
        w: (H,), the recurrent weight of each unit.
        c: (H,), sets the step of each unit.
        dt: step size: a number, () or (H,); or one for each step, (T, B, 1) or (T, B, H).
        alpha: stiffness: a number, () or (H,).
        state: initial (y, z), each (B, H); zeros where not given.
        anchor: the fused backends rebuild the states in the backward pass, and store them every ``anchor`` steps to do
            so without drift; 0 stores none. The reference stores all of them, and ignores it.

    Returns:
        y for every step, (T, B, H), and the final (y, z).
    """
    y, z = (pre.new_zeros(pre.shape[1:]),) * 2 if state is None else state
    steps, sequence = each_step(dt * c.sigmoid(), len(pre)), []
    for drive, d in zip(pre.unbind(0), steps, strict=True):
        z = z - d * ((w * y + drive).tanh() + alpha * y)
        y = y + d * z
        sequence.append(y)
    return torch.stack(sequence), (y, z)
