"""The coRNN time loop."""

import torch

from longwave.kernels.cornn import reference
from longwave.kernels.dispatch import public
from longwave.kernels.operation import SCALAR, Operation


def cpu(kernel, pre, w_y, w_z, dt, gamma, epsilon, y, z, damping):
    dt_z = reference.z_step(dt, epsilon, damping)
    return kernel(pre, [torch.cat([w_y, w_z], dim=1), dt, dt_z, gamma, epsilon], [y, z])


cornn = public(
    Operation(
        reference.cornn,
        parameters={"w_y": (1, 1), "w_z": (1, 1), "dt": SCALAR, "gamma": SCALAR, "epsilon": SCALAR},
        per_step=("dt",),
        states=("y", "z"),
        options={"damping": (lambda value: value in ("explicit", "implicit"), "one of explicit, implicit")},
        half=True,
        products={"y z": 1},
        units=4,
        tape=2,
        cpu=cpu,
    )
)
