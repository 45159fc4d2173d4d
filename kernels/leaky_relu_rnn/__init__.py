"""The time loop of a dense recurrence with a leaky ReLU."""

from longwave.kernels.dispatch import public
from longwave.kernels.leaky_relu_rnn import reference
from longwave.kernels.operation import SCALAR, Operation

leaky_relu_rnn = public(
    Operation(
        reference.leaky_relu_rnn,
        parameters={"w": (1, 1), "slope": SCALAR},
        states=("h",),
        half=True,
        products={"h": 1},
        units=1,
        tape=1,
    )
)
