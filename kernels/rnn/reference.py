"""The recurrence of Elman's RNN in plain PyTorch: the definition."""

import torch
from torch import Tensor


def rnn(pre: Tensor, w_h: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Elman's network, as ``torch.nn.RNN`` with tanh (Elman 1990).

        h_n = tanh(pre_n + W_h h_{n-1})

    Args:
        pre: (T, B, H), the input's contribution W_i x_n + b_i + b_h for every step.
        w_h: (H, H), acts as ``h @ w_h.T``: ``weight_hh_l0`` of ``torch.nn.RNN``.
        state: initial h, (B, H); zeros where not given.

    Returns:
        h for every step, (T, B, H), and the final h.
    """
    h = pre.new_zeros(pre.shape[1:]) if state is None else state
    w = w_h.T.contiguous()
    sequence = []
    for drive in pre.unbind(0):
        h = torch.addmm(drive, h, w).tanh()
        sequence.append(h)
    return torch.stack(sequence), h
