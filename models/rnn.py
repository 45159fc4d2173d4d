"""Elman's RNN with tanh (Elman 1990): what vanishing gradients are shown on."""

from dataclasses import dataclass

from torch import Tensor, nn

from longwave import kernels
from longwave.models.network import Network


@dataclass
class Config:
    """One tanh layer with PyTorch's default initialisation.

    Args:
        hidden: number of units.
    """

    name: str = "rnn"
    hidden: int = 128

    def __post_init__(self):
        if self.hidden < 1:
            raise ValueError(f"hidden={self.hidden}: must be 1 or more")

    def build(self, inputs: int, outputs: int) -> Network:
        return Network(RNN(inputs, self.hidden), nn.Linear(self.hidden, outputs))


class RNN(nn.RNN):
    """One layer, (T, B, inputs) to (T, B, hidden), with the parameters and initialisation of ``torch.nn.RNN``.

    On CUDA it is cuDNN's, elsewhere the time loop is :func:`longwave.kernels.rnn`.
    """

    def __init__(self, inputs: int, hidden: int):
        super().__init__(inputs, hidden)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The hidden states (T, B, hidden) and the final one (B, hidden), from zeros or from ``state``."""
        if x.device.type == "cuda":
            sequence, h = super().forward(x, None if state is None else state.unsqueeze(0))
            return sequence, h[0]
        pre = kernels.Input(x, self.weight_ih_l0, self.bias_ih_l0 + self.bias_hh_l0)
        return kernels.rnn(pre, self.weight_hh_l0, state)

    def backend(self) -> str:
        """What computes the time loop where the weights are now."""
        if self.weight_hh_l0.device.type == "cuda":
            return "torch.nn.RNN"
        return kernels.backend_for("rnn", self.weight_hh_l0)
