"""The GRU time loop."""

from torch import Tensor

from longwave.kernels.dispatch import documented, run
from longwave.kernels.gru import reference
from longwave.kernels.linear import Input
from longwave.kernels.operation import Operation

Operation(
    "gru",
    reference.gru,
    parameters={"w_h": (3, 1), "b_n": (1,)},
    states=("h",),
    gates=3,
    products={"h": 3},
    units=1,
    tape=4,
)


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
