"""The LinOSS time loop."""

from longwave.kernels.dispatch import public
from longwave.kernels.linoss import reference
from longwave.kernels.operation import SCALAR, Operation


def cpu(kernel, pre, a, dt, y, z, discretisation):
    # The kernel's second state is the way that y goes in a step, dt z.
    s = reference.damping(a, dt, discretisation)
    sequence, y, way = kernel(pre, [s, a, dt], [y, dt * z])
    return sequence, y, way / dt


linoss = public(
    Operation(
        reference.linoss,
        parameters={"a": (1,), "dt": SCALAR},
        per_step=("dt",),
        states=("y", "z"),
        options={"discretisation": (lambda value: value in ("im", "imex"), "one of im, imex")},
        half=True,
        units=3,
        incremental=True,
        cpu=cpu,
    )
)
