"""The LinOSS time loop."""

from torch import Tensor

from longwave.kernels.dispatch import documented, run
from longwave.kernels.linoss import reference
from longwave.kernels.operation import SCALAR, Operation


def cpu(kernel, pre, a, dt, y, z, discretisation):
    # The kernel's second state is the way that y goes in a step, dt z.
    s = reference.damping(a, dt, discretisation)
    sequence, y, way = kernel(pre, [s, a, dt], [y, dt * z])
    return sequence, y, way / dt


Operation(
    "linoss",
    reference.linoss,
    parameters={"a": (1,), "dt": SCALAR},
    states=("y", "z"),
    units=3,
    incremental=True,
    cpu=cpu,
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
