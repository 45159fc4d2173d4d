"""The FastRNN recurrence in plain PyTorch: the definition."""

import torch
from torch import Tensor


def fastrnn(
    pre: Tensor, w_h: Tensor, alpha: float | Tensor, beta: float | Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A tanh unit with a weighted residual connection (FastRNN: Kusupati et al. 2018).

        h_n = alpha tanh(W h_{n-1} + pre_n) + beta h_{n-1}

    Args:
        pre: (T, B, H), the input's contribution for every step, bias included.
        w_h: (H, H), acts as ``h @ w_h.T``.
        alpha: weight of the update: a number, () or (H,).
        beta: weight of the state: a number, () or (H,).
        state: initial h, (B, H); zeros where not given.

    Returns:
        h for every step, (T, B, H), and the final h.
    """
    h = pre.new_zeros(pre.shape[1:]) if state is None else state
    w = w_h.T.contiguous()
    sequence = []
    for drive in pre.unbind(0):
        h = alpha * (drive + h @ w).tanh() + beta * h
        sequence.append(h)
    return torch.stack(sequence), h
