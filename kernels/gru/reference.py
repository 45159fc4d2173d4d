"""The GRU recurrence in plain PyTorch: the definition."""

import torch
from torch import Tensor


def gru(pre: Tensor, w_h: Tensor, b_n: Tensor | None = None, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Gated recurrent units, as ``torch.nn.GRU``: the reset gate acts after the product (Cho et al. 2014).

        r_n = sigmoid(pre_r + W_r h_{n-1})
        u_n = sigmoid(pre_u + W_u h_{n-1})
        m_n = tanh(pre_m + r_n (W_m h_{n-1} + b_n))
        h_n = (1 - u_n) m_n + u_n h_{n-1}

    Args:
        pre: (T, B, 3H), the input's contribution for every step, gates r, u (PyTorch's z), m (PyTorch's n). It holds
            the input's biases, and the hidden ones of r and u: W_i x_n + b_i + [b_hr, b_hu, 0].
        w_h: (3H, H), acts as ``h @ w_h.T``: ``weight_hh_l0`` of ``torch.nn.GRU``.
        b_n: (H,), the hidden bias of the gate m, which r multiplies: the last third of ``bias_hh_l0``; zeros where
            not given.
        state: initial h, (B, H); zeros where not given.

    Returns:
        h for every step, (T, B, H), and the final h.
    """
    hidden = pre.shape[2] // 3
    h = pre.new_zeros(pre.shape[1], hidden) if state is None else state
    w = w_h.T.contiguous()
    bias = pre.new_zeros(hidden) if b_n is None else b_n
    sequence = []
    for drive in pre.unbind(0):
        product = h @ w
        r, u = (drive[:, : 2 * hidden] + product[:, : 2 * hidden]).sigmoid().chunk(2, dim=1)
        m = (drive[:, 2 * hidden :] + r * (product[:, 2 * hidden :] + bias)).tanh()
        h = m + u * (h - m)
        sequence.append(h)
    return torch.stack(sequence), h
