"""The FastGRNN time loop."""

from longwave.kernels.dispatch import public
from longwave.kernels.fastgrnn import reference
from longwave.kernels.operation import SCALAR, Operation

fastgrnn = public(
    Operation(
        reference.fastgrnn,
        parameters={"w_h": (1, 1), "b_z": (1,), "b_h": (1,), "zeta": SCALAR, "nu": SCALAR},
        states=("h",),
        half=True,
        # Gate and update take the same product.
        products={"h": 1},
        units=4,
        tape=2,
    )
)
