"""Progress of a run: one bar in a terminal, plain lines elsewhere."""

import logging
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console()
log = logging.getLogger("longwave")
log.setLevel(logging.INFO)

# Lines even in a terminal, for jobs that share it.
plain = False

# Between two lines where the output is no terminal.
SECONDS_BETWEEN_LINES = 10.0


class ConsoleHandler(logging.Handler):
    """Prints log messages above the bar, one line each however long."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(self.format(record), soft_wrap=True, markup=False, highlight=False)


class ProgressBar:
    """Steps, of which ``start`` were already done, loss, metric, steps per second and time left of a run."""

    def __init__(self, name: str, start: int, total: int):
        self.name, self.start, self.total = name, start, total
        self._began = self._last_line = time.monotonic()
        self._scores: dict[str, float] = {}
        self._bar = None
        if console.is_terminal and not plain:
            columns = [MofNCompleteColumn(), TextColumn("{task.fields[scores]}")]
            wide = console.width >= 110
            if wide:
                columns[:0] = [TextColumn("{task.description}"), BarColumn(bar_width=None)]
                columns += [TextColumn("{task.fields[speed]}"), TimeElapsedColumn()]
            columns += [TextColumn("<"), TimeRemainingColumn()]
            self._bar = Progress(*columns, console=console, refresh_per_second=4, expand=wide)
            self._task = self._bar.add_task(name, completed=start, total=total, scores="", speed="")

    def __enter__(self) -> "ProgressBar":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, scores: dict[str, float] | None = None) -> None:
        """Call once a step; ``scores`` when there are new ones."""
        now = time.monotonic()
        self._scores |= scores or {}
        shown = "  ".join(f"{key} {value:.4g}" for key, value in self._scores.items())
        rate = (step - self.start) / max(now - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, scores=shown, speed=f"{rate:.1f} steps/s")
        elif (step == self.total and scores) or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (self.total - step) / rate if rate else 0
            log.info("%s  step %d/%d  %s  %.1f steps/s  %d s left", self.name, step, self.total, shown, rate, left)
