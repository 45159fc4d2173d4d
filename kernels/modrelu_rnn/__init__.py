"""The time loop of expRNN: a dense recurrence with modReLU."""

from torch import Tensor

from longwave.kernels.dispatch import documented, run
from longwave.kernels.modrelu_rnn import reference
from longwave.kernels.operation import Operation

Operation(
    "modrelu_rnn",
    reference.modrelu_rnn,
    parameters={"w": (1, 1), "bias": (1,)},
    states=("h",),
    products={"h": 1},
    units=1,
    tape=1,
)


@documented(reference.modrelu_rnn)
def modrelu_rnn(
    pre: Tensor, w: Tensor, bias: Tensor, state: Tensor | None = None, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    return run("modrelu_rnn", backend, pre, state, w=w, bias=bias)
