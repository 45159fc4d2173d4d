"""The LSTM recurrence in plain PyTorch: the definition."""

import torch
from torch import Tensor


def lstm(pre: Tensor, w_h: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Long short-term memory, as ``torch.nn.LSTM`` (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

        i, f, g, o = pre_n + W_h h_{n-1}
        c_n = sigmoid(f) c_{n-1} + sigmoid(i) tanh(g)
        h_n = sigmoid(o) tanh(c_n)

    Args:
        pre: (T, B, 4H), the input's contribution W_i x_n + b_i + b_h for every step, gates i, f, g, o.
        w_h: (4H, H), acts as ``h @ w_h.T``: ``weight_hh_l0`` of ``torch.nn.LSTM``.
        state: initial (h, c), each (B, H); zeros where not given.

    Returns:
        h for every step, (T, B, H), and the final (h, c).
    """
    h, c = (pre.new_zeros(pre.shape[1], pre.shape[2] // 4),) * 2 if state is None else state
    w = w_h.T.contiguous()
    sequence = []
    for drive in pre.unbind(0):
        i, f, g, o = torch.addmm(drive, h, w).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        sequence.append(h)
    return torch.stack(sequence), (h, c)
