"""UGRNN: units with one gate (Collins, Sohl-Dickstein & Sussillo, ICLR 2017)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longwave import kernels
from longwave.models.layer import Layer
from longwave.models.network import ModelConfig, Network
from longwave.schema import Annotated, Ge, Le


@dataclass
class Config(ModelConfig):
    """UGRNN.

    Args:
        hidden: number of units.
    """

    name: str = "ugrnn"
    hidden: Annotated[int, Ge(1), Le(65536)] = 128

    def build(self, inputs: int, outputs: int) -> Network:
        return Network(UGRNN(inputs, self.hidden), nn.Linear(self.hidden, outputs))


class UGRNN(Layer):
    """One layer, (T, B, inputs) to (T, B, hidden). The equation is at :func:`longwave.kernels.ugrnn`.

    The gate's bias starts at 1, as in TensorFlow's ``UGRNNCell``, the candidate's at 0, and the matrices from
    U(-1/sqrt(hidden), 1/sqrt(hidden)), as PyTorch's.
    """

    operation = "ugrnn"

    def __init__(self, inputs: int, hidden: int, *, batch_first: bool = False, backend: str = "auto"):
        super().__init__(batch_first, backend)
        self.hidden = Config(hidden=hidden).hidden
        self.weight_ih = nn.Parameter(torch.empty(2 * hidden, inputs))
        self.weight_hh = nn.Parameter(torch.empty(2 * hidden, hidden))
        for weight in (self.weight_ih, self.weight_hh):
            nn.init.uniform_(weight, -(hidden**-0.5), hidden**-0.5)
        self.bias = nn.Parameter(torch.cat([torch.ones(hidden), torch.zeros(hidden)]))

    def unroll(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The hidden states h (T, B, hidden), and the final one."""
        pre = kernels.Input(x, self.weight_ih, self.bias)
        return kernels.ugrnn(pre, self.weight_hh, state, backend=self.requested)
