"""GRU (Cho et al. 2014): the other baseline."""

from dataclasses import dataclass

from torch import Tensor, nn

from longwave import kernels
from longwave.models.network import Network


@dataclass
class Config:
    """One GRU layer with PyTorch's default initialisation.

    Args:
        hidden: number of units.
    """

    name: str = "gru"
    hidden: int = 128

    def __post_init__(self):
        if self.hidden < 1:
            raise ValueError(f"hidden={self.hidden}: must be 1 or more")

    def build(self, inputs: int, outputs: int) -> Network:
        return Network(GRU(inputs, self.hidden), nn.Linear(self.hidden, outputs))


class GRU(nn.GRU):
    """One layer, (T, B, inputs) to (T, B, hidden), with the parameters, gates and initialisation of ``torch.nn.GRU``.

    On CUDA it is cuDNN's, elsewhere the time loop is :func:`longwave.kernels.gru`.
    """

    def __init__(self, inputs: int, hidden: int):
        super().__init__(inputs, hidden)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The hidden states (T, B, hidden) and the final one (B, hidden), from zeros or from ``state``."""
        if x.device.type == "cuda":
            sequence, h = super().forward(x, None if state is None else state.unsqueeze(0))
            return sequence, h[0]
        # The hidden bias of the gate m is multiplied by the reset gate; those of r and u are added as the input's are.
        b_r_u, b_m = self.bias_hh_l0.split([2 * self.hidden_size, self.hidden_size])
        bias = self.bias_ih_l0 + nn.functional.pad(b_r_u, (0, self.hidden_size))
        return kernels.gru(kernels.Input(x, self.weight_ih_l0, bias), self.weight_hh_l0, b_m, state)

    def backend(self) -> str:
        """What computes the time loop where the weights are now."""
        if self.weight_hh_l0.device.type == "cuda":
            return "torch.nn.GRU"
        return kernels.backend_for("gru", self.weight_hh_l0)
