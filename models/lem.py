"""LEM: long expressive memory, two states with step sizes that they learn (Rusch et al., ICLR 2022)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longwave import kernels
from longwave.models.network import Network


@dataclass
class Config:
    """LEM.

    Args:
        hidden: number of units.
        dt: upper bound of the step sizes, > 0.
    """

    name: str = "lem"
    hidden: int = 128
    dt: float = 1.0

    def __post_init__(self):
        if self.hidden < 1:
            raise ValueError(f"hidden={self.hidden}: must be 1 or more")
        if not self.dt > 0:
            raise ValueError(f"dt={self.dt}: must be > 0")

    def build(self, inputs: int, outputs: int) -> Network:
        readout = nn.Linear(self.hidden, outputs)
        nn.init.kaiming_normal_(readout.weight)
        return Network(LEM(inputs, self.hidden, self.dt), readout)


class LEM(nn.Module):
    """One LEM layer, (T, B, inputs) to (T, B, hidden); the equation is at :func:`longwave.kernels.lem`.

    Three affine maps, of x for all four parts of a step, of y for both step sizes and z, of z for y. Each has a bias,
    so that a part has two, and all are U(-1/sqrt(hidden), 1/sqrt(hidden)) (LEM: src/*/network.py).
    """

    def __init__(self, inputs: int, hidden: int, dt: float = 1.0):
        super().__init__()
        self.dt = dt
        self.x = nn.Linear(inputs, 4 * hidden)
        self.y = nn.Linear(hidden, 3 * hidden)
        self.z = nn.Linear(hidden, hidden)
        bound = 1 / math.sqrt(hidden)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """y for every step, (T, B, hidden), and the final (y, z), from zeros or from ``state``."""
        bias = self.x.bias + torch.cat([self.y.bias, self.z.bias])
        return kernels.lem(kernels.Input(x, self.x.weight, bias), self.y.weight, self.z.weight, self.dt, state)

    def backend(self) -> str:
        """What computes the time loop where the weights are now."""
        return kernels.backend_for("lem", self.z.weight)
