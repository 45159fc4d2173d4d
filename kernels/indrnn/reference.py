"""The IndRNN recurrence in plain PyTorch: the definition."""

import torch
from torch import Tensor


def indrnn(pre: Tensor, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Independent rectified units (Li et al. 2018; Sunnydreamrain/IndRNN_pytorch).

        h_n = relu(pre_n + u h_{n-1})

    Args:
        pre: (T, B, H), the input's contribution W x_n + b for every step.
        u: (H,), the recurrent weight of each unit.
        state: initial h, (B, H); zeros where not given.

    Returns:
        h for every step, (T, B, H), and the final h.
    """
    h = pre.new_zeros(pre.shape[1:]) if state is None else state
    sequence = []
    for drive in pre.unbind(0):
        h = (drive + u * h).relu()
        sequence.append(h)
    return torch.stack(sequence), h
