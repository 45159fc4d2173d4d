"""The UnICORNN time loop."""

from torch import Tensor

from longwave.kernels.dispatch import documented, run
from longwave.kernels.operation import SCALAR, Operation
from longwave.kernels.unicornn import reference


def cpu(kernel, pre, w, c, dt, alpha, y, z, anchor):
    return kernel(pre, [w, dt * c.sigmoid(), alpha], [y, z], anchor)


Operation(
    "unicornn",
    reference.unicornn,
    parameters={"w": (1,), "c": (1,), "dt": SCALAR, "alpha": SCALAR},
    states=("y", "z"),
    half=True,
    units=3,
    reversible=True,
    cpu=cpu,
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
