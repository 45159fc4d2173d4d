"""Memory that a run needs at least, and what is available: a run that cannot fit is refused before it allocates."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from longwave.kernels.operation import OPERATIONS
from longwave.models.layer import Layer
from longwave.tasks.base import Task
from longwave.training.config import Config
from longwave.training.errors import UserError

# Bytes of a float32.
FLOAT = 4
SMALLER = "choose a smaller model, training.batch_size or length"

# What torch says in a plain RuntimeError; the last two of sizes that are no 64-bit number.
_MESSAGES = re.compile("can't allocate memory|out of memory|calculation overflowed|multiplication overflow")


@dataclass(frozen=True)
class Needed:
    """Bytes that a run needs at least.

    Args:
        parameters: number of trained weights.
        of_model: weights, gradients and the optimiser's moments.
        of_batch: a batch of inputs, and what the time loops store of it for the backward pass.
        samples, steps: of that batch.
    """

    parameters: int
    of_model: float
    of_batch: float
    samples: int
    steps: int


def needed(config: Config, task: Task, device: torch.device) -> Needed | None:
    """A lower bound, without allocating any of it; None for a model whose initialisation reads values."""
    try:
        # What this imports at its first use, training imports too.
        with torch.device("meta"):
            model = config.model.build(task.inputs, task.outputs)
    except (NotImplementedError, RuntimeError):
        return None
    parameters = sum(p.numel() for p in model.parameters())
    steps, samples = _batch(config, task)
    loops = [part.operation for part in model.modules() if isinstance(part, Layer) and part.operation]
    # On a CPU, a dense cell leaves its tape beside its sequence. What a model without a time loop stores is not known.
    blocks = sum(1 + (OPERATIONS[name].tape if device.type == "cpu" else 0) for name in loops) or 1
    stored = blocks * model.readout.in_features / (2 if config.training.precision == "bf16" else 1)
    of_model = FLOAT * parameters * (2 + config.optimizer.moments)
    return Needed(parameters, of_model, FLOAT * steps * samples * (task.inputs + stored), samples, steps)


def check(config: Config, task: Task, device: torch.device) -> None:
    """UserError, one line with what is needed and what there is, where a run cannot fit."""
    least, there = needed(config, task, device), available(device)
    if least is not None and least.of_model + least.of_batch > there:
        raise UserError(
            f"too large for memory: needs more than {_shown(least.of_model + least.of_batch)}, and there are "
            f"{_shown(there)}: {_shown(least.of_model)} for {least.parameters:,} parameters and "
            f"{_shown(least.of_batch)} for a batch of {least.samples:,} x {least.steps:,} steps; {SMALLER}"
        )


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Turns running out of memory, however it is reported, into a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not _MESSAGES.search(str(error)):
            raise
        wanted = re.search(r"(?i)to allocate ([\d.]+ \w+)", str(error))
        raise UserError(f"out of memory{f' for {wanted[1]} more' if wanted else ''}; {SMALLER}") from error


def available(device: torch.device) -> float:
    """Bytes that this process may have: on CUDA the card's, else the least of the system's and its control groups'."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return min([_of_the_system(), *_of_control_groups()])


def _of_the_system() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = {key: 1024 * int(value.split()[0]) for key, value in (line.split(":") for line in lines)}
        # An earlier job of this process has left it what it freed.
        own = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return found["MemAvailable"] + found["SwapFree"] + own
    except (OSError, ValueError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_control_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[float]:
    """The limits of this process's control groups and those above them, of both versions."""
    try:
        groups = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in groups:
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        group = top / path.lstrip("/")
        for folder in [group, *group.parents]:
            # "max" is no limit; inside a container the path may be that outside.
            with contextlib.suppress(OSError, ValueError):
                yield float(int((folder / name).read_text()))
            if folder == top:
                break


def _batch(config: Config, task: Task) -> tuple[int, int]:
    """Steps and samples of a training batch, at least."""
    samples, most = config.training.batch_size, task.steps_per_epoch(1)
    samples = samples if most is None else min(samples, most)
    if config.transform is None and task.length is not None:
        return task.length, samples
    if config.transform is None and task.lengths is not None:
        # The longest of a batch is not below the mean in every batch.
        return int(task.lengths[task.splits["train"]].float().mean()), samples
    return len(task.batch(0, 1)[0]), samples


def _shown(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
