"""The recurrence with a leaky ReLU (Spectral RNN, oRNN) in plain PyTorch: the definition."""

import torch
from torch import Tensor


def leaky_relu_rnn(pre: Tensor, w: Tensor, slope: float | Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A recurrence for orthogonal or nearly orthogonal weights (Mhammedi et al. 2017; Zhang et al. 2018).

        v_n = W h_{n-1} + pre_n
        h_n = v_n where v_n > 0, else slope v_n

    Args:
        pre: (T, B, H), the input's contribution M x_n + b for every step.
        w: (H, H), acts as ``h @ w.T``.
        slope: of the negative side: a number, () or (H,); 0 is the ReLU, which ``torch.nn.RNN`` has, too.
        state: initial h, (B, H); zeros where not given.

    Returns:
        h for every step, (T, B, H), and the final h.
    """
    h = pre.new_zeros(pre.shape[1:]) if state is None else state
    w = w.T.contiguous()
    sequence = []
    for drive in pre.unbind(0):
        v = torch.addmm(drive, h, w)
        h = torch.where(v > 0, v, slope * v)
        sequence.append(h)
    return torch.stack(sequence), h
