"""EURNN: a recurrence whose orthogonal matrix is a product of layers of rotations (Jing et al. 2017)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longwave import kernels
from longwave.models.layer import MatrixLayer
from longwave.models.network import ModelConfig, Network
from longwave.schema import Annotated, Ge, Le


@dataclass
class Config(ModelConfig):
    """EURNN with real states.

    Args:
        hidden: number of units; with ``fft`` a power of 2.
        capacity: number of layers of rotations, at most ``hidden``; by default 2, and log2(hidden) with ``fft``.
        fft: the layers rotate pairs of units that are hidden / 2, hidden / 4, ..., 1 apart, as in the fast Fourier
            transform; else neighbours.
    """

    name: str = "eurnn"
    hidden: Annotated[int, Ge(1), Le(65536)] = 128
    capacity: Annotated[int | None, Ge(1), Le(65536)] = None
    fft: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.fft and self.hidden & (self.hidden - 1):
            raise ValueError(f"hidden={self.hidden}: must be a power of 2 where fft is true")
        if self.fft and self.capacity is not None:
            raise ValueError(f"capacity={self.capacity}: must be null where fft is true, as it follows from hidden")
        if self.capacity is not None and self.capacity > self.hidden:
            raise ValueError(f"capacity={self.capacity}: must be at most hidden={self.hidden}")

    def build(self, inputs: int, outputs: int) -> Network:
        readout = nn.Linear(self.hidden, outputs)
        # As in the released script: of the network's inputs, not of the readout's.
        bound = math.sqrt(6 / (inputs + outputs))
        nn.init.uniform_(readout.weight, -bound, bound)
        nn.init.constant_(readout.bias, 0.01)
        return Network(EURNN(inputs, **self.settings()), readout)


class EURNN(MatrixLayer):
    """One EURNN layer, (T, B, inputs) to (T, B, hidden), in its real form, as in jingli9111/EUNN-tensorflow.

        h_n = modReLU(W h_{n-1} + K x_n),   W = F_L ... F_1

    with modReLU(v) = sign(v) relu(|v| + bias). Each layer F_l rotates pairs of units, each by an angle of its own:
    (a, b) becomes (a cos - b sin, a sin + b cos). The pairs of odd layers are units 1 and 2, 3 and 4, ..., those of
    even ones 2 and 3, 4 and 5, .... As many layers as units have hidden (hidden - 1) / 2 angles, the dimension of the
    orthogonal group.

    Angles and K start from U(-0.01, 0.01), the biases at -0.01. The complex form is not implemented; the released
    code's MNIST script has the real one as its default.
    """

    operation = "modrelu_rnn"

    def __init__(self, inputs: int, hidden: int, *, batch_first: bool = False, backend: str = "auto", **settings):
        super().__init__(batch_first, backend)
        config = Config(hidden=hidden, **settings)
        self.hidden = hidden
        # Of each layer: its first unit, and how far apart the units of a pair are.
        if config.fft:
            self.layers = [(0, 2**k) for k in reversed(range(hidden.bit_length() - 1))]
        else:
            self.layers = [(layer % 2, 1) for layer in range(config.capacity or min(2, hidden))]
        self.pairs = [(hidden - first) // 2 for first, _ in self.layers]
        self.input = nn.Linear(inputs, hidden, bias=False)
        nn.init.uniform_(self.input.weight, -0.01, 0.01)
        self.angles = nn.Parameter(torch.empty(sum(self.pairs)).uniform_(-0.01, 0.01))
        self.bias = nn.Parameter(torch.full((hidden,), -0.01))

    def unroll(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The hidden states h (T, B, hidden), and the final one."""
        pre = kernels.Input(x, self.input.weight)
        return kernels.modrelu_rnn(pre, self.matrix(), self.bias, state, backend=self.requested)

    def _matrix(self) -> Tensor:
        w = torch.eye(self.hidden, dtype=self.angles.dtype, device=self.angles.device)
        for (first, apart), angles in zip(self.layers, self.angles.split(self.pairs), strict=True):
            last = first + 2 * len(angles)
            cos, sin = (part.view(-1, apart, 1) for part in (angles.cos(), angles.sin()))
            a, b = w[first:last].view(-1, 2, apart, self.hidden).unbind(1)
            rotated = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=1)
            w = torch.cat([w[:first], rotated.view(-1, self.hidden), w[last:]])
        return w
