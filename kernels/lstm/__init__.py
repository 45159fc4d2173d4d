"""The LSTM time loop."""

from torch import Tensor

from longwave.kernels.cell import Cell
from longwave.kernels.dispatch import Operation, documented, run
from longwave.kernels.lstm import reference

CELL = Cell("lstm", states=2, parameters=1, gates=4, tape=5)


def cpu(pre, w_h, h, c):
    return CELL(pre, [w_h], [h, c])


Operation("lstm", reference.lstm, parameters={"w_h": (4, 1)}, states=("h", "c"), gates=4, cpu=cpu)


@documented(reference.lstm)
def lstm(
    pre: Tensor, w_h: Tensor, state: tuple[Tensor, Tensor] | None = None, *, backend: str = "auto"
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return run("lstm", backend, pre, state, w_h=w_h)
