"""What all models share: a recurrent layer and a linear readout of its last state."""

from torch import Tensor, nn


class Network(nn.Module):
    """``readout(y_T)``, where y is the sequence that the layer gives.

    Args:
        layer: as ``torch.nn.RNN``: maps x (T, B, D) to a sequence (T, B, H) and a final state.
        readout: maps (B, H) to (B, outputs).
        backend: what computes the layer's time loop; goes into the record.
    """

    def __init__(self, layer: nn.Module, readout: nn.Module, backend: str):
        super().__init__()
        self.layer, self.readout, self.backend = layer, readout, backend

    def forward(self, x: Tensor) -> Tensor:
        sequence, _ = self.layer(x)  # (T, B, H)
        return self.readout(sequence[-1])
