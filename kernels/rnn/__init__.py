"""The time loop of Elman's RNN."""

from torch import Tensor

from longwave.kernels.cell import Cell
from longwave.kernels.dispatch import Operation, documented, run
from longwave.kernels.rnn import reference

CELL = Cell("rnn", states=1, parameters=1, tape=1)


def cpu(pre, w_h, h):
    return CELL(pre, [w_h], [h])


Operation("rnn", reference.rnn, parameters={"w_h": (1, 1)}, states=("h",), cpu=cpu)


@documented(reference.rnn)
def rnn(pre: Tensor, w_h: Tensor, state: Tensor | None = None, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    return run("rnn", backend, pre, state, w_h=w_h)
