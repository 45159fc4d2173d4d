"""LSTM (Hochreiter & Schmidhuber 1997): the baseline of every table."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longwave import kernels
from longwave.models.network import Network


@dataclass
class Config:
    """One LSTM layer with PyTorch's default initialisation, but for the biases below.

    Args:
        hidden: number of units.
        forget_bias: the bias of the forget gate at the start; null is PyTorch's, which is near 0.
        chrono: T_max of the chrono initialisation (Tallec & Ollivier, ICLR 2018), the longest time over which
            something is to be remembered; 3 or more; null is none. The biases of the forget gate start as
            log(U(1, T_max - 1)), those of the input gate as their negatives.
    """

    name: str = "lstm"
    hidden: int = 128
    forget_bias: float | None = None
    chrono: int | None = None

    def __post_init__(self):
        if self.hidden < 1:
            raise ValueError(f"hidden={self.hidden}: must be 1 or more")
        if self.chrono is not None and self.chrono < 3:
            raise ValueError(f"chrono={self.chrono}: must be 3 or more")
        if self.chrono is not None and self.forget_bias is not None:
            raise ValueError(f"forget_bias={self.forget_bias}: must be null where chrono={self.chrono} sets it")

    def build(self, inputs: int, outputs: int) -> Network:
        layer = LSTM(inputs, self.hidden, self.forget_bias, self.chrono)
        return Network(layer, nn.Linear(self.hidden, outputs))


class LSTM(nn.LSTM):
    """One layer, (T, B, inputs) to (T, B, hidden), with the parameters and gates of ``torch.nn.LSTM``.

    On CUDA it is cuDNN's, elsewhere the time loop is :func:`longwave.kernels.lstm`. The initialisation is PyTorch's,
    with ``forget_bias`` and ``chrono`` as in :class:`Config`.
    """

    def __init__(self, inputs: int, hidden: int, forget_bias: float | None = None, chrono: int | None = None):
        super().__init__(inputs, hidden)
        with torch.no_grad():
            # PyTorch adds two biases, each (4 hidden) in the order i, f, g, o: here the first has the value.
            first, second = (bias.view(4, hidden) for bias in (self.bias_ih_l0, self.bias_hh_l0))
            if forget_bias is not None:
                first[1], second[1] = forget_bias, 0
            if chrono is not None:
                first[1] = torch.empty(hidden).uniform_(1, chrono - 1).log()
                first[0] = -first[1]
                second[:2] = 0

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The hidden states (T, B, hidden) and the final (h, c), each (B, hidden), from zeros or from ``state``."""
        if x.device.type == "cuda":
            sequence, (h, c) = super().forward(x, state and tuple(s.unsqueeze(0) for s in state))
            return sequence, (h[0], c[0])
        pre = kernels.Input(x, self.weight_ih_l0, self.bias_ih_l0 + self.bias_hh_l0)
        return kernels.lstm(pre, self.weight_hh_l0, state)

    def backend(self) -> str:
        """What computes the time loop where the weights are now."""
        if self.weight_hh_l0.device.type == "cuda":
            return "torch.nn.LSTM"
        return kernels.backend_for("lstm", self.weight_hh_l0)
