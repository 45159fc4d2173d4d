"""What all models share: a recurrent layer and a linear readout of its last state."""

from torch import Tensor, nn


class Network(nn.Module):
    """A recurrent layer, and a readout of what it says at the last step.

    Args:
        layer: maps x (T, B, D) to a sequence (T, B, H) and a final state: the end of the sequence, (B, H), or a tuple
            that begins with it. Its ``backend()`` says what computes the time loop, for the record.
        readout: maps (B, H) to (B, outputs).
    """

    def __init__(self, layer: nn.Module, readout: nn.Module):
        super().__init__()
        self.layer, self.readout = layer, readout

    def forward(self, x: Tensor) -> Tensor:
        # Not sequence[-1], whose gradient is a sequence of zeros.
        _, state = self.layer(x)
        return self.readout(state[0] if isinstance(state, tuple) else state)
