"""The recurrence with modReLU (expRNN, scoRNN) in plain PyTorch: the definition."""

import torch
from torch import Tensor


def modrelu_rnn(pre: Tensor, w: Tensor, bias: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A recurrence for orthogonal weights (Helfrich et al. 2018; Lezcano-Casado & Martinez-Rubio 2019).

        v_n = W h_{n-1} + pre_n
        h_n = sign(v_n) relu(|v_n| + bias)

    Args:
        pre: (T, B, H), the input's contribution K x_n for every step.
        w: (H, H), acts as ``h @ w.T``.
        bias: (H,), the threshold of modReLU.
        state: initial h, (B, H); zeros where not given.

    Returns:
        h for every step, (T, B, H), and the final h.
    """
    h = pre.new_zeros(pre.shape[1:]) if state is None else state
    w = w.T.contiguous()
    sequence = []
    for drive in pre.unbind(0):
        v = torch.addmm(drive, h, w)
        h = v.sign() * (v.abs() + bias).relu()
        sequence.append(h)
    return torch.stack(sequence), h
