"""LSTM (Hochreiter & Schmidhuber 1997): the baseline of every table."""

from dataclasses import dataclass

from torch import nn

from models.network import Network


@dataclass
class Config:
    """One LSTM layer with PyTorch's default initialisation.

    Args:
        hidden: number of units.
    """

    name: str = "lstm"
    hidden: int = 128

    def __post_init__(self):
        if self.hidden < 1:
            raise ValueError(f"hidden={self.hidden}: must be 1 or more")

    def build(self, inputs: int, outputs: int) -> Network:
        return Network(nn.LSTM(inputs, self.hidden), nn.Linear(self.hidden, outputs), backend="torch.nn.LSTM")
