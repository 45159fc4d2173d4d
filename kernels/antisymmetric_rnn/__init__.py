"""The AntisymmetricRNN time loop, plain and gated."""

from functools import partial

from torch import Tensor

from longwave.kernels.antisymmetric_rnn import reference
from longwave.kernels.dispatch import documented, run
from longwave.kernels.operation import SCALAR, Operation


def cpu(kernel, pre, w, epsilon, gamma, h):
    return kernel(pre, [reference.antisymmetric(w, gamma), epsilon], [h])


for name, gated in (("antisymmetric_rnn", False), ("gated_antisymmetric_rnn", True)):
    Operation(
        name,
        partial(reference.antisymmetric_rnn, gated=gated),
        parameters={"w": (1, 1), "epsilon": SCALAR, "gamma": SCALAR},
        states=("h",),
        gates=1 + gated,
        folder="antisymmetric_rnn",
        # Both gates take the same product.
        products={"h": 1},
        units=1,
        tape=1 + gated,
        cpu=cpu,
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
