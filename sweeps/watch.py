"""Progress line of a sweep, from the files in its runs' folders."""

import threading
import time
from collections import Counter

from rich.progress import BarColumn, Progress, TextColumn

from longwave.results.tables import duration
from longwave.sweeps.plan import RUNNING, Estimate, Planned
from longwave.training import progress
from longwave.training.record import FAILED, FINISHED

# Between two looks at the folders, and between two lines where the output is no terminal.
SECONDS = 1.0
SECONDS_BETWEEN_LINES = 60.0


class Watch:
    """Follows ``runs`` until it is left; a bar in a terminal, plain lines elsewhere.

    Args:
        failures: what went wrong in this sweep, by name of the run; the sweep adds to it.
    """

    def __init__(self, runs: list[Planned], estimate: Estimate, failures: dict[str, str]):
        self.runs, self.estimate, self.failures = runs, estimate, failures
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        # Records of before; one that changes to failed has failed in this sweep.
        self._before = {run.name: run.record() for run in runs}
        self._finished = {name for name, record in self._before.items() if record and record.status == FINISHED}
        self._last: tuple[str, float] = ("", 0.0)
        # Of this sweep: since when a run is at work, and the seconds that the steps of those took that ended.
        self._began: dict[str, float] = {}
        self._spent: dict[str, float] = {}
        self._at_once = 1
        self._bar = None
        if progress.console.is_terminal:
            self._bar = Progress(BarColumn(bar_width=20), TextColumn("{task.description}"), console=progress.console)
            self._task = self._bar.add_task("", total=len(runs))

    def __enter__(self) -> "Watch":
        self._entered = time.monotonic()
        self._look()
        if self._bar is not None:
            self._bar.start()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        if self._bar is not None:
            self._bar.stop()

    def failed(self, name: str, reason: str) -> None:
        """Notes that a run failed, and prints why, once for each reason."""
        if name in self.failures:
            return
        known = reason in self.failures.values()
        self.failures[name] = reason
        if not known:
            progress.console.print(f"failed: {name}: {reason}", soft_wrap=True, markup=False, highlight=False)

    def _follow(self) -> None:
        while not self._stop.wait(SECONDS):
            self._look()

    def _look(self) -> None:
        now = time.monotonic()
        states = {run.name: FINISHED if run.name in self._finished else run.state() for run in self.runs}
        counts = Counter(states.values())
        for run in self.runs:
            state = states[run.name]
            if state == FINISHED and run.name not in self._finished:
                self._finished.add(run.name)
                self.estimate.learn(run.folder / "record.json")
                self._spent[run.name] = self._seconds_of_steps(run)
            elif state == FAILED:
                record, before = run.record(), self._before[run.name]
                if record and record.written != (before and before.written):
                    self.failed(run.name, str(record.error).removeprefix("UserError: "))
                    self._spent[run.name] = self._seconds_of_steps(run)
        self._began = {name: self._began.get(name, now) for name, state in states.items() if state == RUNNING}
        self._measure(now)
        left, unknown = 0.0, False
        for run in self.runs:
            if states[run.name] != FINISHED and run.name not in self.failures:
                seconds = self.estimate.seconds(run, started=states[run.name] == RUNNING)
                left, unknown = left + (seconds or 0.0), unknown or seconds is None
        text = f"{counts[FINISHED]}/{len(self.runs)} done, {len(self.failures)} failed, {counts[RUNNING]} running"
        if left:
            at_least = "more than " if unknown else ""
            text += f", {at_least}{duration(max(1.0, left / max(1, counts[RUNNING])))} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=counts[FINISHED], description=text)
            return
        changed = text.partition(", ")[0]
        if changed != self._last[0] or now - self._last[1] >= SECONDS_BETWEEN_LINES:
            self._last = (changed, now)
            progress.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def _seconds_of_steps(self, run: Planned) -> float:
        """Those of this sweep: a run that was resumed took some before."""
        now, before = (found.wall_seconds or 0.0 if found else 0.0 for found in (run.record(), self._before[run.name]))
        return max(0.0, now - before)

    def _measure(self, now: float) -> None:
        """Updates the estimate of the time that a run takes besides its steps: the rest of this sweep's time."""
        self._at_once = max(self._at_once, len(self._began))
        if self._spent:
            explained = sum(self._spent.values()) + sum(now - since for since in self._began.values())
            spare = self._at_once * (now - self._entered) - explained
            self.estimate.beside = max(0.0, spare / (len(self._spent) + len(self._began)))
