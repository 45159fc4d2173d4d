"""The UGRNN recurrence in plain PyTorch: the definition."""

import torch
from torch import Tensor


def ugrnn(pre: Tensor, w_h: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Units with an update gate and no other (UGRNN: Collins, Sohl-Dickstein & Sussillo 2017).

        g_n = sigmoid(pre_g + W_g h_{n-1})
        c_n = tanh(pre_c + W_c h_{n-1})
        h_n = g_n h_{n-1} + (1 - g_n) c_n

    Args:
        pre: (T, B, 2H), the input's contribution for every step with the biases, gates g, c.
        w_h: (2H, H), W_g above W_c; acts as ``h @ w_h.T``.
        state: initial h, (B, H); zeros where not given.

    Returns:
        h for every step, (T, B, H), and the final h.
    """
    h = pre.new_zeros(pre.shape[1], pre.shape[2] // 2) if state is None else state
    w = w_h.T.contiguous()
    sequence = []
    for drive in pre.unbind(0):
        gate, candidate = (drive + h @ w).chunk(2, dim=1)
        c = candidate.tanh()
        h = c + gate.sigmoid() * (h - c)
        sequence.append(h)
    return torch.stack(sequence), h
