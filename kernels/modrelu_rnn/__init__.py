"""The time loop of expRNN: a dense recurrence with modReLU."""

from longwave.kernels.dispatch import public
from longwave.kernels.modrelu_rnn import reference
from longwave.kernels.operation import Operation

modrelu_rnn = public(
    Operation(
        reference.modrelu_rnn,
        parameters={"w": (1, 1), "bias": (1,)},
        states=("h",),
        half=True,
        products={"h": 1},
        units=1,
        tape=1,
    )
)
