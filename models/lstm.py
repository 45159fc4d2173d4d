"""LSTM (Hochreiter & Schmidhuber 1997): the baseline of every table."""

from dataclasses import dataclass

from torch import Tensor, nn

import kernels
from models.network import Network


@dataclass
class Config:
    """One LSTM layer with PyTorch's default initialisation.

    Args:
        hidden: number of units.
    """

    name: str = "lstm"
    hidden: int = 128

    def __post_init__(self):
        if self.hidden < 1:
            raise ValueError(f"hidden={self.hidden}: must be 1 or more")

    def build(self, inputs: int, outputs: int) -> Network:
        return Network(LSTM(inputs, self.hidden), nn.Linear(self.hidden, outputs))


class LSTM(nn.LSTM):
    """One layer, (T, B, inputs) to (T, B, hidden), with the parameters, gates and initialisation of ``torch.nn.LSTM``.

    On CUDA it is cuDNN's, elsewhere the time loop is :func:`kernels.lstm`.
    """

    def __init__(self, inputs: int, hidden: int):
        super().__init__(inputs, hidden)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The hidden states (T, B, hidden) and the final (h, c), each (B, hidden), from zeros or from ``state``."""
        if x.device.type == "cuda":
            sequence, (h, c) = super().forward(x, state and tuple(s.unsqueeze(0) for s in state))
            return sequence, (h[0], c[0])
        # Under autocast the product is in bfloat16, and the recurrence in the type of its weights.
        pre = kernels.linear(x, self.weight_ih_l0, self.bias_ih_l0 + self.bias_hh_l0).to(self.weight_hh_l0.dtype)
        return kernels.lstm(pre, self.weight_hh_l0, state)

    def backend(self) -> str:
        """What computes the time loop where the weights are now."""
        if self.weight_hh_l0.device.type == "cuda":
            return "torch.nn.LSTM"
        return kernels.backend_for("lstm", self.weight_hh_l0)
