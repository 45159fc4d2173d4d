"""Speed of the kernels: ``python -m longwave.benchmarks.kernels``, on an idle machine.

No speed is printed for an operation whose values or gradients disagree with the reference. Forward and backward are
measured, one contender after the other in each round; the figures are medians:

- fused: what ``backend="auto"`` picks;
- reference: the loop in plain PyTorch;
- torch: ``torch.nn.LSTM``, ``GRU`` or ``RNN``, where there is one; for LinOSS the associative scan of its model; for
  the Neural RDE torchcde, backpropagated, where it is installed;
- compiled: ``torch.compile`` of the reference, where it compiles within a minute; where there is no time, the reason;
- bound: the operations of the matrix products over the sgemm rate, or the bytes over the copy rate, as measured now.

Dense cells are measured with their input product, from the inputs to the last state: a training step less its readout
and optimiser. Diagonal cells are measured as a layer in a stack, from ``pre`` and with a gradient for every step. The
Neural RDE is measured from log-signatures of 28 components to the gradients of the last state, with rk4.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from longwave import PACKAGE, kernels
from longwave.benchmarks import cases
from longwave.kernels.operation import OPERATIONS
from longwave.models import linoss
from longwave.training.environment import device_name, git, set_up_process

# The Neural RDE's, which is no requirement of this package.
TORCHCDE = "torch" if importlib.util.find_spec("torchcde") else "reference"
# Log-signatures of depth 2 of 7 channels, as of EigenWorms; its vector field's layers are as many times the state wide.
COMPONENTS, MULTIPLIER = 28, 3
# The cost of a time step is measured at these.
LENGTHS = (250, 1_000, 4_000, 16_000)


@dataclass(frozen=True)
class Size:
    """A case: an operation at a size that a paper uses, and how many times faster than its rival it should be."""

    name: str
    steps: int
    batch: int
    hidden: int
    target: float | None = None
    rival: str = "reference"
    by_length: bool = False  # measured at all of LENGTHS as well


SIZES = [
    Size("cornn", 500, 50, 128, 5, by_length=True),  # adding
    Size("cornn", 5_000, 50, 128),  # adding, the longest
    Size("cornn", 784, 120, 256, 2.2),  # sMNIST
    Size("unicornn", 784, 32, 256, 12, by_length=True),  # psMNIST
    Size("unicornn", 17_984, 8, 32, 250),  # EigenWorms
    Size("lstm", 500, 50, 128, 1.8, "torch"),
    Size("gru", 500, 50, 128, 3),
    Size("lem", 500, 50, 128, 4),
    Size("modrelu_rnn", 500, 50, 128, 4),
    Size("antisymmetric_rnn", 500, 50, 128),
    Size("rnn", 500, 50, 128, rival="torch"),
    Size("fastgrnn", 500, 50, 128),
    Size("fastrnn", 500, 50, 128),
    Size("leaky_relu_rnn", 500, 50, 128),
    Size("ugrnn", 500, 50, 128),
    Size("indrnn", 784, 32, 128, 12),
    Size("linoss", 17_984, 4, 128, rival="torch"),  # EigenWorms: 64 complex oscillators
    Size("nrde", 154, 8, 16, 5, TORCHCDE),
    Size("nrde", 70, 181, 32, 1.5, TORCHCDE),  # EigenWorms' whole training set
]


def contenders(size: Size) -> dict[str, Callable[[], object]]:
    """By name, what runs forward and backward once."""
    if size.name == "nrde":
        return nrde_contenders(size)
    torch.manual_seed(0)
    example = cases.case(size.name, 2, size.batch, size.hidden).to(torch.float32)
    gates = OPERATIONS[size.name].gates
    parameters = {k: v for k, v in example.inputs.items() if k != "pre" and not k.startswith("state_")}
    # Step sizes and the like are numbers in the papers; what is (H,) here is trained.
    parameters = {k: v if v.dim() else v.item() for k, v in parameters.items()}
    leaves = [p for p in parameters.values() if isinstance(p, Tensor)]

    if not OPERATIONS[size.name].dense:
        pre = torch.randn(size.steps, size.batch, size.hidden, requires_grad=True)
        cotangent = torch.randn_like(pre)

        def step(backend: str):
            y, _ = example.operation(pre, **parameters, backend=backend)
            torch.autograd.grad(y, [pre, *leaves], cotangent)

        def scan():
            a = parameters["a"]
            M, g = linoss.step(a, torch.full_like(a, parameters["dt"]), "im")
            x = linoss.scan(M, g * pre.unsqueeze(-2), torch.zeros(size.batch, 2, size.hidden))
            torch.autograd.grad(x[..., 1, :], [pre, a], cotangent)
    else:
        x = torch.randn(size.steps, size.batch, 2)
        v = (torch.randn(gates * size.hidden, 2) / 2).requires_grad_()
        bias = torch.zeros(gates * size.hidden, requires_grad=True)
        cotangent = torch.randn(size.batch, size.hidden)

        def step(backend: str):
            pre = kernels.Input(x, v, bias) if backend == "auto" else torch.nn.functional.linear(x, v, bias)
            _, state = example.operation(pre, **parameters, backend=backend)
            last = state if isinstance(state, Tensor) else state[0]
            torch.autograd.grad(last, [v, bias, *leaves], cotangent)

    result = {"fused": lambda: step("auto"), "reference": lambda: step("reference")}
    if size.name == "linoss":
        result["torch"] = scan
    if size.name in ("lstm", "gru", "rnn"):
        module = getattr(torch.nn, size.name.upper())(2, size.hidden)

        def torch_step():
            _, state = module(x)
            last = state[0] if size.name == "lstm" else state
            torch.autograd.grad(last[0], list(module.parameters()), cotangent)

        result["torch"] = torch_step
    return result


def nrde_case(size: Size) -> cases.Case:
    width = MULTIPLIER * size.hidden
    return cases.nrde_case(size.steps, size.batch, size.hidden, COMPONENTS, width=width).to(torch.float32)


def nrde_contenders(size: Size) -> dict[str, Callable[[], object]]:
    example = nrde_case(size)
    example.inputs["x"].requires_grad_(False)
    x, state, *leaves = example.inputs.values()
    cotangent = torch.randn(size.batch, size.hidden, generator=torch.Generator().manual_seed(1))

    def step(backend: str):
        _, last = example.run(backend)
        return torch.autograd.grad(last, [state, *leaves], cotangent)

    result = {"fused": lambda: step("auto"), "reference": lambda: step("reference")}
    if TORCHCDE == "torch":
        import torchcde

        class Matrix(torch.nn.Module):
            def forward(self, t: Tensor, h: Tensor) -> Tensor:
                linear, (first, b_first, inner, b_inner, last, b_last) = torch.nn.functional.linear, leaves
                z = linear(linear(h, first, b_first).relu(), inner, b_inner)
                return linear(z.tanh(), last, b_last).unflatten(1, (size.hidden, COMPONENTS))

        # The path whose increments are the log-signatures, from one whole number to the next.
        path = torch.cat([torch.zeros_like(x[:1]), x]).cumsum(0).transpose(0, 1)
        control, method = torchcde.LinearInterpolation(path), {"method": "rk4", "options": {"step_size": 1.0}}

        def torchcde_step():
            last = torchcde.cdeint(control, Matrix(), state, control.interval, adjoint=False, **method)[:, -1]
            return torch.autograd.grad(last, [state, *leaves], cotangent)

        result["torch"] = torchcde_step
    return result


def once(function: Callable) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def rates() -> tuple[float, float]:
    """Floating-point operations a second of a matrix product, and bytes a second of a copy."""
    a, b = torch.randn(2, 1536, 1536)
    source, target = torch.randn(2, 2**24)
    sgemm = min(once(lambda: a @ b) for _ in range(8))
    copy = min(once(lambda: target.copy_(source)) for _ in range(8))
    return 2 * 1536**3 / sgemm, 2 * source.numel() * 4 / copy


def bound(size: Size, sgemm: float, copy: float) -> float:
    """Seconds that forward and backward take at least."""
    if size.name == "nrde":
        weights = sum(p.numel() for key, p in nrde_case(replace(size, steps=1)).inputs.items() if "weight" in key)
        # Four stages.
        return 3 * 2 * 4 * size.steps * size.batch * weights / sgemm
    if not OPERATIONS[size.name].dense:
        # Forward: pre, y. Backward: pre or y (LinOSS: both), the gradient of y, the gradient of pre.
        return (6 if size.name == "linoss" else 5) * 4 * size.steps * size.batch * size.hidden / copy
    inputs = cases.case(size.name, 1, 1, size.hidden).inputs
    weights = sum(p.numel() for key, p in inputs.items() if key.startswith("w"))
    # Forward, backward through time, and the gradient of the weights.
    return 3 * 2 * size.steps * size.batch * weights / sgemm


def measure(size: Size, seconds: float) -> dict:
    """Medians in seconds of all contenders, in rounds until the time is up, three at least; and the bound."""
    functions = contenders(size)
    times, bounds = {name: [] for name in functions}, []
    begin = time.perf_counter()
    while len(times["fused"]) < 3 or time.perf_counter() - begin < seconds:
        bounds.append(bound(size, *rates()))
        for name, function in functions.items():
            # As in training, where a step follows another: not after what has left its data in the caches, and OpenMP's
            # threads in a loop that waits for more.
            function()
            times[name].append(once(function))
    medians = {name: statistics.median(values) for name, values in (times | {"bound": bounds}).items()}
    return medians | {"rounds": len(bounds)}


def by_length(size: Size, seconds: float) -> dict[int, float]:
    """Microseconds a time step, forward and backward, at each of ``LENGTHS``: medians."""
    result = {}
    for length in LENGTHS:
        function = contenders(replace(size, steps=length))["fused"]
        # The heap grows to what a step needs in the first few.
        for _ in range(5):
            function()
        times, begin = [], time.perf_counter()
        while len(times) < 5 or time.perf_counter() - begin < seconds / len(LENGTHS):
            times.append(once(function) / length)
        result[length] = 1e6 * statistics.median(times)
    return result


def compiled(size: Size, limit: float, step: float) -> dict:
    """``torch.compile`` of the reference, in a process of its own: the median, and the time to compile.

    ``limit`` is the seconds that compilation may take, 0 leaves it out; ``step`` those that the reference takes. Of
    ``compiled`` and ``compile_seconds`` None is unknown; ``no_compiled`` is why there is no ``compiled``.
    """
    result = {"compiled": None, "compile_seconds": None, "no_compiled": None}
    if not limit:
        return result | {"no_compiled": "not tried"}
    late = f"not compiled within {limit:g} s"
    command = [sys.executable, "-m", "longwave.benchmarks.kernels", "--one-compiled", str(SIZES.index(size))]
    command += ["--threads", str(torch.get_num_threads())]
    # What an earlier run has compiled would make this one look quick.
    options = {"env": os.environ | {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}, "cwd": PACKAGE}
    try:
        # Beside compilation, time for the start of a process and a few steps.
        done = subprocess.run(command, **options, capture_output=True, text=True, timeout=limit + 20 + 5 * step)
    except subprocess.TimeoutExpired:
        return result | {"no_compiled": late}
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return result | {"no_compiled": f"failed: {reason[:80]}"}
    result["compile_seconds"], seconds = map(float, done.stdout.split()[-2:])
    return result | ({"no_compiled": late} if result["compile_seconds"] > limit else {"compiled": seconds})


def one_compiled(size: Size):
    """Prints the seconds that compilation takes, and the median of a step."""
    step = torch.compile(contenders(size)["reference"], fullgraph=False)
    first = once(step)
    seconds = statistics.median(once(step) for _ in range(3))
    print(first - seconds, seconds)


@functools.cache
def disagreements(name: str) -> list[str]:
    """Values and gradients of an operation and of its options that are not the reference's, at several sizes."""
    found = []
    if name == "nrde":
        for size, options in itertools.product(cases.NRDE_SIZES, cases.NRDE_OPTIONS):
            example = cases.nrde_case(*size, **options)
            wrong = cases.differences(example, "auto")
            # How a single number is rounded is luck.
            wrong += [] if size == (1, 1, 1, 1) else cases.excess_errors(example, "auto")
            found += [f"{options}, (T, B, H, D) = {size}: {reason}" for reason in wrong]
    for equation, size in itertools.product(cases.FUNCTIONS, cases.SIZES):
        if cases.FUNCTIONS[equation] == name:
            wrong = cases.differences(cases.case(equation, *size), "auto")
            wrong += cases.excess_errors(cases.case_by_unit(equation, *size), "auto")
            found += [f"{equation}, (T, B, H) = {size}: {reason}" for reason in wrong]
    return found


def milliseconds(value: float | None) -> str:
    return "" if value is None else f"{1e3 * value:.1f}" if value < 1 else f"{1e3 * value:.0f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted({size.name for size in SIZES})
    parser.add_argument("--only", choices=names, metavar="OPERATION", help="one operation; no file without --json")
    parser.add_argument("--seconds", type=float, default=20, help="time for each case")
    parser.add_argument("--threads", type=int, help="default: PyTorch's choice")
    parser.add_argument(
        "--compile", type=float, default=60, metavar="SECONDS", help="time for torch.compile; 0 leaves it out"
    )
    parser.add_argument("--json", type=Path, help="default: benchmarks/kernels.json")
    parser.add_argument("--one-compiled", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    set_up_process(arguments.threads)
    if arguments.one_compiled is not None:
        one_compiled(SIZES[arguments.one_compiled])
        return

    table = Table("operation", title="Forward and backward in milliseconds (median)")
    for column in ("T", "B", "H", "fused", "reference", "torch", "compiled", "bound", "speed-up", "target", "of bound"):
        table.add_column(column, justify="right")
    rows, reasons = [], []

    def footnote(reason: str) -> str:
        if reason not in reasons:
            reasons.append(reason)
        return f"({reasons.index(reason) + 1})"

    chosen = [size for size in SIZES if arguments.only in (None, size.name)]
    for size in chosen:
        wrong = disagreements(size.name)
        shape = (size.name, str(size.steps), str(size.batch), str(size.hidden))
        rows.append(row := vars(size) | {"green": not wrong})
        if wrong:
            table.add_row(*shape, footnote(f"disagrees with the reference: {wrong[0]}"))
            continue
        row |= measure(size, arguments.seconds)
        row["backend"] = kernels.backend_for(size.name, torch.zeros(1))
        row |= compiled(size, arguments.compile, row["reference"])
        row["speedup"] = row[size.rival] / row["fused"]
        times = {key: milliseconds(row.get(key)) for key in ("fused", "reference", "torch", "compiled", "bound")}
        if row["no_compiled"]:
            times["compiled"] = footnote(row["no_compiled"])
        if size.name == "nrde" and size.rival == "reference":
            times["torch"] = footnote("torchcde is not installed: the speed-up is that over the reference")
        goal = f"{size.target:g}x" if size.target else ""
        goal += " torch" if size.rival == "torch" else ""
        table.add_row(*shape, *times.values(), f"{row['speedup']:.1f}x", goal, f"{row['bound'] / row['fused']:.0%}")
    sgemm, copy = rates()
    console = Console(width=130)
    console.print(table)
    for number, reason in enumerate(reasons, 1):
        console.print(f"({number}) {reason}", markup=False)
    lengths = Table("operation", "B", "H", *(f"T = {length:,}" for length in LENGTHS))
    lengths.title = "Forward and backward in microseconds a time step (median)"
    for row, size in zip(rows, chosen, strict=True):
        if row["green"] and size.by_length:
            row["microseconds_a_step"] = by_length(size, arguments.seconds)
            values = [f"{value:.1f}" for value in row["microseconds_a_step"].values()]
            lengths.add_row(size.name, str(size.batch), str(size.hidden), *values)
    if lengths.rows:
        console.print(lengths)
    console.print(f"sgemm {sgemm / 1e9:.0f} Gflop/s, copy {copy / 1e9:.1f} GB/s, {torch.get_num_threads()} threads")
    path = arguments.json or (None if arguments.only else PACKAGE / "benchmarks" / "kernels.json")
    environment = {
        "machine": platform.machine(),
        "device": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "git": (commit := git()) and commit.model_dump(),
        "options": {"only": arguments.only, "seconds": arguments.seconds, "compile": arguments.compile},
        "sgemm": sgemm,
        "copy": copy,
    }
    if path:
        path.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
