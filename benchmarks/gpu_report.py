"""What ``gpu.json`` holds, and how it is filled: result by result, each part within its time."""

import contextlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch

from longwave import PACKAGE
from longwave.benchmarks.cases import FUNCTIONS
from longwave.files import replacing

# Seconds that a result may take beyond the end of its part.
GRACE = 5
# And beyond that, before it counts as stuck: no signal interrupts the wait for a kernel that does not end.
STUCK = 30


class Item(NamedTuple):
    """What gives one result or several, and the share of its part's time left that it may take."""

    what: str
    run: Callable[[], Iterator[dict]]
    share: float = 1.0


class OutOfTime(KeyboardInterrupt):
    """The part's time is over. A run that it ends is interrupted, not failed."""


class Skipped(Exception):
    """Why there is no result."""


class Report:
    """``gpu.json``: each part with where it ran, its results and what was skipped.

    Args:
        path: of the file, or None for none. Other parts that it has are kept.
        device: of all results.
    """

    def __init__(self, path: Path | None, device: torch.device):
        self.path, self.device, self.content = path, device, {}
        self.failures: list[dict] = []
        if path is not None and path.exists():
            self.content = json.loads(path.read_text())

    @property
    def wrong(self) -> set[str]:
        """Names of the operations of which something failed in this process."""
        return {FUNCTIONS.get(row["what"].split()[0]) for row in self.failures}

    def start(self, part: str, deadline: float) -> None:
        self.part, self.deadline = part, deadline
        self.content[part] = {"environment": environment(self.device), "results": [], "skipped": []}
        self.write()

    def each(self, items: Iterable[Item]) -> None:
        """Adds the results of each item, one after another; those past the deadline are skipped."""
        for what, run, share in items:
            left = self.deadline - time.monotonic()
            if left < 0:
                self.skip(what, "no time left")
                continue
            limit = share * left + GRACE
            stuck = threading.Timer(limit + STUCK, self._end, [what])
            stuck.daemon = True
            stuck.start()
            try:
                with alarm(limit):
                    for result in run():
                        self.add({"what": what} | result)
            except OutOfTime:
                self.skip(what, "took too long")
            except Skipped as reason:
                self.skip(what, str(reason))
            except ImportError as error:
                self.skip(what, one_line(error))
            except Exception as error:
                # The others are worth having.
                self.add({"what": what, "ok": False, "failed": one_line(error)})
            finally:
                stuck.cancel()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _end(self, what: str) -> None:
        self.skip(what, "stuck, which ended the process")
        os._exit(1)

    def add(self, result: dict) -> None:
        self.content[self.part]["results"].append(result)
        self.write()
        if result.get("ok") is False:
            self.failures.append(result)
        shown = {key: value for key, value in result.items() if key not in ("what", "errors")}
        print(self.part, result["what"], *(f"{key}={rounded(value)}" for key, value in shown.items()), flush=True)

    def skip(self, what: str, reason: str) -> None:
        self.content[self.part]["skipped"].append({"what": what, "reason": reason})
        self.write()
        print(self.part, what, f"skipped: {reason}", flush=True)

    def finish(self) -> None:
        self.content[self.part]["clocks_at_the_end"] = clocks(self.device)
        self.write()

    def write(self) -> None:
        if self.path is not None:
            with replacing(self.path) as out:
                out.write(json.dumps(self.content, indent=1).encode() + b"\n")


def rounded(value):
    return f"{value:.3g}" if isinstance(value, float) else value


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises OutOfTime after ``seconds``, where the system has such a clock."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(number, frame):
        raise OutOfTime

    handler, timer = signal.signal(signal.SIGALRM, over), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def environment(device: torch.device) -> dict:
    """Where a part ran."""
    found = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "python": platform.python_version()}
    for name in ("torch", "triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    # An installed wheel may lie in the repository of something else.
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if (PACKAGE / ".git").exists():
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
            found["commit"] = done.stdout.strip()
    if device.type != "cuda":
        return found | {"device": device.type, "interpreted": True}
    card = torch.cuda.get_device_properties(device)
    found |= {"device": card.name, "architecture": f"sm_{card.major}{card.minor}", "cuda": torch.version.cuda}
    found |= {"multiprocessors": card.multi_processor_count, "memory": card.total_memory}
    return found | clocks(device)


def clocks(device: torch.device) -> dict[str, str]:
    """Driver, clocks now and at most, and what limits them, as ``nvidia-smi`` has them."""
    if device.type != "cuda":
        return {}
    keys = ["driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit"]
    try:
        card = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        command = ["nvidia-smi", "-i", card, f"--query-gpu={','.join(keys)}", "--format=csv,noheader"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (AttributeError, OSError, subprocess.SubprocessError) as error:
        return {"clocks": one_line(error)}
    return dict(zip(keys, (value.strip() for value in found.split(",")), strict=False))
