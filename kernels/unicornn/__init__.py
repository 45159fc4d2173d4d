"""The UnICORNN time loop."""

from torch import Tensor

from longwave.kernels.cell import Cell
from longwave.kernels.dispatch import SCALAR, Operation, documented, run
from longwave.kernels.unicornn import reference

CELL = Cell("unicornn", states=2, parameters=3, reversible=True)


def cpu(pre, w, c, dt, alpha, y, z, anchor):
    return CELL(pre, [w, dt * c.sigmoid(), alpha], [y, z], anchor)


Operation(
    "unicornn",
    reference.unicornn,
    parameters={"w": (1,), "c": (1,), "dt": SCALAR, "alpha": SCALAR},
    states=("y", "z"),
    cpu=cpu,
    dense=False,
    half=True,
)


@documented(reference.unicornn)
def unicornn(
    pre: Tensor,
    w: Tensor,
    c: Tensor,
    dt: float | Tensor,
    alpha: float | Tensor,
    state: tuple[Tensor, Tensor] | None = None,
    anchor: int = 256,
    *,
    backend: str = "auto",
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    if not isinstance(anchor, int) or anchor < 0:
        raise ValueError(f"unicornn: anchor={anchor!r}: must be 0 (none) or a whole number of steps")
    return run("unicornn", backend, pre, state, {"anchor": anchor}, w=w, c=c, dt=dt, alpha=alpha)
