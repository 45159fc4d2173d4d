"""The operations with a Triton kernel, the sizes of the papers, and the number formats."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from longwave.benchmarks import cases
from longwave.benchmarks.cases import FUNCTIONS, Case
from longwave.kernels import library
from longwave.kernels.operation import OPERATIONS

# (T, B, H) of the papers, of each equation that has one.
FULL = {
    "cornn": [(500, 50, 128), (784, 120, 256), (5_000, 50, 128)],  # adding, sMNIST, the longest adding
    "unicornn": [(784, 32, 256), (17_984, 8, 32)],  # psMNIST, EigenWorms
    "indrnn": [(784, 32, 128)],
    "linoss": [(784, 32, 128), (17_984, 4, 128)],  # the serial loop, the scan
    "imex_linoss": [(17_984, 4, 128)],
    "lem": [(784, 128, 128)],
    "modrelu_rnn": [(784, 128, 128), (784, 128, 512)],
    "antisymmetric_rnn": [(784, 128, 128)],
    "gated_antisymmetric_rnn": [(784, 128, 128)],
    "rnn": [(500, 50, 128), (784, 128, 128)],
    "gru": [(500, 50, 128), (784, 128, 128), (784, 128, 256)],
    "lstm": [(500, 50, 128), (784, 128, 128), (784, 128, 256)],
    "nrde": [(1, 1, 5), (9, 17, 33), (154, 8, 16), (70, 181, 32)],  # odd ones; blocks of EigenWorms
}
# The solver, which is no operation: blocks of components for T steps, by rk4.
NRDE, COMPONENTS, STAGES = "nrde", 28, 4
# Of another operation.
USUAL = [(500, 50, 128)]
# Of every equation: T = 1, B = 1, widths that fill no block, clusters that are not full, the widest.
ODD = [(1, 17, 96), (63, 1, 96), (33, 5, 33), (9, 37, 330), (9, 3, 1000)]
SMALL = [(1, 1, 3), (9, 2, 5)]


class Mode(NamedTuple):
    """Number formats of a kernel.

    ``floor`` is added to the error that is allowed: one rounding of each number, where the loop that sets the bar may
    have none. Of fp32, 4 roundings, for sums in another order; of tf32, cuBLAS multiplies a single row in full; of
    bf16, what the backward pass reads again was stored rounded.
    """

    name: str
    dtype: torch.dtype  # of pre; all else is float32
    precision: str  # of torch.set_float32_matmul_precision
    floor: float


MODES = (
    Mode("fp32", torch.float32, "highest", 4 * 2.0**-23),
    Mode("tf32", torch.float32, "high", 2.0**-10),
    Mode("bf16", torch.bfloat16, "highest", 2.0**-8),
)


@contextlib.contextmanager
def products(mode: Mode) -> Iterator[None]:
    """Matrix products in the mode's precision, PyTorch's, cuDNN's and the kernels' own."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(mode.precision)
    torch.backends.cudnn.allow_tf32 = mode.precision == "high"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def equation_of(equation: str) -> str:
    """The operation, or the solver, that computes an equation of ``cases``."""
    return equation if equation in (*OPERATIONS, NRDE) else FUNCTIONS[equation]


def modes_of(equation: str) -> list[Mode]:
    """tf32 is for products; a bfloat16 ``pre`` for operations that take one."""
    if equation == NRDE:
        return [mode for mode in MODES if mode.name == "fp32"]
    operation = OPERATIONS[equation_of(equation)]
    has = {"fp32": True, "tf32": operation.dense, "bf16": operation.half and not equation.startswith("input_")}
    return [mode for mode in MODES if has[mode.name]]


def equations(only: str | None = None) -> list[str]:
    """Every equation that a Triton kernel computes, or those of one operation or the solver."""
    folders = FUNCTIONS | {NRDE: NRDE}
    fused = [name for name, folder in folders.items() if (library.FOLDER / folder / "triton.py").exists()]
    return [name for name in fused if only in (None, name, folders[name])]


def sizes(small: bool, only: str | None) -> tuple[list, list]:
    """Pairs of an equation and a size, of the odd ones and of the full ones, short before long."""
    names = equations(only)
    # The interpreter takes a minute for a few blocks of the solver.
    odd = [(name, size) for size in (SMALL if small else ODD) for name in names if name != NRDE or size == SMALL[0]]
    full = [] if small else [(name, size) for name in names for size in full_sizes(name)]
    return odd, sorted(full, key=lambda pair: pair[1])


def full_sizes(equation: str) -> list[tuple[int, int, int]]:
    return FULL.get(equation, USUAL if equation in OPERATIONS else [])


def named(equation: str, size: tuple[int, int, int]) -> str:
    return f"{equation} {' x '.join(map(str, size))}"


def example_on(device: torch.device, equation: str, steps: int, batch: int, hidden: int) -> Case:
    """Example of an equation in float64."""
    if equation == NRDE:
        example = cases.nrde_case(steps, batch, hidden, COMPONENTS, width=3 * hidden)
    else:
        example = cases.case(equation, steps, batch, hidden)
    return example.changed(lambda value: value.to(device))


def in_mode(example: Case, mode: Mode) -> Case:
    """In float32, with ``pre`` in the mode's type."""
    low = example.to(torch.float32)
    if mode.dtype != torch.float32:
        low.inputs["pre"] = low.inputs["pre"].detach().to(mode.dtype).requires_grad_()
    return low


def passes(example: Case, backend: str, size: tuple[int, int, int], mode: Mode) -> dict[str, Callable[[], object]]:
    """What runs the operation forward, and forward and backward from a gradient of every step."""
    leaves = list(example.inputs.values())
    cotangent = torch.randn(size, dtype=mode.dtype, device=leaves[0].device)

    def forward():
        with torch.no_grad():
            example.run(backend)

    def both():
        torch.autograd.grad(example.run(backend)[0], leaves, cotangent)

    return {"forward": forward, "both": both}
