"""The AntisymmetricRNN time loop, plain and gated."""

from functools import partial

from torch import Tensor

from longwave.kernels.antisymmetric_rnn import reference
from longwave.kernels.cell import Cell
from longwave.kernels.dispatch import SCALAR, Operation, documented, run

PLAIN = Cell("antisymmetric_rnn", states=1, parameters=2, tape=1)
# Both gates take the same product.
GATED = Cell("gated_antisymmetric_rnn", states=1, parameters=2, gates=2, tape=2)


def cpu(cell, pre, w, epsilon, gamma, h):
    return cell(pre, [reference.antisymmetric(w, gamma), epsilon], [h])


for name, cell, gated in (("antisymmetric_rnn", PLAIN, False), ("gated_antisymmetric_rnn", GATED, True)):
    Operation(
        name,
        partial(reference.antisymmetric_rnn, gated=gated),
        parameters={"w": (1, 1), "epsilon": SCALAR, "gamma": SCALAR},
        states=("h",),
        gates=1 + gated,
        cpu=partial(cpu, cell),
    )


@documented(reference.antisymmetric_rnn)
def antisymmetric_rnn(
    pre: Tensor,
    w: Tensor,
    epsilon: float | Tensor,
    gamma: float | Tensor,
    state: Tensor | None = None,
    gated: bool = False,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    name = "gated_antisymmetric_rnn" if gated else "antisymmetric_rnn"
    return run(name, backend, pre, state, w=w, epsilon=epsilon, gamma=gamma)
