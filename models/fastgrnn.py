"""FastGRNN and FastRNN: small units with a weighted residual connection (Kusupati et al., NeurIPS 2018)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longwave import kernels
from longwave.models.layer import Layer
from longwave.models.network import ModelConfig, Network
from longwave.schema import Annotated, Ge, Le


@dataclass
class Config(ModelConfig):
    """FastGRNN, or FastRNN.

    Args:
        hidden: number of units.
        gated: FastGRNN, whose gate shares the matrices of the update; false: FastRNN.
    """

    name: str = "fastgrnn"
    hidden: Annotated[int, Ge(1), Le(65536)] = 128
    gated: bool = True

    def build(self, inputs: int, outputs: int) -> Network:
        return Network(FastGRNN(inputs, **self.settings()), nn.Linear(self.hidden, outputs))


class FastGRNN(Layer):
    """One layer, (T, B, inputs) to (T, B, hidden).

    The equations are at :func:`longwave.kernels.fastgrnn` and, with ``gated=False``, :func:`longwave.kernels.fastrnn`.
    Their two weights, zeta and nu or alpha and beta, are trained as sigmoids of numbers that start at 1 and -4, or -3
    and 3; biases start at 1, and the matrices from N(0, 0.01) (microsoft/EdgeML: pytorch/edgeml_pytorch/graph/rnn.py).
    """

    def __init__(self, inputs: int, hidden: int, *, batch_first: bool = False, backend: str = "auto", **settings):
        super().__init__(batch_first, backend)
        self.hidden, self.gated = hidden, Config(hidden=hidden, **settings).gated
        self.operation = "fastgrnn" if self.gated else "fastrnn"
        self.weight_ih = nn.Parameter(torch.empty(hidden, inputs))
        self.weight_hh = nn.Parameter(torch.empty(hidden, hidden))
        for weight in (self.weight_ih, self.weight_hh):
            nn.init.normal_(weight, std=0.1)
        self.biases = nn.Parameter(torch.ones(1 + self.gated, hidden))
        self.weights = nn.Parameter(torch.tensor([1.0, -4.0] if self.gated else [-3.0, 3.0]))

    def unroll(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The hidden states h (T, B, hidden), and the final one."""
        first, second = self.weights.sigmoid()
        if self.gated:
            pre = kernels.Input(x, self.weight_ih, None)
            # Not views of the parameter, two of which an exported loop refuses.
            biases = self.biases.clone()
            return kernels.fastgrnn(
                pre, self.weight_hh, biases[0], biases[1], first, second, state, backend=self.requested
            )
        pre = kernels.Input(x, self.weight_ih, self.biases[0])
        return kernels.fastrnn(pre, self.weight_hh, first, second, state, backend=self.requested)
