"""The GRU time loop."""

from longwave.kernels.dispatch import public
from longwave.kernels.gru import reference
from longwave.kernels.operation import Operation

gru = public(
    Operation(
        reference.gru,
        parameters={"w_h": (3, 1), "b_n": (1,)},
        states=("h",),
        gates=3,
        optional=("b_n",),
        half=True,
        products={"h": 3},
        units=1,
        tape=4,
    )
)
