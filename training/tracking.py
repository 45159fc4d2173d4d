"""Weights & Biases: the dashboard. The truth is the run's own history."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longwave.schema import Annotated, OneOf, Section
from longwave.training.errors import Interrupted, UserError
from longwave.training.files import write_atomic
from longwave.training.progress import log
from longwave.training.record import FINISHED, Record

if TYPE_CHECKING:
    from longwave.tasks.base import Task
    from longwave.training.run import Run

MODES = ("auto", "online", "offline")


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
        notes: a remark on the run.
        artifacts: keep the last checkpoint in W&B, and the names and checksums of the data files.
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
    import wandb

    mode = tracking.mode if tracking.mode != "auto" else os.environ.get("WANDB_MODE") or "auto"
    if mode not in (*MODES, "disabled"):
        raise UserError(f"WANDB_MODE={mode}: must be one of online, offline, disabled")
    if mode != "auto":
        return mode, False
    return ("online" if wandb.login(prompt=False, verify=False) else "offline"), True


def open_run(tracking: Tracking, output: Path, arguments: Callable[[str], dict]):
    """Starts a W&B run under ``<output>/wandb``; offline, where nobody is logged in or W&B cannot be reached.

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
            settings=wandb.Settings(silent=True, init_timeout=30),
            **arguments(mode),
        )

    try:
        run = start(mode)
    except wandb.Error as error:
        reason = " ".join(str(error).split())
        if not may_go_offline:
            raise UserError(f"W&B cannot start (tracking.mode={mode}): {reason}") from error
        log.warning("W&B cannot be reached (%s); logging offline", reason)
        mode, run = "offline", start("offline")
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    return run, mode


class Tracker:
    """What a run shows of itself in one W&B run; without one, nothing.

    All runs of a checkout write under one folder, ``<output>/wandb``, so that ``wandb leet <folder>`` compares them.
    Online, a resumed run continues under its id. Offline, W&B cannot continue a run: a resumed run is a new segment of
    the same group whose config names the one before (``resumed_from``).
    """

    def __init__(self, run=None):
        self._run = run
        # Steps that were logged before the process died are run again after a resume, but not shown twice.
        self._logged = int(run.summary.get("step", -1)) if run is not None and run.resumed else -1

    def log(self, entry: dict[str, float]) -> None:
        if entry["step"] > self._logged:
            self.tell(lambda run: run.log(entry))

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
    tracker, exit_code = Tracker(_open(run, task)), 1
    try:
        yield tracker
        exit_code = 0
    except Interrupted as error:
        exit_code = 128 + error.signal
        raise
    finally:
        if config.diagnostics.gradients and (run.folder / "gradients.png").exists():
            tracker.tell(lambda shown: _show_gradients(shown, run))
        if config.tracking.artifacts and (run.folder / "checkpoint.pt").exists():
            tracker.tell(lambda shown: _keep_artifacts(shown, run))
        summary = _summary(run.record, verdict)
        tracker.tell(lambda shown: shown.summary.update(summary))
        tracker.tell(lambda shown: shown.finish(exit_code=exit_code))


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
            "name": f"{run.title}-seed{config.seed}",
            # Everything but the seed.
            "group": f"{run.title}-{config.identity(with_seed=False)}",
            "job_type": "train",
            "tags": [record.model, record.task, *(config.tracking.tags or [])],
            "notes": config.tracking.notes,
            "config": {**record.config, "identity": record.identity, "recipe": record.recipe, **more},
        }

    shown, mode = open_run(config.tracking, run.output, arguments)
    best = "max,last" if task.higher_is_better else "min,last"
    shown.define_metric(f"{task.monitor}/{task.metric}", step_metric="step", summary=best)
    if mode == "online":
        log.info("W&B: %s", shown.url)
    elif mode == "offline":
        folder = run.output / "wandb"
        log.info("W&B is offline: look with `wandb leet %s`, upload with `wandb sync %s`", folder, shown.sync_dir)
    return shown


def _show_gradients(shown, run: "Run") -> None:
    import wandb

    picture = wandb.Image(str(run.folder / "gradients.png"))
    shown.log({"gradients": picture, "step": run.record.budget.steps_done})


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


def _wandb_id(run: "Run") -> str:
    # Made once, so that two checkouts, or a run started afresh, do not share one W&B run.
    path = run.folder / "wandb_id"
    if not path.exists():
        model, task, seed = run.record.model, run.record.task, run.record.seed
        # `wandb leet` shows the first letters of it.
        write_atomic(path, f"{model}-s{seed}-{task}-{run.record.identity}-{os.urandom(3).hex()}".encode())
    return path.read_text()


def _summary(record: Record, verdict: Callable[[Record], object]) -> dict:
    """Figures that the W&B dashboard shows beside the curves."""
    keys = ("status", "parameters", "backend", "wall_seconds", "peak_memory_bytes")
    summary = {key: getattr(record, key) for key in keys}
    for split, scores in record.metrics.items():
        summary |= {f"final/{split}/{key}": value for key, value in scores.items()}
    if record.published is not None:
        summary |= {"published/key": record.published.key, "published/value": record.published.value}
    if record.status == FINISHED:
        summary["verdict"] = str(verdict(record))
    return summary
