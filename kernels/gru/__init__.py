"""The GRU time loop."""

from torch import Tensor

from longwave.kernels.cell import Cell
from longwave.kernels.dispatch import Operation, documented, run
from longwave.kernels.gru import reference
from longwave.kernels.linear import Input

CELL = Cell("gru", states=1, parameters=2, gates=3, tape=4)


def cpu(pre, w_h, b_n, h):
    return CELL(pre, [w_h, b_n], [h])


Operation("gru", reference.gru, parameters={"w_h": (3, 1), "b_n": (1,)}, states=("h",), gates=3, cpu=cpu)


@documented(reference.gru)
def gru(
    pre: Tensor, w_h: Tensor, b_n: Tensor | None = None, state: Tensor | None = None, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    if b_n is None and isinstance(pre, Input):
        b_n = pre.weight.new_zeros(len(pre.weight) // 3)
    elif b_n is None and isinstance(pre, Tensor) and pre.dim() == 3:
        # What else pre may be is refused below.
        b_n = pre.new_zeros(pre.shape[2] // 3)
    return run("gru", backend, pre, state, w_h=w_h, b_n=b_n)
