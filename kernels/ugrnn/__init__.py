"""The UGRNN time loop."""

from longwave.kernels.dispatch import public
from longwave.kernels.operation import Operation
from longwave.kernels.ugrnn import reference

ugrnn = public(
    Operation(
        reference.ugrnn,
        parameters={"w_h": (2, 1)},
        states=("h",),
        gates=2,
        half=True,
        products={"h": 2},
        tape=2,
    )
)
