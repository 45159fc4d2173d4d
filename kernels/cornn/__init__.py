"""The coRNN time loop."""

import torch
from torch import Tensor

from longwave.kernels.cornn import reference
from longwave.kernels.dispatch import documented, run
from longwave.kernels.operation import SCALAR, Operation


def cpu(kernel, pre, w_y, w_z, dt, gamma, epsilon, y, z, damping):
    dt_z = reference.z_step(dt, epsilon, damping)
    return kernel(pre, [torch.cat([w_y, w_z], dim=1), dt, dt_z, gamma, epsilon], [y, z])


Operation(
    "cornn",
    reference.cornn,
    parameters={"w_y": (1, 1), "w_z": (1, 1), "dt": SCALAR, "gamma": SCALAR, "epsilon": SCALAR},
    states=("y", "z"),
    half=True,
    products={"y z": 1},
    units=4,
    tape=2,
    cpu=cpu,
)


@documented(reference.cornn)
def cornn(
    pre: Tensor,
    w_y: Tensor,
    w_z: Tensor,
    dt: float | Tensor,
    gamma: float | Tensor,
    epsilon: float | Tensor,
    state: tuple[Tensor, Tensor] | None = None,
    damping: str = "explicit",
    *,
    backend: str = "auto",
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    if damping not in ("explicit", "implicit"):
        raise ValueError(f"cornn: damping={damping!r}: must be one of explicit, implicit")
    options = {"damping": damping}
    return run("cornn", backend, pre, state, options, w_y=w_y, w_z=w_z, dt=dt, gamma=gamma, epsilon=epsilon)
