"""The time loop of Elman's RNN."""

from torch import Tensor

from longwave.kernels.dispatch import documented, run
from longwave.kernels.operation import Operation
from longwave.kernels.rnn import reference

Operation("rnn", reference.rnn, parameters={"w_h": (1, 1)}, states=("h",), products={"h": 1}, tape=1)


@documented(reference.rnn)
def rnn(pre: Tensor, w_h: Tensor, state: Tensor | None = None, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    return run("rnn", backend, pre, state, w_h=w_h)
