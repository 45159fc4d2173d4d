"""Weights & Biases: the dashboard. The truth is the run's own history."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longwave.schema import Annotated, OneOf, Section, one_line
from longwave.training.errors import Interrupted, UserError
from longwave.training.files import write_atomic
from longwave.training.progress import log
from longwave.training.record import FINISHED, INTERRUPTED, Record

if TYPE_CHECKING:
    from longwave.tasks.base import Task
    from longwave.training.run import Run

MODES = ("auto", "online", "offline")

# How long a server that does not answer is waited for: at the start, at the end, at the end with artifacts, and before
# it is tried again by a later run of the same process.
INIT_SECONDS, FINISH_SECONDS, ARTIFACT_SECONDS, RETRY_SECONDS = 15, 30, 600, 600

# W&B sorts charts and summaries by name. What is not the metric of the run is shown under a name that sorts behind it,
# whether that is of the split test or validation.
WATCH = "watch/"

_retry_at = 0.0


@dataclass
class Tracking(Section):
    """Weights & Biases.

    Args:
        name: wandb or none.
        project: W&B's project.
        entity: W&B's user or team; null is your default.
        mode: auto (online if you are logged in, else offline), online or offline. ``WANDB_MODE`` in the environment
            overrides auto.
        tags: further tags of the run.
        notes: text shown with the run.
        artifacts: upload the last checkpoint, and the names and checksums of the data files.
    """

    name: str = "wandb"
    project: str = "longwave"
    entity: str | None = None
    mode: Annotated[str, OneOf(*MODES)] = "auto"
    tags: list[str] | None = None
    notes: str | None = None
    artifacts: bool = False


def pick_mode(tracking: Tracking) -> tuple[str, bool]:
    """The mode that a run would start in: online, offline or disabled; and whether it may be offline instead."""
    # W&B reports its own errors to the same server: if that stalls, they hold up the end of the process by 25 s.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    mode = tracking.mode if tracking.mode != "auto" else os.environ.get("WANDB_MODE") or "auto"
    if mode not in (*MODES, "disabled"):
        raise UserError(f"WANDB_MODE={one_line(mode)}: must be one of online, offline, disabled")
    if mode != "auto":
        return mode, False
    if time.monotonic() < _retry_at:
        return "offline", True
    try:
        return ("online" if wandb.login(prompt=False, verify=False) else "offline"), True
    except Exception as error:
        log.warning("W&B: cannot log in (%s); logging offline", _reason(error))
        return "offline", True


def open_run(tracking: Tracking, output: Path, arguments: Callable[[str], dict]):
    """Starts a W&B run under ``<output>/wandb``; in mode auto offline, where nobody is logged in or W&B does not
    answer, and without W&B where even that fails.

    Args:
        arguments: further arguments of ``wandb.init``, by mode.

    Returns:
        The run and its mode: online, offline or disabled.

    Raises:
        UserError: where a mode was asked for that is not possible, or the folder cannot be made.
    """
    import wandb

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={output}: cannot be made ({error.strerror})") from error
    mode, may_go_offline = pick_mode(tracking)

    def start(mode: str):
        return wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            dir=output,
            mode=mode,
            resume="allow" if mode == "online" else None,
            # A worker of a launcher may run several jobs in one process.
            reinit="finish_previous",
            settings=wandb.Settings(
                silent=True,
                init_timeout=INIT_SECONDS,
                finish_timeout=ARTIFACT_SECONDS if tracking.artifacts else FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
            **arguments(mode),
        )

    folders = set((output / "wandb").glob("run-*"))
    try:
        run = start(mode)
    except Exception as error:
        if not may_go_offline:
            raise UserError(f"W&B cannot start (tracking.mode={mode}): {_reason(error)}") from error
        if mode == "online":
            _give_up(error)
            for folder in set((output / "wandb").glob(f"run-*-{arguments(mode)['id']}")) - folders:
                shutil.rmtree(folder, ignore_errors=True)
            mode = "offline"
            try:
                return start(mode), mode
            except Exception as second:
                error = second
        log.warning("W&B cannot start (%s); the run continues without it", _reason(error))
        mode, run = "disabled", start("disabled")
    return run, mode


def _reason(error: Exception) -> str:
    return one_line(" ".join(str(error).split()) or type(error).__name__, most=200)


def _give_up(error: Exception) -> None:
    """Stops using the server for a while."""
    import wandb

    global _retry_at
    _retry_at = time.monotonic() + RETRY_SECONDS
    log.warning("W&B cannot be reached (%s); logging offline", _reason(error))
    # W&B's process still has the run that did not start, and would refuse its id (wandb issue 9865).
    with suppress(Exception):
        wandb.teardown()


def finish(run, exit_code: int = 0) -> None:
    """Ends a W&B run, and says how to upload what the server did not take in time."""
    try:
        run.finish(exit_code=exit_code)
    except TimeoutError:
        again = f"wandb sync --include-online {run.sync_dir}"
        log.warning("W&B does not answer; everything is in a local file, which `%s` uploads", again)


class Tracker:
    """The W&B run of a run; without one, nothing is logged.

    All runs of a checkout write under one folder, ``<output>/wandb``, so that ``wandb leet <folder>`` compares them.
    Online, a resumed run continues under its id. Offline, W&B cannot continue a run: a resumed run is a new segment of
    the same group whose config names the one before (``resumed_from``).

    Args:
        run: the W&B run, or None.
        metric: key of the metric that the run is judged by; it keeps its name and stands first.
    """

    def __init__(self, run=None, metric: str | None = None):
        self._run, self._metric = run, metric
        # Steps that were logged before the process died are run again after a resume, but not shown twice.
        self._next = run.starting_step if run is not None and run.resumed else 0

    def log(self, entry: dict[str, float]) -> None:
        step = entry["step"]
        shown = {key if key == self._metric else WATCH + key: entry[key] for key in entry if key != "step"}
        if step >= self._next:
            self.tell(lambda run: run.log(shown, step=step))

    def tell(self, act: Callable[[Any], Any]) -> None:
        """Calls ``act`` with the W&B run."""
        # What shows a run must not end it: hours of training against a dead helper process, or a full disk.
        if self._run is None:
            return
        try:
            act(self._run)
        except Exception as error:
            self._run = None
            log.warning("W&B failed (%s: %s); the run continues without it", type(error).__name__, error)


@contextmanager
def track(run: "Run", task: "Task", verdict: Callable[[Record], object]) -> Iterator[Tracker]:
    """The tracker of a run that has started, finished on every path; the dashboard has the ``verdict`` on this seed."""
    config = run.config
    if config.tracking.name != "wandb":
        yield Tracker()
        return
    tracker, exit_code = Tracker(_open(run, task), f"{task.monitor}/{task.metric}"), 1
    try:
        yield tracker
        exit_code = 0
    except Interrupted as error:
        exit_code = 128 + error.signal
        raise
    finally:
        if config.diagnostics.gradients and (run.folder / "gradients.png").exists():
            tracker.tell(lambda shown: _show_picture(shown, run, "gradients"))
        if (run.folder / "confusion.png").exists():
            tracker.tell(lambda shown: _show_picture(shown, run, "confusion"))
        if config.tracking.artifacts and (run.folder / "checkpoint.pt").exists():
            tracker.tell(lambda shown: _keep_artifacts(shown, run))
        summary = _summary(run.record, verdict)
        tracker.tell(lambda shown: shown.summary.update(summary))
        if run.record.status == INTERRUPTED:
            # With an exit code that is not 0, W&B shows it as preempted, not as failed.
            tracker.tell(lambda shown: shown.mark_preempting())
        tracker.tell(lambda shown: finish(shown, exit_code))


def _open(run: "Run", task: "Task"):
    """The W&B run of a run: of its first process, or of a later one, which resumes."""
    config, record, first = run.config, run.record, _wandb_id(run)

    def arguments(mode: str) -> dict:
        run_id, more = first, {}
        if mode == "offline" and record.sessions > 1:
            more = {"resumed_from": first if record.sessions == 2 else f"{first}-{record.sessions - 1}"}
            run_id = f"{first}-{record.sessions}"
        return {
            "id": run_id,
            "name": _title(run),
            # Everything but the seed.
            "group": f"{run.title}-{config.identity(with_seed=False)}",
            "job_type": "train",
            "tags": [record.model, record.task, *(config.tracking.tags or [])],
            "notes": config.tracking.notes,
            "config": {**record.config, "identity": record.identity, "recipe": record.recipe, **more},
        }

    shown, mode = open_run(config.tracking, run.output, arguments)
    best = "max,last" if task.higher_is_better else "min,last"
    shown.define_metric(f"{task.monitor}/{task.metric}", summary=best)
    if mode == "online":
        log.info("W&B: %s", shown.url)
    elif mode == "offline":
        folder = run.output / "wandb"
        log.info("W&B is offline: look with `wandb leet %s`, upload all runs with `wandb sync %s`", folder, folder)
    return shown


def _show_picture(shown, run: "Run", name: str) -> None:
    import wandb

    picture = wandb.Image(str(run.folder / f"{name}.png"))
    shown.log({f"{WATCH}{name}": picture}, step=run.record.budget.steps_done)


def _keep_artifacts(shown, run: "Run") -> None:
    """The checkpoint itself, and what identifies the data, as the record has it."""
    import wandb

    model = wandb.Artifact(f"{_wandb_id(run)}-checkpoint", "model")
    model.add_file(str(run.folder / "checkpoint.pt"))
    shown.log_artifact(model)
    data = run.record.dump()["data"]
    used = wandb.Artifact(f"{run.record.task}-data", "dataset", metadata=data)
    # Other checksums are another version; the same data of another run are the same one.
    with used.new_file("data.json") as out:
        json.dump(data, out, indent=1, sort_keys=True)
    shown.log_artifact(used)


def _title(run: "Run") -> str:
    """What differs between runs first, since the lists of W&B cut names: ``T500-cornn-s0-adding-h128``."""
    record = run.record
    model, task = record.config["model"], record.config["task"]
    place = f"T{task['T']}" if "T" in task else task.get("dataset") or task.get("title") or record.task
    # It becomes part of an id and of a folder's name; a title is a user's.
    place = re.sub(r"[^\w.-]+", "_", place)[:40]
    fold = [f"f{task['fold']}"] if task.get("fold") is not None else []
    size = [f"h{model['hidden']}"] if "hidden" in model else []
    return "-".join(dict.fromkeys([place, record.model, f"s{record.seed}", *fold, record.task, *size]))


def _wandb_id(run: "Run") -> str:
    # Made once, so that two checkouts, or a run started afresh, do not share one W&B run.
    path = run.folder / "wandb_id"
    if not path.exists():
        # The name of an offline folder is made of it.
        write_atomic(path, f"{_title(run)}-{run.record.identity}-{os.urandom(3).hex()}".encode())
    return path.read_text()


def _summary(record: Record, verdict: Callable[[Record], object]) -> dict:
    """Figures that the W&B dashboard shows beside the curves."""
    keys = ("status", "parameters", "backend", "wall_seconds", "peak_memory_bytes")
    # Behind ``final/``, as all names are sorted.
    summary = {f"run/{key}": getattr(record, key) for key in keys}
    for split, scores in record.metrics.items():
        summary |= {f"final/{split}/{key}": value for key, value in scores.items()}
    if record.published is not None:
        summary |= {"published/key": record.published.key, "published/value": record.published.value}
    if record.status == FINISHED:
        summary["verdict"] = str(verdict(record))
    return summary
