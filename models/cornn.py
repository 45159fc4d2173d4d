"""coRNN: a network of coupled, damped, driven oscillators (Rusch & Mishra, ICLR 2021)."""

from dataclasses import dataclass

from torch import Tensor, nn

import kernels
from models.network import Network


@dataclass
class Config:
    """coRNN.

    Args:
        hidden: number of oscillators.
        dt: step size of the discretisation, > 0.
        gamma: stiffness, the pull on the position y; >= 0.
        epsilon: damping, the pull on the velocity z; >= 0.
    """

    name: str = "cornn"
    hidden: int = 128
    dt: float = 0.042
    gamma: float = 1.0
    epsilon: float = 1.0

    def __post_init__(self):
        if self.hidden < 1:
            raise ValueError(f"hidden={self.hidden}: must be 1 or more")
        if not self.dt > 0:
            raise ValueError(f"dt={self.dt}: must be > 0")
        for key in ("gamma", "epsilon"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"{key}={getattr(self, key)}: must be >= 0")

    def build(self, inputs: int, outputs: int) -> Network:
        layer = CoRNN(inputs, self.hidden, self.dt, self.gamma, self.epsilon)
        return Network(layer, nn.Linear(self.hidden, outputs))


class CoRNN(nn.Module):
    """One coRNN layer, (T, B, inputs) to (T, B, hidden); the equation is at :func:`kernels.cornn`.

    One affine map acts on [x, z, y], in that order, with PyTorch's default initialisation U(-k, k),
    k = 1/sqrt(inputs + 2 hidden), for weight and bias (coRNN: {adding,sMNIST,psMNIST}/model.py).
    """

    def __init__(self, inputs: int, hidden: int, dt: float, gamma: float, epsilon: float):
        super().__init__()
        self.inputs, self.hidden = inputs, hidden
        self.dt, self.gamma, self.epsilon = dt, gamma, epsilon
        self.affine = nn.Linear(inputs + 2 * hidden, hidden)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The positions y (T, B, hidden) and the final (y, z), from zeros or from ``state``."""
        v, w_z, w_y = self.affine.weight.split([self.inputs, self.hidden, self.hidden], dim=1)
        # Under autocast the product is in bfloat16, and the recurrence in the type of its weights.
        pre = kernels.linear(x, v, self.affine.bias).to(w_y.dtype)  # (T, B, hidden)
        return kernels.cornn(pre, w_y, w_z, self.dt, self.gamma, self.epsilon, state)

    def backend(self) -> str:
        """What computes the time loop where the weights are now."""
        return kernels.backend_for("cornn", self.affine.weight)
