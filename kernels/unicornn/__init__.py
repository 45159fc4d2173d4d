"""The UnICORNN time loop."""

from longwave.kernels.dispatch import public
from longwave.kernels.operation import SCALAR, Operation
from longwave.kernels.unicornn import reference


def cpu(kernel, pre, w, c, dt, alpha, y, z, anchor):
    return kernel(pre, [w, dt * c.sigmoid(), alpha], [y, z], anchor)


unicornn = public(
    Operation(
        reference.unicornn,
        parameters={"w": (1,), "c": (1,), "dt": SCALAR, "alpha": SCALAR},
        per_step=("dt",),
        states=("y", "z"),
        options={"anchor": (lambda n: isinstance(n, int) and n >= 0, "0 (none) or a whole number of steps")},
        half=True,
        units=3,
        reversible=True,
        cpu=cpu,
    )
)
