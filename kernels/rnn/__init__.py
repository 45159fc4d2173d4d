"""The time loop of Elman's RNN."""

from longwave.kernels.dispatch import public
from longwave.kernels.operation import Operation
from longwave.kernels.rnn import reference

rnn = public(Operation(reference.rnn, parameters={"w_h": (1, 1)}, states=("h",), half=True, products={"h": 1}, tape=1))
