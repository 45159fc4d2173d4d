"""Weights & Biases: the dashboard. The truth is the run's own history."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longwave.schema import Annotated, OneOf, Section
from longwave.tasks.base import Task
from longwave.training.errors import Interrupted, UserError
from longwave.training.files import write_atomic
from longwave.training.progress import log
from longwave.training.record import FINISHED, Record

if TYPE_CHECKING:
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


class NoTracker:
    """Logs nothing."""

    def log(self, entry: dict[str, float]) -> None:
        pass

    def show(self, key: str, picture: Path, step: int) -> None:
        pass

    def keep(self, checkpoint: Path, task: str, data: dict) -> None:
        pass

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        pass


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
        return start(mode), mode
    except wandb.Error as error:
        reason = " ".join(str(error).split())
        if not may_go_offline:
            raise UserError(f"W&B cannot start (tracking.mode={mode}): {reason}") from error
        log.warning("W&B cannot be reached (%s); logging offline", reason)
        return start("offline"), "offline"


class WandbTracker:
    """One W&B run, online or offline.

    All runs of a checkout write under one folder, ``<output>/wandb``, so that ``wandb leet <folder>`` compares them.
    Online, a resumed run continues under its id. Offline, W&B cannot continue a run: a resumed run is a new segment of
    the same group whose config names the one before (``resumed_from``).

    Args:
        config: of the run, as a dictionary.
        about: what the run is: ``name``, ``group`` (everything but the seed), ``tags``.
        session: 1 for a run's first process, 2 after it was resumed, ...
        metric: the key whose best value the summary keeps, and whether more is better.
    """

    def __init__(
        self, tracking: Tracking, output: Path, config: dict, about: dict, session: int, metric: tuple[str, bool]
    ):
        def arguments(mode: str) -> dict:
            run_id, more = about["id"], {}
            if mode == "offline" and session > 1:
                more = {"resumed_from": run_id if session == 2 else f"{run_id}-{session - 1}"}
                run_id = f"{run_id}-{session}"
            return {
                "id": run_id,
                "name": about["name"],
                "group": about["group"],
                "job_type": "train",
                "tags": [*about["tags"], *(tracking.tags or [])],
                "notes": tracking.notes,
                "config": config | more,
            }

        self._run, mode = open_run(tracking, output, arguments)
        self._id, self._lost = about["id"], False
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        key, higher = metric
        self._run.define_metric(key, step_metric="step", summary="max,last" if higher else "min,last")
        # Steps that were logged before the process died are run again after a resume, but not shown twice.
        self._logged = int(self._run.summary.get("step", -1)) if self._run.resumed else -1
        if mode == "online":
            log.info("W&B: %s", self._run.url)
        elif mode == "offline":
            folder = output / "wandb"
            log.info(
                "W&B is offline: look with `wandb leet %s`, upload with `wandb sync %s`", folder, self._run.sync_dir
            )

    def log(self, entry: dict[str, float]) -> None:
        if entry["step"] > self._logged:
            self._tell(lambda: self._run.log(entry))

    def show(self, key: str, picture: Path, step: int) -> None:
        import wandb

        self._tell(lambda: self._run.log({key: wandb.Image(str(picture)), "step": step}))

    def keep(self, checkpoint: Path, task: str, data: dict) -> None:
        """Artifacts: the checkpoint itself, and what identifies the data, as the record has it."""
        import wandb

        def keep() -> None:
            model = wandb.Artifact(f"{self._id}-checkpoint", "model")
            model.add_file(str(checkpoint))
            self._run.log_artifact(model)
            used = wandb.Artifact(f"{task}-data", "dataset", metadata=data)
            # Other checksums are another version; the same data of another run are the same one.
            with used.new_file("data.json") as out:
                json.dump(data, out, indent=1, sort_keys=True)
            self._run.log_artifact(used)

        self._tell(keep)

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        self._tell(lambda: self._run.summary.update(summary))
        self._tell(lambda: self._run.finish(exit_code=exit_code))

    def _tell(self, act: Callable[[], Any]) -> None:
        # What shows a run must not end it: hours of training against a dead helper process, or a full disk.
        if self._lost:
            return
        try:
            act()
        except Exception as error:
            self._lost = True
            log.warning("W&B failed (%s: %s); the run continues without it", type(error).__name__, error)


@contextmanager
def track(run: "Run", task: Task, verdict: Callable[[Record], object]) -> Iterator[NoTracker | WandbTracker]:
    """The tracker of a run that has started, finished on every path.

    Args:
        verdict: on the record of a finished run, this seed alone, for the dashboard.
    """
    config, record = run.config, run.record
    tracker = NoTracker()
    if config.tracking.name == "wandb":
        tracker = WandbTracker(
            config.tracking,
            run.output,
            {**record.config, "identity": record.identity, "recipe": record.recipe},
            {
                "id": _wandb_id(run),
                "name": f"{run.title}-seed{config.seed}",
                "group": f"{run.title}-{config.identity(with_seed=False)}",
                "tags": [record.model, record.task],
            },
            record.sessions,
            (f"{task.monitor}/{task.metric}", task.higher_is_better),
        )
    exit_code = 1
    try:
        yield tracker
        exit_code = 0
    except Interrupted as error:
        exit_code = 128 + error.signal
        raise
    finally:
        picture, checkpoint = run.folder / "gradients.png", run.folder / "checkpoint.pt"
        if config.diagnostics.gradients and picture.exists():
            tracker.show("gradients", picture, run.record.budget.steps_done)
        if config.tracking.artifacts and checkpoint.exists():
            tracker.keep(checkpoint, config.task.name, run.record.dump()["data"])
        tracker.finish(_summary(run.record, verdict), exit_code)


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
