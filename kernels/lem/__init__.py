"""The LEM time loop."""

from longwave.kernels.dispatch import public
from longwave.kernels.lem import reference
from longwave.kernels.operation import SCALAR, Operation

lem = public(
    Operation(
        reference.lem,
        parameters={"w_y": (3, 1), "w_z": (1, 1), "dt": SCALAR},
        per_step=("dt",),
        states=("y", "z"),
        gates=4,
        half=True,
        # y_{n-1} for both gates and z_n, then z_n for y_n.
        products={"y": 3, "z": 1},
        units=1,
        tape=5,
    )
)
