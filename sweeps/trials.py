"""Runs a search: proposes trials, launches them, and shows the best."""

import functools
import shlex
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.utils import JobStatus
from omegaconf import DictConfig
from rich.table import Table as Lines

from longwave import home
from longwave.schema import counted
from longwave.sweeps import search as searching
from longwave.sweeps.command import Sweep
from longwave.sweeps.launch import Launch
from longwave.sweeps.plan import key_of, merge
from longwave.sweeps.search import Search
from longwave.sweeps.show import say, show
from longwave.sweeps.watch import SECONDS
from longwave.training.config import compose_run
from longwave.training.errors import Pruned, UserError
from longwave.training.progress import console
from longwave.training.run import folder_of, is_locked


def search(name: str, sweep: Sweep, job: Callable, hydra_overrides: list[str]) -> int:
    """Runs trials up to the number wanted, and shows the best.

    Args:
        job: one run, given its configuration and what is called with its scores.
        hydra_overrides: ``hydra/launcher=...`` and the like.

    Returns:
        The exit code: 1 where no trial finished.
    """
    wanted: Search = sweep.search
    for text in sweep.overrides:
        if key_of(text) in ("fresh", *wanted.space):
            raise UserError(f"{text}: is no setting of search={name}")
    fixed = merge(wanted.overrides, sweep.overrides)
    example = {key: values.low if values.choices is None else values.choices[0] for key, values in wanted.space.items()}
    try:
        config = compose_run([*fixed, *searching.overrides_of(example)])[0]
    except UserError as error:
        raise UserError(f"search={name}: {error}") from error
    path = home() / Path(config.output).expanduser() / "searches" / f"{name}.log"
    total = sweep.trials or wanted.trials
    if sweep.dry_run and not path.exists():
        say(_done(0, total))
        return 0
    study = searching.open_study(path, name, wanted)
    searching.hold_to(study, path, wanted, config)
    if sweep.dry_run:
        say(_done(len(searching.done(study)), total))
        show_trials(study, fixed)
        return 0
    lock = FileLock(path.with_suffix(".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"search={name}: another process runs it ({path} is locked)") from None
    try:
        launch = Launch(functools.partial(trial_job, job, path, name, wanted), hydra_overrides, fixed)
        run_trials(study, wanted, fixed, launch, total, sweep.parallel or 1)
    finally:
        lock.release()
        show_trials(study, fixed)
    return 0 if searching.best(study, 1) else 1


def _done(count: int, total: int) -> str:
    return f"{count} of {counted(total, 'trial')} {'is' if total == 1 else 'are'} done"


def run_trials(study, wanted: Search, fixed: list[str], launch: Launch, total: int, parallel: int) -> None:
    """Launches trials, ``parallel`` at once, until ``total`` are done; ``fixed`` are the overrides of all of them."""
    killed = searching.retry_killed(study)
    if killed:
        say(f"{counted(killed, 'trial')} {'was' if killed == 1 else 'were'} interrupted, and will be resumed")
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
        except UserError:
            raise
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
        say(f"{len(searching.done(study))}/{counted(total, 'trial')}{so_far}")


def trial_job(job: Callable, path: Path, name: str, wanted: Search, cfg: DictConfig) -> float:
    """One trial of a search, in whatever process the launcher has for it."""
    return job(cfg, searching.reporter(path, name, wanted))


def show_trials(study, fixed: list[str]) -> None:
    """The best trials, and the command of the best of them."""
    found = searching.best(study, 10)
    pruned = sum(trial.state.name == "PRUNED" for trial in study.get_trials(deepcopy=False))
    if not found:
        say("no trial has finished")
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
    say(f"{counted(pruned, 'trial')} {'was' if pruned == 1 else 'were'} pruned")
    command = merge(fixed, searching.overrides_of(found[0].params))
    say(f"the best: {shlex.join(['python', 'train.py', *command])}")
