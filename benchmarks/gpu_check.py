"""Whether the Triton kernels compute what the definitions say, and every model trains."""

import contextlib
import functools
import importlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from longwave import CONF, PACKAGE
from longwave.benchmarks.cases import Case
from longwave.benchmarks.gpu_cases import (
    Mode,
    example_on,
    in_mode,
    modes_of,
    named,
    passes,
    products,
    sizes,
)
from longwave.benchmarks.gpu_report import Item


def checks(device: torch.device, small: bool, only: str | None) -> Iterator[Item]:
    """Small ones first, so that what is wrong at any size is found soon."""
    odd, full = sizes(small, only)
    models = sorted(path.stem for path in (CONF / "model").glob("*.yaml")) if only is None else []
    if device.type == "cuda":
        yield Item("kernels compiled", functools.partial(compile_kernels, only), 0.4)
    for name, size in odd:
        yield Item(named(name, size), functools.partial(compare, device, name, size))
    for name in models:
        yield Item(f"model {name}", functools.partial(train_two_steps, device, name, False))
    for name, size in full:
        yield Item(named(name, size), functools.partial(compare, device, name, size))
    for name in models:
        yield Item(f"model {name}, compiled", functools.partial(train_two_steps, device, name, True))


def compile_kernels(only: str | None) -> Iterator[dict]:
    """Fills Triton's cache from many processes at once: one alone would compile for longer than the checks take."""
    began, workers = time.monotonic(), min(16, os.cpu_count() or 1)
    command = [sys.executable, str(PACKAGE / "benchmarks" / "gpu.py"), *(["--only", only] if only else [])]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([*command, "--compile-only", f"{i}/{workers}"], env=alone) for i in range(workers)]
    try:
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.kill()
    # A kernel that does not compile fails by name, later.
    yield {"ok": True, "seconds": time.monotonic() - began, "processes": workers, "failed": sum(map(bool, codes))}


def compile_some(share: str, only: str | None) -> None:
    """Every ``n``-th kernel from the ``i``-th on, for a share "i/n": each size and mode, at two steps."""
    start, step = map(int, share.split("/"))
    odd, full = sizes(False, only)
    every = sorted({(name, size[1:], mode) for name, size in odd + full for mode in modes_of(name)})
    for name, size, mode in every[start::step]:
        with contextlib.suppress(Exception), products(mode):
            example = in_mode(example_on(torch.device("cuda"), name, 2, *size), mode)
            passes(example, "triton", (2, *size), mode)["both"]()


def compare(device: torch.device, equation: str, size: tuple[int, int, int]) -> Iterator[dict]:
    """Every output and gradient of the kernel against the definition in float64, in each mode."""
    exact = example_on(device, equation, *size)
    generator = torch.Generator(device).manual_seed(1)
    states = sum(key.startswith("state_") for key in exact.inputs)
    # One for the sequence and for each state, exact in every mode.
    cotangents = [
        torch.randn(shape, generator=generator, device=device).bfloat16().double()
        for shape in (size, *[size[1:]] * states)
    ]
    truths = {}
    for mode in modes_of(equation):
        began = time.monotonic()
        low = in_mode(exact, mode)
        # Those of float32 are one.
        if mode.dtype not in truths:
            truths[mode.dtype] = outcome(low.to(torch.float64), "reference", cotangents)
        truth = truths[mode.dtype]
        with products(mode):
            plain = outcome(low, "reference", cotangents)
            with poisoned():
                found, again = (outcome(low, "triton", cotangents) for _ in range(2))
        yield verdict(mode, truth, plain, found, again) | {"seconds": round(time.monotonic() - began, 1)}


def outcome(example: Case, backend: str, cotangents: list[Tensor]) -> dict[str, Tensor]:
    """All outputs and all gradients by name."""
    outputs, leaves = example.run(backend), list(example.inputs.values())
    given = [cotangent.to(output.dtype) for cotangent, output in zip(cotangents, outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, leaves, given)
    named = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    return named | {f"gradient of {key}": g for key, g in zip(example.inputs, gradients, strict=True)}


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fills new memory with NaN."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def verdict(mode: Mode, truth: dict, plain: dict, found: dict, again: dict) -> dict:
    """Whether no error is above twice the eager loop's, plus the mode's floor, and two runs agree to the bit."""
    errors = {key: (error(found[key], truth[key]), error(plain[key], truth[key])) for key in truth}
    # The error of a few numbers may be small by luck: those have the bar of the worst tensor.
    most = max(usual for _, usual in errors.values())
    excess = {
        key: fused / (2 * (usual if truth[key].numel() >= 100 else most) + mode.floor)
        for key, (fused, usual) in errors.items()
    }
    # NaN is the worst.
    worst = max(excess, key=lambda key: math.inf if math.isnan(excess[key]) else excess[key])
    same = all(torch.equal(found[key], again[key]) for key in found)
    row = {"mode": mode.name, "ok": same and excess[worst] <= 1, "same_bits": same, "worst": worst}
    return row | {"error": errors[worst][0], "eager": errors[worst][1], "errors": errors}


def error(found: Tensor, exact: Tensor) -> float:
    """The norm of the difference, relative to that of the exact."""
    difference, scale = (found.double() - exact).norm().item(), exact.norm().item()
    return difference / scale if scale else difference


def train_two_steps(device: torch.device, name: str, compiled: bool) -> Iterator[dict]:
    """Two steps of gradient descent of a model at its defaults, on a CPU of a small one."""
    small = device.type == "cpu"
    torch.manual_seed(0)
    config = importlib.import_module(f"longwave.models.{name}").Config(**({"hidden": 12} if small else {}))
    model = config.build(2, 3).to(device)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    # On a CPU the default compiles C++, a minute for all.
    step = torch.compile(model, backend="aot_eager" if small else "inductor") if compiled else model
    x = torch.randn(8, 16, 2, device=device)
    losses = []
    for number in (1, 2):
        optimizer.zero_grad()
        loss = step(x).square().mean()
        loss.backward()
        optimizer.step()
        model.after_step(number)
        losses.append(loss.item())
    if compiled:
        torch._dynamo.reset()
    finite = all(p.isfinite().all() for p in model.parameters()) and all(map(math.isfinite, losses))
    moved = any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    yield {"ok": finite and moved, "backend": model.layer.backend, "losses": losses}
