"""The AntisymmetricRNN time loop, plain and gated."""

from functools import partial

from longwave.kernels.antisymmetric_rnn import reference
from longwave.kernels.dispatch import public
from longwave.kernels.operation import SCALAR, Operation


def cpu(kernel, pre, w, epsilon, gamma, h):
    return kernel(pre, [reference.antisymmetric(w, gamma), epsilon], [h])


plain, gated = (
    Operation(
        definition,
        parameters={"w": (1, 1), "epsilon": SCALAR, "gamma": SCALAR},
        states=("h",),
        gates=gates,
        name=name,
        folder="antisymmetric_rnn",
        half=True,
        # Both gates take the same product.
        products={"h": 1},
        units=1,
        tape=gates,
        cpu=cpu,
    )
    for name, definition, gates in (
        ("antisymmetric_rnn", reference.antisymmetric_rnn, 1),
        ("gated_antisymmetric_rnn", partial(reference.antisymmetric_rnn, gated=True), 2),
    )
)
antisymmetric_rnn = public(plain, gated=gated)
