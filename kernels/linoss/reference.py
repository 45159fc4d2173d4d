"""The LinOSS recurrence in plain PyTorch: the definition."""

import torch
from torch import Tensor

from longwave.kernels.steps import each_step


def linoss(
    pre: Tensor, a: Tensor, dt: float | Tensor, state: tuple[Tensor, Tensor] | None = None, discretisation: str = "im"
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Independent forced harmonic oscillators, y'' = -a y + pre (Rusch & Rus 2025; tk-rusch/linoss).

        im:    z_n = z_{n-1} + dt (pre_n - a y_n),        y_n = y_{n-1} + dt z_n
        imex:  z_n = z_{n-1} + dt (pre_n - a y_{n-1}),    y_n = y_{n-1} + dt z_n

    Args:
        pre: (T, B, H), the input's contribution B u_n for every step.
        a: (H,), the squared frequency of each oscillator, 0 or more.
        dt: step size, above 0: a number, () or (H,); or one for each step, (T, B, 1) or (T, B, H).
        state: initial (y, z), each (B, H); zeros where not given.
        discretisation: im (implicit: dissipative) or imex (symplectic Euler: conservative).

    Returns:
        y for every step, (T, B, H), and the final (y, z).
    """
    y, z = (pre.new_zeros(pre.shape[1:]),) * 2 if state is None else state
    # Once for all steps where dt is.
    steps = each_step(dt, len(pre)), each_step(damping(a, dt, discretisation), len(pre))
    sequence = []
    for drive, dt, s in zip(pre.unbind(0), *steps, strict=True):
        z = s * (z + dt * (drive - a * y))
        y = y + dt * z
        sequence.append(y)
    return torch.stack(sequence), (y, z)


def damping(a: Tensor, dt: float | Tensor, discretisation: str) -> Tensor:
    """s, with which both are z_n = s (z_{n-1} + dt (pre_n - a y_{n-1})), one equation put into the other."""
    return 1 / (1 + dt * dt * a) if discretisation == "im" else torch.ones_like(a)
