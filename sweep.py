"""A table, or a search: run what is missing, then show it. ``python sweep.py --help`` says what can be chosen."""

import os
import signal
import sys

# Hydra then hands errors on, and they are shown here, in one line.
os.environ.setdefault("HYDRA_FULL_ERROR", "1")

import dataclasses
import functools
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
from filelock import FileLock, Timeout
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
from sweeps import search as searching
from sweeps.plan import FINISHED, RUNNING, Estimate, Planned, expand, is_sweep, key_of, merge
from sweeps.watch import SECONDS, Watch
from training import progress
from training.config import CHECKOUT, choices, compose_object, compose_run
from training.errors import Interrupted, Pruned, Taken, UserError
from training.progress import console
from training.run import folder_of, is_locked


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
        run, name = (search, chosen.search) if sweep.table is None else (sweep_table, chosen.table)
        code = run(name, sweep, own)
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


def job(cfg: DictConfig, on_score: Callable | None = None) -> float:
    """One run of a sweep, in whatever process the launcher has for it."""
    progress.plain = True
    if torch.cuda.device_count() > 1:
        # One job a GPU, where the launcher leaves several to see: Ray and SLURM show each job its own.
        torch.cuda.set_device(HydraConfig.get().job.num % torch.cuda.device_count())
    return train.job(cfg, on_score)


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
                kind = "" if type(error) is UserError else f"{type(error).__name__}: "
                watch.failed(run.name, f"{kind}{error}")
            elif run.state() != FINISHED:
                watch.failed(run.name, "it left no finished record")


def search(name: str, sweep: Sweep, hydra_overrides: list[str]) -> int:
    """Runs trials until there are as many as wanted, and shows the best.

    Returns:
        The exit code: 1 where no trial came to its end.
    """
    wanted: searching.Search = sweep.search
    for text in sweep.overrides:
        if key_of(text) in ("fresh", *wanted.space):
            raise UserError(f"{text}: is no setting of search={name}")
    fixed = merge(wanted.overrides, sweep.overrides)
    example = {key: values.low if values.choices is None else values.choices[0] for key, values in wanted.space.items()}
    try:
        config = compose_run([*fixed, *searching.overrides_of(example)])[0]
    except UserError as error:
        raise UserError(f"search={name}: {error}") from error
    path = CHECKOUT / Path(config.output).expanduser() / "searches" / f"{name}.log"
    total = sweep.trials or wanted.trials
    if sweep.dry_run and not path.exists():
        say(f"0 of {total} trials are done")
        return 0
    study = searching.open_study(path, name, wanted)
    if sweep.dry_run:
        say(f"{len(searching.done(study))} of {total} trials are done")
        show_trials(study, fixed)
        return 0
    lock = FileLock(path.with_suffix(".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"search={name}: another process leads it ({path} is locked)") from None
    try:
        run_trials(name, study, total, fixed, sweep.parallel, hydra_overrides, path, wanted)
    finally:
        lock.release()
        show_trials(study, fixed)
    return 0 if searching.best(study, 1) else 1


def run_trials(name, study, total, fixed, parallel, hydra_overrides, path, wanted) -> None:
    killed = searching.retry_killed(study)
    if killed:
        say(f"{killed} {'trial was' if killed == 1 else 'trials were'} interrupted, and will go on")
    launch = Launch(functools.partial(trial_job, str(path), name, wanted), hydra_overrides, fixed)
    space = searching.distributions(wanted)
    while (count := len(searching.done(study))) < total:
        jobs = []
        for _ in range(min(parallel, total - count)):
            trial = study.ask(space)
            overrides = merge(fixed, searching.overrides_of(trial.params))
            folder = folder_of(compose_run(overrides)[0])
            trial.set_user_attr("run", folder.name)
            while is_locked(folder):
                # By a worker that has outlived the process that led it.
                time.sleep(SECONDS)
            jobs.append((trial, overrides))
        try:
            returns = launch([overrides for _, overrides in jobs])
        except Exception as error:
            say(f"a worker died ({type(error).__name__})")
            searching.retry_killed(study)
            continue
        for (trial, _), returned in zip(jobs, returns, strict=True):
            what = ", ".join(searching.overrides_of(trial.params))
            if returned.status == JobStatus.COMPLETED:
                study.tell(trial, returned.return_value)
                say(f"trial {trial.number}: {returned.return_value:.5g} ({what})")
            elif isinstance(returned._return_value, Pruned):
                study.tell(trial, state=searching.state("PRUNED"))
                say(f"trial {trial.number}: {returned._return_value} ({what})")
            else:
                study.tell(trial, state=searching.state("FAIL"))
                say(f"trial {trial.number} failed: {returned._return_value} ({what})")
        found = searching.best(study, 1)
        so_far = f", the best {found[0].value:.5g}" if found else ""
        say(f"{len(searching.done(study))}/{total} trials{so_far}")


def trial_job(path: str, name: str, wanted: "searching.Search", cfg: DictConfig) -> float:
    """One trial of a search, in whatever process the launcher has for it."""
    return job(cfg, searching.reporter(Path(path), name, wanted))


def show_trials(study, fixed: list[str]) -> None:
    """The best trials, and the command of the best of them."""
    found = searching.best(study, 10)
    pruned = sum(trial.state.name == "PRUNED" for trial in study.get_trials(deepcopy=False))
    if not found:
        say("no trial has come to its end")
        return
    lines = Lines("trial", "value", *found[0].params, "run", box=None, pad_edge=False)
    for trial in found:
        lines.add_row(
            str(trial.number),
            f"{trial.value:.5g}",
            *(text.partition("=")[2] for text in searching.overrides_of(trial.params)),
            trial.user_attrs["run"],
        )
    console.print()
    show(lines)
    say(f"{pruned} trials were pruned")
    command = merge(fixed, searching.overrides_of(found[0].params))
    say(f"the best: {shlex.join(['python', 'train.py', *command])}")


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
