"""The LinOSS time loop."""

from torch import Tensor

from longwave.kernels.cell import Cell
from longwave.kernels.dispatch import SCALAR, Operation, documented, run
from longwave.kernels.linoss import reference

CELL = Cell("linoss", states=2, parameters=3, incremental=True)


def cpu(pre, a, dt, y, z, discretisation):
    # The kernel's second state is the way that y goes in a step, dt z.
    s = reference.damping(a, dt, discretisation)
    sequence, y, way = CELL(pre, [s, a, dt], [y, dt * z])
    return sequence, y, way / dt


Operation(
    "linoss",
    reference.linoss,
    parameters={"a": (1,), "dt": SCALAR},
    states=("y", "z"),
    cpu=cpu,
    dense=False,
)


@documented(reference.linoss)
def linoss(
    pre: Tensor,
    a: Tensor,
    dt: float | Tensor,
    state: tuple[Tensor, Tensor] | None = None,
    discretisation: str = "im",
    *,
    backend: str = "auto",
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    if discretisation not in reference.DISCRETISATIONS:
        allowed = ", ".join(reference.DISCRETISATIONS)
        raise ValueError(f"linoss: discretisation={discretisation!r}: must be one of {allowed}")
    return run("linoss", backend, pre, state, {"discretisation": discretisation}, a=a, dt=dt)
