"""LEM: long expressive memory, two states with step sizes that they learn (Rusch et al., ICLR 2022)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longwave import kernels
from longwave.models.irregular import Irregular
from longwave.models.network import ModelConfig, Network
from longwave.schema import LATER, Annotated, Ge, Gt, Le


@dataclass
class Config(ModelConfig):
    """LEM.

    Args:
        hidden: number of units.
        dt: upper bound of the step sizes.
        spacing: duration between two samples that counts as one dt, for irregular times: the first input channel is
            then the time (``task.time=true``), which is not an input itself. Null: samples are equally spaced.
    """

    name: str = "lem"
    hidden: Annotated[int, Ge(1), Le(65536)] = 128
    dt: Annotated[float, Gt(0), Le(100)] = 1.0
    spacing: Annotated[float | None, Gt(0), Le(1e12), LATER] = None

    def build(self, inputs: int, outputs: int) -> Network:
        readout = nn.Linear(self.hidden, outputs)
        nn.init.kaiming_normal_(readout.weight)
        return Network(LEM(inputs, **self.settings()), readout)


class LEM(Irregular):
    """One LEM layer, (T, B, inputs) to (T, B, hidden); the equation is at :func:`longwave.kernels.lem`.

    Three affine maps, of x for all four parts of a step, of y for both step sizes and z, of z for y. Each has a bias,
    so that a part has two, and all are U(-1/sqrt(hidden), 1/sqrt(hidden)) (LEM: src/*/network.py).
    """

    operation = "lem"

    def __init__(self, inputs: int, hidden: int, *, batch_first: bool = False, backend: str = "auto", **settings):
        config = Config(hidden=hidden, **settings)
        super().__init__(inputs, batch_first, backend, config.spacing)
        self.dt = config.dt
        self.x = nn.Linear(self.inputs, 4 * hidden)
        self.y = nn.Linear(hidden, 3 * hidden)
        self.z = nn.Linear(hidden, hidden)
        bound = 1 / math.sqrt(hidden)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def run(self, x: Tensor, factor: float | Tensor, state: tuple | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """y for every step, (T, B, hidden), and the final (y, z)."""
        bias = self.x.bias + torch.cat([self.y.bias, self.z.bias])
        pre = kernels.Input(x, self.x.weight, bias)
        return kernels.lem(pre, self.y.weight, self.z.weight, self.dt * factor, state, backend=self.requested)
