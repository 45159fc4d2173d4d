"""A table, or a search: run what is missing, then show it. ``python sweep.py --help`` says what can be chosen."""

import os
import signal
import sys

# Hydra then hands errors on, and they are shown here, in one line.
os.environ.setdefault("HYDRA_FULL_ERROR", "1")

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra._internal.callbacks import Callbacks
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as Lines

import train
from results import collect, tables
from sweeps.plan import FINISHED, RUNNING, Estimate, Planned, expand, is_sweep, key_of
from sweeps.watch import SECONDS, Watch
from training import progress
from training.config import CHECKOUT, choices, compose_object
from training.errors import Interrupted, Taken, UserError
from training.progress import console


@dataclass
class Sweep:
    """What to sweep over.

    Args:
        table: the table whose runs are wanted.
        search: or the search for hyperparameters.
        seeds: of a table: a number N for 0 to N - 1, or a list; null is the table's own.
        dry_run: say what would run and how long it would take, and do nothing.
        trials: of a search: how many there shall be in the end; null is the search's own.
        parallel: of a search: trials that are started together.
        overrides: of all runs: what else is on the command line.
    """

    table: Any = None
    search: Any = None
    seeds: Any = None
    dry_run: bool = False
    trials: int | None = None
    parallel: int = 1
    overrides: list[str] = field(default_factory=list)

    def __post_init__(self):
        if (self.table is None) == (self.search is None):
            found = f"{', '.join(choices('table'))}; or a search={', '.join(choices('search'))}"
            raise ValueError(f"table=null: choose one table={found}")
        for key in ("trials", "parallel"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: must be 1 or more")
        if self.search is not None and self.seeds is not None:
            raise ValueError(f"seeds={self.seeds}: is a setting of a table; a search has seed=0")


ConfigStore.instance().store(group="schema", name="sweep", node=Sweep)


@hydra.main(version_base="1.3", config_path="conf", config_name="sweep")
def main(cfg: DictConfig) -> None:
    try:
        sweep: Sweep = OmegaConf.to_object(cfg)
        chosen = HydraConfig.get().runtime.choices
        # Hydra composes the jobs of a launcher from these, and from each job's own.
        own = list(HydraConfig.get().overrides.hydra)
        code = sweep_table(chosen.table, sweep, own)
    except UserError as error:
        sys.exit(f"error: {error}")
    if code:
        sys.exit(code)


def sweep_table(name: str, sweep: Sweep, hydra_overrides: list[str]) -> int:
    """Runs what is missing, and shows the table.

    Returns:
        The exit code: 1 where a run failed.
    """
    runs = expand(name, sweep.table, sweep.seeds, sweep.overrides)
    estimate = Estimate(CHECKOUT / Path(runs[0].config.output).expanduser())
    if sweep.dry_run:
        show_plan(runs, estimate)
        return 0
    launch = Launch(job, hydra_overrides, sweep.overrides)
    failures: dict[str, str] = {}
    try:
        with Watch(runs, estimate, failures) as watch:
            run_all(runs, launch, watch)
    finally:
        show_table(runs)
    for reason in dict.fromkeys(failures.values()):
        names = [name for name, why in failures.items() if why == reason]
        say(f"failed: {', '.join(names)}: {reason}")
    return 1 if failures else 0


def job(cfg: DictConfig) -> float:
    """One run of a sweep, in whatever process the launcher has for it."""
    progress.plain = True
    if torch.cuda.device_count() > 1:
        # One job a GPU, where the launcher leaves several to see: Ray and SLURM show each job its own.
        torch.cuda.set_device(HydraConfig.get().job.num % torch.cuda.device_count())
    return train.job(cfg)


class Launch:
    """Hydra's launcher, for explicit lists of jobs.

    Args:
        task: what a job runs.
        hydra_overrides: ``hydra/launcher=...`` and the like.
        overrides: of all runs; ``output`` is where the launcher keeps its own files.
    """

    def __init__(self, task: Callable[[DictConfig], float], hydra_overrides: list[str], overrides: Sequence[str]):
        loader = GlobalHydra.instance().config_loader()
        shared = [text for text in overrides if key_of(text) == "output"]
        fixed = ["hydra/job_logging=quiet", "hydra/hydra_logging=quiet", "hydra.mode=MULTIRUN"]
        self.config = loader.load_configuration("train", [*hydra_overrides, *fixed, *shared], RunMode.MULTIRUN)
        self.context = HydraContext(config_loader=loader, callbacks=Callbacks(self.config))
        self.launcher = Plugins.instance().instantiate_launcher(self.context, task, self.config)
        self.at_once = self.config.hydra.sweeper.get("max_batch_size")
        self.launched = 0

    def __call__(self, jobs: list[list[str]]) -> Sequence[JobReturn]:
        first, self.launched = self.launched, self.launched + len(jobs)
        return self.launcher.launch(jobs, initial_job_idx=first)


def run_all(runs: list[Planned], launch: Launch, watch: Watch) -> None:
    """Launches what is not finished, until nothing is left that another process does not hold or that has not failed.

    What another process holds is left to it, and run only if that process ends without finishing it.
    """
    deaths: dict[str, int] = {}
    told = False
    while True:
        open_runs = [(run, run.state()) for run in runs if run.name not in watch.failures]
        open_runs = [(run, state) for run, state in open_runs if state != FINISHED]
        free = [run for run, state in open_runs if state != RUNNING]
        held = len(open_runs) - len(free)
        if held and not told:
            told = True
            say(f"{held} {'run is' if held == 1 else 'runs are'} being trained by another process, and left to it")
        if not open_runs:
            return
        if not free:
            time.sleep(SECONDS)
            continue
        batch = free[: launch.at_once]
        before = {run.name: (run.record() or {}).get("written") for run in batch}
        try:
            returns = launch([run.overrides for run in batch])
        except Exception as error:
            # A worker died. Whoever was at work then may be the reason, and has one more try.
            reason = f"a worker died ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
            suspects = [run for run in batch if (run.record() or {}).get("written") != before[run.name]]
            suspects = [run for run in suspects if run.state() != FINISHED]
            say(reason)
            for run in suspects or batch:
                deaths[run.name] = deaths.get(run.name, 0) + 1
                if deaths[run.name] > 1 and run.state() != RUNNING:
                    watch.failed(run.name, reason)
            continue
        for run, returned in zip(batch, returns, strict=True):
            error = returned._return_value if returned.status != JobStatus.COMPLETED else None
            if isinstance(error, Taken):
                continue
            if error is not None:
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                watch.failed(run.name, f"{kind}{error}")
            elif run.state() != FINISHED:
                watch.failed(run.name, "it left no finished record")


def show_plan(runs: list[Planned], estimate: Estimate) -> None:
    """The runs, what has become of them, and what is left of each at most."""
    lines = Lines("run", "row", "state", "time left, at most", box=None, pad_edge=False)
    total, unknown = 0.0, 0
    for run in runs:
        state, left = run.state(), ""
        if state != FINISHED:
            seconds = estimate.seconds(run)
            unknown += seconds is None
            total += seconds or 0.0
            left = tables.duration(seconds) or "?"
        lines.add_row(run.name, run.title, state, left)
    show(lines)
    done = sum(run.state() == FINISHED for run in runs)
    rest = f"{done} of {len(runs)} runs are finished"
    if done < len(runs):
        rest += f"; one after another, the rest takes at most {tables.duration(total) or '0 s'}"
        rest += f" and what {unknown} runs take, of which no earlier run tells" if unknown else ""
    say(rest)


def show_table(runs: list[Planned]) -> None:
    """The table of these runs alone, with verdicts."""
    found = []
    for run in runs:
        if run.state() == FINISHED:
            try:
                found.append(collect.condense(run.folder))
            except ValueError as error:
                say(f"{run.name} is passed over: {error}")
    for table in tables.tables([row for row in tables.rows(found) if row.runs]):
        console.print()
        lines = Lines(*table.header, title=table.title, title_justify="left", box=None, pad_edge=False)
        for cells in table.cells:
            lines.add_row(*cells)
        show(lines)
        for name, note in table.notes:
            say(f"{name}: {note}")


def show(lines: Lines) -> None:
    """Folds cells to the width of a terminal; elsewhere every row is one line."""
    if console.is_terminal:
        for column in lines.columns:
            column.overflow = "fold"
        console.print(lines)
    else:
        whole = Measurement.get(console, console.options.update(width=1000), lines).maximum
        Console(width=whole).print(lines)


def say(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def arguments(given: list[str]) -> list[str]:
    """Checks a command line, and gathers what is meant for the runs in ``overrides``.

    Raises:
        UserError: for the first thing that is wrong.
    """
    parsed = get_args_parser().parse_intermixed_args(given)
    if parsed.multirun:
        raise UserError("--multirun: a sweep is made of several runs anyway; leave it away")
    fields = {item.name for item in dataclasses.fields(Sweep)} - {"overrides"}
    own, rest = [], []
    for text in parsed.overrides:
        key = key_of(text)
        own_key = key.partition(".")[0] in fields or key.partition("/")[0].partition(".")[0] == "hydra"
        (own if own_key else rest).append(text)
        name = text.partition("=")[2]
        if key in ("table", "search") and name not in (*choices(key), "null"):
            raise UserError(f"{key}={name}: no such choice; there are {', '.join(choices(key))}")
        if is_sweep(text):
            raise UserError(f"{text}: several values, where one is needed; write a list as {key}=[{name}]")
    quoted = ",".join("'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'" for text in rest)
    own += [f"overrides=[{quoted}]"] if rest else []
    if not (parsed.help or parsed.hydra_help or parsed.info or parsed.cfg):
        compose_object("sweep", own)
    return [text for text in given if text not in parsed.overrides] + own


if __name__ == "__main__":
    try:
        sys.argv[1:] = arguments(sys.argv[1:])
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as error:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(128 + (error.signal if isinstance(error, Interrupted) else signal.SIGINT))
