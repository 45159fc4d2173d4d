"""Environment of a run, for its record: packages, commit, device, memory."""

import contextlib
import ctypes
import gc
import importlib.metadata
import platform
import resource
import subprocess
import sys
from pathlib import Path

import torch

from longwave import PACKAGE
from longwave.training.errors import UserError
from longwave.training.record import Git

PACKAGES = ("torch", "numpy", "triton", "pysiglib", "hydra-core", "omegaconf", "wandb")


def packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git() -> Git | None:
    """Commit of the code, and whether files differ from it or are new; None where it is no checkout."""
    # An installed wheel may lie in the repository of something else.
    if not (PACKAGE / ".git").exists():
        return None

    def call(*arguments: str) -> str:
        command = ["git", "-C", PACKAGE, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()

    try:
        return Git(commit=call("rev-parse", "HEAD"), dirty=bool(call("status", "--porcelain")))
    except (OSError, subprocess.SubprocessError):
        return None


def pick_device(name: str) -> torch.device:
    """The device that ``device=<name>`` selects here."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [device for device, is_here in here.items() if is_here]
    if name not in ("auto", *available):
        raise UserError(f"device={name}: not available here; there are auto, {', '.join(available)}")
    return torch.device(available[0] if name == "auto" else name)


def set_up_process(threads: int | None) -> None:
    """Prepare the process for a run, before torch starts its threads, which inherit the setting of denormals."""
    # Vanishing gradients become denormal numbers, on which a CPU computes many times slower.
    torch.set_flush_denormal(True)
    if threads is not None:
        torch.set_num_threads(threads)
    # glibc gives a freed sequence of tens of megabytes back to the system, which then has to clear every page of the
    # next one: up to a third of a training step. Here it is kept for the next step.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and sys.platform == "linux":
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({_processor()}, {torch.get_num_threads()} threads)"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def reset_peak_memory() -> None:
    """Resets the peak, so that the second job of a process does not report that of the first."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    # The new peak begins at what is resident now, and a training process keeps what it freed (set_up_process).
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    # Elsewhere than on Linux the peak is of the whole process.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of the device on CUDA, else the largest resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
