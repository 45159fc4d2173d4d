"""The LEM time loop."""

from torch import Tensor

from longwave.kernels.cell import Cell
from longwave.kernels.dispatch import SCALAR, Operation, documented, run
from longwave.kernels.lem import reference

# Two products a step: y_{n-1} for both gates and z, then the new z for y.
CELL = Cell("lem", states=2, parameters=3, gates=4, tape=5)


def cpu(pre, w_y, w_z, dt, y, z):
    return CELL(pre, [w_y, w_z, dt], [y, z])


Operation(
    "lem",
    reference.lem,
    parameters={"w_y": (3, 1), "w_z": (1, 1), "dt": SCALAR},
    states=("y", "z"),
    gates=4,
    cpu=cpu,
)


@documented(reference.lem)
def lem(
    pre: Tensor,
    w_y: Tensor,
    w_z: Tensor,
    dt: float | Tensor = 1.0,
    state: tuple[Tensor, Tensor] | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return run("lem", backend, pre, state, w_y=w_y, w_z=w_z, dt=dt)
