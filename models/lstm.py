"""LSTM (Hochreiter & Schmidhuber 1997): the baseline of every table."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longwave import kernels
from longwave.models.layer import CuDNNLayer
from longwave.models.network import ModelConfig, Network
from longwave.schema import LATER, Annotated, Ge, Le, OneOf


@dataclass
class Config(ModelConfig):
    """One LSTM layer with PyTorch's default initialisation, but for the biases below.

    Args:
        hidden: number of units.
        forget_bias: the bias of the forget gate at the start; null is PyTorch's, which is near 0.
        chrono: T_max of the chrono initialisation (Tallec & Ollivier, ICLR 2018), the longest time over which
            something is to be remembered; 3 or more; null is none. The biases of the forget gate start as
            log(U(1, T_max - 1)), those of the input gate as their negatives.
        readout: what is read out, the hidden state or the cell state (as in asRNN's code).
    """

    name: str = "lstm"
    hidden: Annotated[int, Ge(1), Le(65536)] = 128
    forget_bias: Annotated[float | None, Ge(-100), Le(100)] = None
    chrono: Annotated[int | None, Ge(3), Le(10**9)] = None
    readout: Annotated[str, OneOf("hidden", "cell"), LATER] = "hidden"

    def __post_init__(self):
        super().__post_init__()
        if self.chrono is not None and self.forget_bias is not None:
            raise ValueError(f"forget_bias={self.forget_bias}: must be null where chrono={self.chrono} sets it")

    def build(self, inputs: int, outputs: int) -> Network:
        kind = Network if self.readout == "hidden" else CellNetwork
        return kind(LSTM(inputs, **self.settings("readout")), nn.Linear(self.hidden, outputs))


class LSTM(CuDNNLayer, nn.LSTM):
    """One layer, (T, B, inputs) to (T, B, hidden), with the parameters and gates of ``torch.nn.LSTM``.

    The initialisation is PyTorch's, with ``forget_bias`` and ``chrono`` as in :class:`Config`. ``readout`` is not an
    argument: it belongs to the network.
    """

    operation = "lstm"

    def __init__(self, inputs: int, hidden: int, *, batch_first: bool = False, backend: str = "auto", **settings):
        super().__init__(inputs, hidden, batch_first=batch_first, backend=backend)
        config = Config(hidden=hidden, **settings)
        with torch.no_grad():
            # PyTorch adds two biases, each (4 hidden) in the order i, f, g, o: here the first has the value.
            first, second = (bias.view(4, hidden) for bias in (self.bias_ih_l0, self.bias_hh_l0))
            if config.forget_bias is not None:
                first[1], second[1] = config.forget_bias, 0
            if config.chrono is not None:
                first[1] = torch.empty(hidden).uniform_(1, config.chrono - 1).log()
                first[0] = -first[1]
                second[:2] = 0

    def unroll(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The hidden states (T, B, hidden), and the final (h, c), each (B, hidden)."""
        pre = kernels.Input(x, self.weight_ih_l0, self.bias_ih_l0 + self.bias_hh_l0)
        return kernels.lstm(pre, self.weight_hh_l0, state, backend=self.requested)

    def cells(self, x: Tensor, h: Tensor, state: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The cell states (T, B, hidden) on x (T, B, inputs), given the hidden states h, from ``state``."""
        before, c = (torch.zeros_like(h[0]),) * 2 if state is None else state
        before = torch.cat([before.unsqueeze(0), h[:-1]])
        gates = F.linear(x, self.weight_ih_l0, self.bias_ih_l0) + F.linear(before, self.weight_hh_l0, self.bias_hh_l0)
        i, f, g, _ = gates.to(h.dtype).chunk(4, dim=-1)
        keep, drive, sequence = f.sigmoid(), i.sigmoid() * g.tanh(), []
        for kept, new in zip(keep.unbind(0), drive.unbind(0), strict=True):
            c = kept * c + new
            sequence.append(c)
        return torch.stack(sequence)


class CellNetwork(Network):
    """An LSTM whose cell state is read out, at the last step or at every step."""

    layer: LSTM

    def advance(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x = self.embed(x)
        sequence, final = self.layer(x, state)
        if self.reads != "every" and lengths is None:
            return self.read(final), final
        cells = self.layer.cells(x, sequence, state)
        return self.readout(cells if self.reads == "every" else self.layer.ends(cells, lengths)), final

    def read(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return self.readout(state[1])
