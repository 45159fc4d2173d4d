"""GRU (Cho et al. 2014): the other baseline."""

from dataclasses import dataclass

from torch import Tensor, nn

from longwave import kernels
from longwave.models.layer import CuDNNLayer
from longwave.models.network import ModelConfig, Network
from longwave.schema import Annotated, Ge, Le


@dataclass
class Config(ModelConfig):
    """One GRU layer with PyTorch's default initialisation.

    Args:
        hidden: number of units.
    """

    name: str = "gru"
    hidden: Annotated[int, Ge(1), Le(65536)] = 128

    def build(self, inputs: int, outputs: int) -> Network:
        return Network(GRU(inputs, self.hidden), nn.Linear(self.hidden, outputs))


class GRU(CuDNNLayer, nn.GRU):
    """One layer, (T, B, inputs) to (T, B, hidden), with parameters, gates and initialisation of ``torch.nn.GRU``."""

    operation = "gru"

    def unroll(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The hidden states (T, B, hidden), and the final one (B, hidden)."""
        # The hidden bias of the gate m is multiplied by the reset gate; those of r and u are added as the input's are.
        b_r_u, b_m = self.bias_hh_l0.split([2 * self.hidden_size, self.hidden_size])
        bias = self.bias_ih_l0 + nn.functional.pad(b_r_u, (0, self.hidden_size))
        pre = kernels.Input(x, self.weight_ih_l0, bias)
        return kernels.gru(pre, self.weight_hh_l0, b_m, state, backend=self.requested)
