"""Elman's RNN with tanh (Elman 1990): what vanishing gradients are shown on."""

from dataclasses import dataclass

from torch import Tensor, nn

from longwave import kernels
from longwave.models.layer import CuDNNLayer
from longwave.models.network import ModelConfig, Network
from longwave.schema import Annotated, Ge, Le


@dataclass
class Config(ModelConfig):
    """One tanh layer with PyTorch's default initialisation.

    Args:
        hidden: number of units.
    """

    name: str = "rnn"
    hidden: Annotated[int, Ge(1), Le(65536)] = 128

    def build(self, inputs: int, outputs: int) -> Network:
        return Network(RNN(inputs, self.hidden), nn.Linear(self.hidden, outputs))


class RNN(CuDNNLayer, nn.RNN):
    """One layer, (T, B, inputs) to (T, B, hidden), with the parameters and initialisation of ``torch.nn.RNN``."""

    operation = "rnn"

    def unroll(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The hidden states (T, B, hidden), and the final one (B, hidden)."""
        pre = kernels.Input(x, self.weight_ih_l0, self.bias_ih_l0 + self.bias_hh_l0)
        return kernels.rnn(pre, self.weight_hh_l0, state, backend=self.requested)
