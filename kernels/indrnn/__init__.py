"""The IndRNN time loop."""

from torch import Tensor

from longwave.kernels.dispatch import documented, run
from longwave.kernels.indrnn import reference
from longwave.kernels.operation import Operation

Operation("indrnn", reference.indrnn, parameters={"u": (1,)}, states=("h",), half=True, units=1)


@documented(reference.indrnn)
def indrnn(pre: Tensor, u: Tensor, state: Tensor | None = None, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    return run("indrnn", backend, pre, state, u=u)
