"""The time of the Triton kernels beside that of their rivals."""

import functools
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from longwave.benchmarks.cases import FUNCTIONS, Case
from longwave.benchmarks.gpu_cases import (
    MODES,
    NRDE,
    SMALL,
    STAGES,
    Mode,
    equation_of,
    equations,
    example_on,
    full_sizes,
    in_mode,
    modes_of,
    named,
    passes,
    products,
)
from longwave.benchmarks.gpu_report import Item, Report, Skipped, one_line
from longwave.kernels.operation import OPERATIONS

# Steps, beside B and H, at which the time of a step is measured.
LENGTHS = (250, 1_000, 4_000, 16_000)
BY_LENGTH = {"cornn": (50, 128), "unicornn": (32, 256), "linoss": (4, 128)}
CUDNN = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
# A graph, and a compiled loop, are made of this many steps at most.
GRAPHED = 1_000
COMPILED = 16
FLUSH = 2**28  # bytes, more than any L2 holds


def speeds(report: Report, small: bool, only: str | None) -> Iterator[Item]:
    names = [name for name in equations(only) if name in OPERATIONS or name == NRDE]
    at = {name: SMALL[:1] if small and name == NRDE else SMALL[-1:] if small else full_sizes(name) for name in names}
    yield Item("rates", functools.partial(rates_of, report))
    for name in names:
        for size in at[name]:
            yield Item(named(name, size), functools.partial(measure, report, name, size))
    for name in names:
        if name in BY_LENGTH:
            yield Item(f"{name} by length", functools.partial(by_length, report, name, small))
    # Last, since compilation takes longest.
    for name in [name for name in names if name != NRDE]:
        yield Item(f"{name} compiled", functools.partial(measure_compiled, report, name, at[name][0]))


def refuse_the_wrong(report: Report, equation: str) -> None:
    if FUNCTIONS.get(equation, equation) in report.wrong:
        raise Skipped("the check found it wrong")


def rates_of(report: Report) -> Iterator[dict]:
    """What bounds are made of: bytes a second of a copy, and operations a second of matrix products in each mode."""
    size = 2**8 if report.device.type == "cpu" else 2**13
    source = torch.zeros(size, size, device=report.device)
    target = torch.empty_like(source)
    times = interleaved({"copy": lambda: target.copy_(source)}, 0.3, report.device)
    found = {"copy": 2 * source.nbytes / times["copy"] * 1e3}
    for mode in MODES:
        a = torch.randn(size, size, device=report.device, dtype=mode.dtype)
        with products(mode):
            times = interleaved({"product": lambda a=a: a @ a}, 0.3, report.device)
        found[mode.name] = 2 * size**3 / times["product"] * 1e3
    report.content["speed"]["rates"] = found
    yield {"ok": True} | found


def bounds(report: Report, example: Case, equation: str, size: tuple[int, int, int], mode: Mode) -> dict[str, float]:
    """Milliseconds that forward, and forward and backward, take at least: bytes of sequences, or products.

    Forward: pre, y. Backward: y or pre, the gradients of y and of pre. The products are those with the recurrent
    weights, backward those of the gradients of state and of weights.
    """
    steps, batch, hidden = size
    gates = 0 if equation == NRDE else OPERATIONS[equation_of(equation)].gates
    numbers = steps * batch * hidden * torch.finfo(mode.dtype).bits / 8
    weights = sum(p.numel() for key, p in example.inputs.items() if p.dim() == 2 and not key.startswith("state_"))
    weights *= STAGES if equation == NRDE else 1
    rates, found = report.content["speed"]["rates"], {}
    for direction, sequences, times in (("forward", 1 + gates, 1), ("both", 3 + 2 * gates, 3)):
        by_memory = sequences * numbers / rates["copy"]
        by_products = times * 2 * steps * batch * weights / rates[mode.name]
        found[direction] = 1e3 * max(by_memory, by_products)
    return found


def measure(report: Report, equation: str, size: tuple[int, int, int]) -> Iterator[dict]:
    """Milliseconds of the kernel and of its rivals, forward, and forward and backward (``both``)."""
    refuse_the_wrong(report, equation)
    steps = size[0]
    exact = example_on(report.device, equation, *size)
    for mode in modes_of(equation):
        example = in_mode(exact, mode)
        contenders = {f"fused {key}": run for key, run in passes(example, "triton", size, mode).items()}
        if on_clusters(equation, size, mode, report.device):
            alone = passes(example, "triton", size, mode)
            contenders |= {f"without clusters {key}": without_clusters(run) for key, run in alone.items()}
        absent = {}
        with products(mode):
            if mode.name == "fp32":
                eager = passes(example, "reference", size, mode)
                contenders |= {f"eager {key}": run for key, run in eager.items()}
                if report.device.type != "cuda" or steps > GRAPHED:
                    absent["graphed"] = f"only on CUDA, up to {GRAPHED} steps"
                else:
                    try:
                        contenders |= {f"graphed {key}": graphed(run) for key, run in eager.items()}
                    except RuntimeError as problem:
                        absent["graphed"] = one_line(problem)
            if equation == "linoss" and mode.name == "fp32":
                contenders |= {f"scan {key}": run for key, run in scan_passes(example, size).items()}
            if equation in CUDNN and report.device.type == "cuda":
                contenders |= {f"cudnn {key}": run for key, run in cudnn_passes(equation, size, mode).items()}
            times = interleaved(contenders, 0.25, report.device)
        least = bounds(report, example, equation, size, mode)
        shares = {f"share of the bound, {key}": bound / times[f"fused {key}"] for key, bound in least.items()}
        step = {"microseconds a step": 1e3 * times["fused both"] / steps}
        yield {"mode": mode.name} | times | step | shares | {f"no {key}": why for key, why in absent.items()}


def on_clusters(equation: str, size: tuple[int, int, int], mode: Mode, device: torch.device) -> bool:
    """Whether the fused loop, forward, is that of ``kernels.cluster``."""
    from longwave.kernels import cluster, dense

    if equation == NRDE or device.type != "cuda" or not OPERATIONS[equation_of(equation)].dense:
        return False
    operation, like = OPERATIONS[equation_of(equation)], torch.empty((), device=device).expand(size)
    card = dense.multiprocessors(like)
    p, _ = dense.plan(operation, size[2], size[1], card, tf32=mode.name == "tf32")
    return p.reads_l2 and cluster.choose(operation, mode.dtype, like) is not None


def without_clusters(run: Callable[[], object]) -> Callable[[], object]:
    from longwave.kernels import cluster

    def alone():
        cluster.ENABLED = False
        try:
            run()
        finally:
            cluster.ENABLED = True

    return alone


def scan_passes(example: Case, size: tuple[int, int, int]) -> dict[str, Callable[[], object]]:
    """The associative scan of the model, which it takes where there is no kernel."""
    from longwave.models.linoss import scan, step

    pre, a, dt = (example.inputs[key] for key in ("pre", "a", "dt"))
    cotangent = torch.randn(size, device=pre.device)

    def forward() -> torch.Tensor:
        M, g = step(a, dt.expand_as(a), "im")
        return scan(M, g * pre.unsqueeze(-2), pre.new_zeros(size[1], 2, size[2]))[..., 1, :]

    def without_gradient():
        with torch.no_grad():
            forward()

    return {"forward": without_gradient, "both": lambda: torch.autograd.grad(forward(), [pre, a, dt], cotangent)}


def cudnn_passes(equation: str, size: tuple[int, int, int], mode: Mode) -> dict[str, Callable[[], object]]:
    """The layer of torch.nn, from two channels, whose product is in its time."""
    steps, batch, hidden = size
    layer = CUDNN[equation](2, hidden).to("cuda", mode.dtype)
    x = torch.randn(steps, batch, 2, device="cuda", dtype=mode.dtype)
    cotangent = torch.randn(steps, batch, hidden, device="cuda", dtype=mode.dtype)
    leaves = list(layer.parameters())

    def forward():
        with torch.no_grad():
            layer(x)

    return {"forward": forward, "both": lambda: torch.autograd.grad(layer(x)[0], leaves, cotangent)}


def graphed(run: Callable[[], object]) -> Callable[[], object]:
    """``run`` as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def interleaved(contenders: dict[str, Callable], seconds: float, device: torch.device, most: int = 30) -> dict:
    """Medians in milliseconds: one contender after the other in each round, each from an empty L2.

    Each runs ``seconds`` in all, ``most`` times at most and once at least, after a run that is not counted; on a CPU
    twice.
    """
    most = 2 if device.type == "cpu" else most
    scratch = torch.empty(FLUSH if device.type == "cuda" else 1, dtype=torch.uint8, device=device)
    times = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(most):
        for name, run in contenders.items():
            if not times[name] or sum(times[name]) < 1e3 * seconds:
                scratch.zero_()
                times[name].append(once(run, device))
    return {name: statistics.median(found) for name, found in times.items()}


def once(run: Callable, device: torch.device) -> float:
    """Milliseconds."""
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - began)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def by_length(report: Report, equation: str, small: bool) -> Iterator[dict]:
    """Microseconds of a step, forward and backward in fp32, at each length."""
    refuse_the_wrong(report, equation)
    batch, hidden = (2, 5) if small else BY_LENGTH[equation]
    for steps in (4, 8) if small else LENGTHS:
        size = (steps, batch, hidden)
        example = in_mode(example_on(report.device, equation, *size), MODES[0])
        run = passes(example, "triton", size, MODES[0])["both"]
        (ms,) = interleaved({"": run}, 0.3, report.device).values()
        yield {"T": steps, "B": batch, "H": hidden, "microseconds a step": 1e3 * ms / steps}


def measure_compiled(report: Report, equation: str, size: tuple[int, int, int]) -> Iterator[dict]:
    """``torch.compile`` of the eager loop, of 16 steps that follow each other: all of them take minutes to compile."""
    steps, batch, hidden = size
    some = min(COMPILED, steps)
    example = in_mode(example_on(report.device, equation, some, batch, hidden), MODES[0])
    states = [key for key in example.inputs if key.startswith("state_")]
    leaves = list(example.inputs.values())
    small = report.device.type == "cpu"
    part = torch.compile(lambda inputs: example.run("reference", inputs), backend="aot_eager" if small else "inductor")
    rounds = max(1, min(steps, GRAPHED) // some)
    cotangent = torch.randn(some, batch, hidden, device=report.device)

    def both():
        inputs, sequences = dict(example.inputs), []
        for _ in range(rounds):
            y, *final = part(inputs)
            sequences.append(y)
            inputs |= dict(zip(states, final, strict=True))
        torch.autograd.grad(sequences, leaves, [cotangent] * rounds)

    with products(MODES[0]):
        began = time.monotonic()
        both()
        seconds = time.monotonic() - began
        (ms,) = interleaved({"": both}, 0.5, report.device, 10).values()
    torch._dynamo.reset()
    yield {"steps": rounds * some, "seconds to compile": seconds, "microseconds a step": 1e3 * ms / (rounds * some)}
