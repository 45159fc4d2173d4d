"""The LSTM time loop."""

from torch import Tensor

from longwave.kernels.dispatch import documented, run
from longwave.kernels.lstm import reference
from longwave.kernels.operation import Operation

Operation(
    "lstm",
    reference.lstm,
    parameters={"w_h": (4, 1)},
    states=("h", "c"),
    gates=4,
    products={"h": 4},
    tape=5,
)


@documented(reference.lstm)
def lstm(
    pre: Tensor, w_h: Tensor, state: tuple[Tensor, Tensor] | None = None, *, backend: str = "auto"
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return run("lstm", backend, pre, state, w_h=w_h)
