"""The AntisymmetricRNN recurrence, plain and gated, in plain PyTorch: the definition."""

import torch
from torch import Tensor


def antisymmetric_rnn(
    pre: Tensor,
    w: Tensor,
    epsilon: float | Tensor,
    gamma: float | Tensor,
    state: Tensor | None = None,
    gated: bool = False,
) -> tuple[Tensor, Tensor]:
    """Euler steps of an ODE that neither grows nor decays (Chang et al. 2019, equations 9 and 12).

        A   = W - W^T - gamma I
        h_n = h_{n-1} + epsilon u_n tanh(A h_{n-1} + pre_n)
        u_n = 1 where plain, sigmoid(A h_{n-1} + pre^u_n) where gated

    Args:
        pre: (T, B, H), the input's contribution V x_n + b for every step; where gated (T, B, 2H), that of the gate u
            first.
        w: (H, H); A acts as ``h @ A.T``.
        epsilon: step size: a number, () or (H,).
        gamma: diffusion: a number, () or (H,).
        state: initial h, (B, H); zeros where not given.
        gated: whether there is a gate u.

    Returns:
        h for every step, (T, B, H), and the final h.
    """
    h = pre.new_zeros(pre.shape[1], w.shape[0]) if state is None else state
    a = antisymmetric(w, gamma).T.contiguous()
    sequence = []
    for drive in pre.unbind(0):
        product = h @ a
        if gated:
            drive_u, drive = drive.chunk(2, dim=1)
            h = h + epsilon * (product + drive_u).sigmoid() * (product + drive).tanh()
        else:
            h = h + epsilon * (product + drive).tanh()
        sequence.append(h)
    return torch.stack(sequence), h


def antisymmetric(w: Tensor, gamma: float | Tensor) -> Tensor:
    """W - W^T - gamma I."""
    return w - w.T - gamma * torch.eye(w.shape[0], dtype=w.dtype, device=w.device)
