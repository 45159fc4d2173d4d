"""The LEM time loop."""

from torch import Tensor

from longwave.kernels.dispatch import documented, run
from longwave.kernels.lem import reference
from longwave.kernels.operation import SCALAR, Operation

Operation(
    "lem",
    reference.lem,
    parameters={"w_y": (3, 1), "w_z": (1, 1), "dt": SCALAR},
    states=("y", "z"),
    gates=4,
    # y_{n-1} for both gates and z_n, then z_n for y_n.
    products={"y": 3, "z": 1},
    units=1,
    tape=5,
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
