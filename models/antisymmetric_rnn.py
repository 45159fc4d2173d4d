"""AntisymmetricRNN: Euler steps of an ODE that neither grows nor decays (Chang et al., ICLR 2019)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longwave import kernels
from longwave.models.layer import MatrixLayer
from longwave.models.network import ModelConfig, Network
from longwave.schema import Annotated, Ge, Gt, Le


@dataclass
class Config(ModelConfig):
    """AntisymmetricRNN.

    Args:
        hidden: number of units.
        gated: whether a gate scales each step of each unit.
        epsilon: step size.
        gamma: diffusion, the damping without which Euler's steps would grow.
    """

    name: str = "antisymmetric_rnn"
    hidden: Annotated[int, Ge(1), Le(65536)] = 128
    gated: bool = False
    epsilon: Annotated[float, Gt(0), Le(100)] = 0.1
    gamma: Annotated[float, Ge(0), Le(100)] = 0.01

    def build(self, inputs: int, outputs: int) -> Network:
        return Network(AntisymmetricRNN(inputs, **self.settings()), nn.Linear(self.hidden, outputs))


class AntisymmetricRNN(MatrixLayer):
    """One layer, (T, B, inputs) to (T, B, hidden); the equation is at :func:`longwave.kernels.antisymmetric_rnn`.

    The h (h - 1) / 2 entries of ``upper`` are all there is to the recurrent matrix, W - W^T with W strictly upper
    triangular, row by row. They are drawn from N(0, 1/h), and the maps of the input from N(0, 1/inputs), with bias 0:
    the form of the paper's initialisation, quoted from memory, not checked against the paper.
    """

    def __init__(self, inputs: int, hidden: int, *, batch_first: bool = False, backend: str = "auto", **settings):
        super().__init__(batch_first, backend)
        config = Config(hidden=hidden, **settings)
        self.hidden, self.gated, self.epsilon, self.gamma = hidden, config.gated, config.epsilon, config.gamma
        self.operation = "gated_antisymmetric_rnn" if self.gated else "antisymmetric_rnn"
        # With a gate, its map comes first.
        self.affine = nn.Linear(inputs, hidden * (1 + self.gated))
        nn.init.normal_(self.affine.weight, std=1 / math.sqrt(inputs))
        nn.init.zeros_(self.affine.bias)
        self.upper = nn.Parameter(torch.randn(hidden * (hidden - 1) // 2) / math.sqrt(hidden))
        # Follows from hidden, and moves to the device with the parameters.
        self.register_buffer("places", torch.triu_indices(hidden, hidden, offset=1), persistent=False)

    def unroll(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The hidden states h (T, B, hidden), and the final one."""
        pre = kernels.Input(x, self.affine.weight, self.affine.bias)
        return kernels.antisymmetric_rnn(
            pre, self.matrix(), self.epsilon, self.gamma, state, self.gated, backend=self.requested
        )

    def _matrix(self) -> Tensor:
        """The strictly upper triangular W of the equation."""
        return self.upper.new_zeros(self.hidden, self.hidden).index_put(tuple(self.places), self.upper)
