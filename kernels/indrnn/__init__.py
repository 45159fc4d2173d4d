"""The IndRNN time loop."""

from torch import Tensor

from longwave.kernels.cell import Cell
from longwave.kernels.dispatch import Operation, documented, run
from longwave.kernels.indrnn import reference

CELL = Cell("indrnn", states=1, parameters=1)


def cpu(pre, u, h):
    return CELL(pre, [u], [h])


Operation("indrnn", reference.indrnn, parameters={"u": (1,)}, states=("h",), cpu=cpu, half=True, dense=False)


@documented(reference.indrnn)
def indrnn(pre: Tensor, u: Tensor, state: Tensor | None = None, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    return run("indrnn", backend, pre, state, u=u)
