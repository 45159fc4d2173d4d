"""The FastRNN time loop."""

from longwave.kernels.dispatch import public
from longwave.kernels.fastrnn import reference
from longwave.kernels.operation import SCALAR, Operation

fastrnn = public(
    Operation(
        reference.fastrnn,
        parameters={"w_h": (1, 1), "alpha": SCALAR, "beta": SCALAR},
        states=("h",),
        half=True,
        products={"h": 1},
        units=2,
        tape=1,
    )
)
