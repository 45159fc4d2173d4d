"""The LSTM time loop."""

from longwave.kernels.dispatch import public
from longwave.kernels.lstm import reference
from longwave.kernels.operation import Operation

lstm = public(
    Operation(
        reference.lstm, parameters={"w_h": (4, 1)}, states=("h", "c"), gates=4, half=True, products={"h": 4}, tape=5
    )
)
