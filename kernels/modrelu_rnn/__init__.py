"""The time loop of expRNN: a dense recurrence with modReLU."""

from torch import Tensor

from longwave.kernels.cell import Cell
from longwave.kernels.dispatch import Operation, documented, run
from longwave.kernels.modrelu_rnn import reference

CELL = Cell("modrelu_rnn", states=1, parameters=2, tape=1)


def cpu(pre, w, bias, h):
    return CELL(pre, [w, bias], [h])


Operation("modrelu_rnn", reference.modrelu_rnn, parameters={"w": (1, 1), "bias": (1,)}, states=("h",), cpu=cpu)


@documented(reference.modrelu_rnn)
def modrelu_rnn(
    pre: Tensor, w: Tensor, bias: Tensor, state: Tensor | None = None, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    return run("modrelu_rnn", backend, pre, state, w=w, bias=bias)
