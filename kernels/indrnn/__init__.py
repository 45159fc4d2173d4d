"""The IndRNN time loop."""

from longwave.kernels.dispatch import public
from longwave.kernels.indrnn import reference
from longwave.kernels.operation import Operation

indrnn = public(Operation(reference.indrnn, parameters={"u": (1,)}, states=("h",), half=True, units=1))
