"""The FastGRNN recurrence in plain PyTorch: the definition."""

import torch
from torch import Tensor


def fastgrnn(
    pre: Tensor,
    w_h: Tensor,
    b_z: Tensor,
    b_h: Tensor,
    zeta: float | Tensor,
    nu: float | Tensor,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A gated unit whose gate and update share their matrices (FastGRNN: Kusupati et al. 2018).

        z_n = sigmoid(W h_{n-1} + pre_n + b_z)
        u_n = tanh(W h_{n-1} + pre_n + b_h)
        h_n = (zeta (1 - z_n) + nu) u_n + z_n h_{n-1}

    Args:
        pre: (T, B, H), the input's contribution V x_n for every step, without a bias.
        w_h: (H, H), acts as ``h @ w_h.T``.
        b_z: (H,), bias of the gate.
        b_h: (H,), bias of the update.
        zeta: weight of the update where the gate is closed: a number, () or (H,).
        nu: weight of the update at any gate: a number, () or (H,).
        state: initial h, (B, H); zeros where not given.

    Returns:
        h for every step, (T, B, H), and the final h.
    """
    h = pre.new_zeros(pre.shape[1:]) if state is None else state
    w = w_h.T.contiguous()
    sequence = []
    for drive in pre.unbind(0):
        both = drive + h @ w
        z = (both + b_z).sigmoid()
        h = (zeta * (1 - z) + nu) * (both + b_h).tanh() + z * h
        sequence.append(h)
    return torch.stack(sequence), h
