"""A run is a folder: its configuration, checkpoint, history, log and record."""

import json
import logging
import os
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from traceback import format_exception

import torch
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from longwave import home
from longwave.tasks.base import Task
from longwave.training import diagnostics, environment
from longwave.training.config import Config, changed_from_recipe, compose_run, recipe_overrides
from longwave.training.errors import Diverged, Interrupted, Pruned, Taken, UserError
from longwave.training.files import load_checkpoint, save_checkpoint, write_atomic
from longwave.training.loop import State
from longwave.training.progress import log
from longwave.training.tracking import NoTracker, WandbTracker

# Whoever looks whether a run is locked holds its lock for a moment.
LOCK_SECONDS = 0.5


def folder_of(config: Config) -> Path:
    """Where the run of this configuration is kept; its name is the run's."""
    name = f"{config.model.name}-{config.task.name}-seed{config.seed}-{config.identity()}"
    return home() / Path(config.output).expanduser() / "runs" / name


# What a finished run is reported by.
_REPORTED = {"objective", "metrics", "budget", "config", "changed", "recipe", "published", "baseline", "first_passed"}


def read_record(folder: Path) -> dict:
    """The record of the run in a folder.

    Raises:
        OSError, ValueError: where there is none, or it is none.
    """
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    needed = _REPORTED if isinstance(record, dict) and record.get("status") == "finished" else {"status"}
    if not isinstance(record, dict) or not needed <= record.keys():
        raise ValueError("it is no record")
    return record


def is_locked(folder: Path) -> bool:
    """Whether a process works on the run in this folder now."""
    if not (folder / "lock").exists():
        return False
    try:
        with FileLock(folder / "lock", timeout=0):
            return False
    except Timeout:
        return True


class Run:
    """One run: found by its identity, locked while it works, with a record at every end.

    Files in ``folder``: ``config.yaml``, ``checkpoint.pt`` (and the one before it, ``checkpoint.previous.pt``),
    ``history.jsonl`` (a line an entry, of training or evaluation), ``log.txt``, ``record.json``, and with
    ``diagnostics.gradients`` ``gradients.png``.

    Args:
        config: of the run.
        recipe: name of the recipe it was composed from, or None.
        published: ``{"key", "value", "source", ...}`` of the published value it aims at, or None.
        command: what to type to run it again.
        on_score: called with this run, the step and the metric on the monitored split at every evaluation, those of
            earlier processes too; may raise :class:`longwave.training.errors.Pruned`.
    """

    def __init__(
        self,
        config: Config,
        recipe: str | None,
        published: dict | None,
        command: str,
        on_score: Callable[["Run", int, float], None] | None = None,
    ):
        self.config, self.published, self._on_score = config, published, on_score
        self.identity = config.identity()
        self.folder = folder_of(config)
        self.name = self.folder.name
        self.output = self.folder.parent.parent
        self.title = f"{config.model.name}-{config.task.name}"
        self.tracker = NoTracker()
        self._state = State()
        self._body: dict = {
            "status": "interrupted",
            "name": self.name,
            "identity": self.identity,
            "command": command,
            "model": config.model.name,
            "task": config.task.name,
            "recipe": recipe,
            "changed": changed_from_recipe(config, recipe) if recipe else {},
            "seed": config.seed,
            "config": config.as_dict(),
            "metrics": {},
            "published": published,
            "budget": {"steps_done": 0, "steps": None, "steps_in_recipe": None},
            "sessions": 1,
            "packages": environment.packages(),
            "git": environment.git(),
        }
        self._signal: int | None = None
        self._verdict: str | None = None
        self._lock = FileLock(self.folder / "lock", timeout=LOCK_SECONDS)
        self._log_file: logging.Handler | None = None

    def record(self) -> dict | None:
        """The record that an earlier process left, or None."""
        try:
            return read_record(self.folder)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read (%s); it will be written anew", self.folder / "record.json", error)
            return None

    def report(self, record: dict) -> float:
        """Says what a finished run came to, and gives its objective."""
        test = ", ".join(f"{key} {value:.5g}" for key, value in record["metrics"]["test"].items())
        baseline = ", ".join(f"{key} {value:.4g}" for key, value in record["baseline"].items())
        log.info("test: %s%s", test, f" (trivial prediction: {baseline})" if baseline else "")
        if record.get("curriculum"):
            stages = ", ".join(f"{stage['length']} ({stage['steps']})" for stage in record["curriculum"])
            log.info("trained on growing lengths (steps): %s", stages)
        for key, bounds in record["first_passed"].items():
            passed = [f"{bound} at step {step}" if step else f"{bound} never" for bound, step in bounds.items()]
            log.info("%s first passed %s", key, ", ".join(passed))
        if record["published"] is not None and record["published"]["value"] is not None:
            value = record["published"]["value"]
            log.info("published: %s (%s; %s)", value, record["published"]["kind"], record["published"]["source"])
        if record["changed"]:
            changed = ", ".join(f"{key}={value}" for key, value in record["changed"].items())
            log.info("not as recipe %s has it: %s", record["recipe"], changed)
        budget = record["budget"]
        if budget["steps_in_recipe"] is not None and budget["steps"] < budget["steps_in_recipe"]:
            log.info("reduced budget: %d of the recipe's %d steps", budget["steps"], budget["steps_in_recipe"])
        if record["config"]["training"]["overfit"] or record["config"]["training"]["limit_evaluation"]:
            log.info("no result: trained on one batch, or tested on a part of the test set")
        log.info("record: %s", self.folder / "record.json")
        return record["objective"]["value"]

    def describe(self, task: Task, model: torch.nn.Module, device: torch.device) -> None:
        """Adds to the record what is known once task and model are built."""
        self.task, self._device = task, device
        if self._body["recipe"] is not None:
            recipe, _ = compose_run(recipe_overrides(self._body["recipe"]))
            self._body["budget"]["steps_in_recipe"] = recipe.training.total_steps(task)
        self._body |= {
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "backend": model.layer.backend(),
            "device": environment.device_name(device),
            "data": {
                "split_id": task.split_id,
                "files": [{"file": f, "sha256": s} for f, s in task.files],
                **({"notes": task.notes} if task.notes else {}),
            },
        }

    def __enter__(self) -> "Run":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            if self.config.fresh:
                self._set_aside()
            elif (self.record() or {}).get("status") == "finished":
                # Since this process last looked.
                raise Taken(f"another process has just finished this run: {self.folder}")
            self._log_file = logging.FileHandler(self.folder / "log.txt")
        except Timeout:
            raise Taken(f"another process is training this run: {self.folder} is locked") from None
        except Taken:
            self._lock.release()
            raise
        except OSError as error:
            self._lock.release()
            raise UserError(f"output={self.config.output}: cannot write to {self.folder} ({error.strerror})") from error
        self._log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(self._log_file)
        environment.reset_peak_memory()
        self._handlers = {}
        # Python takes signals in its main thread only; launchers may run jobs in another.
        if threading.current_thread() is threading.main_thread():
            self._handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _on_signal(self, number: int, frame) -> None:
        # The second one finds the handler that was there before, and ends the process at once.
        self._signal = number
        signal.signal(number, self._handlers[number])

    def check_signal(self, step: int) -> None:
        """Raises Interrupted where the process has been told to stop."""
        if self._signal is not None:
            raise Interrupted(step, self._signal)

    def _set_aside(self) -> None:
        """Moves what an earlier process left into a folder of its own; nothing is deleted."""
        old = [path for path in self.folder.iterdir() if path.name != "lock" and not path.name.startswith("before-")]
        if old:
            aside = self.folder / f"before-{datetime.now():%Y-%m-%d_%H-%M-%S}"
            aside.mkdir()
            for path in old:
                os.replace(path, aside / path.name)
            log.info("fresh=true: the earlier run is kept in %s", aside)

    def load(self) -> dict | None:
        """The newest good checkpoint, or None."""
        saved, damaged = load_checkpoint(self.folder / "checkpoint.pt")
        for line in damaged:
            then = f"going on from step {saved['state']['step']}" if saved else "starting from the beginning"
            log.warning("%s; %s", line, then)
        return saved

    def start(self, state: State, total: int, per_epoch: int | None, lengths: list[int | None]) -> None:
        """Called by the loop once it knows where it stands: writes the configuration, opens the tracker.

        Args:
            state: of the loop.
            total: steps in the budget.
            per_epoch: steps in an epoch; None where the task has no epochs.
            lengths: of the curriculum; one where there is none.
        """
        self._state = state
        # The record of the process before, where there was one: it may have died before its first checkpoint.
        earlier = self.record()
        self._body["sessions"] = (earlier or {}).get("sessions", 0) + 1
        # What was trained with code that is in no commit stays so, whatever the tree is now.
        if state.step and earlier and self._body["git"] and (earlier.get("git") or {"dirty": True})["dirty"]:
            self._body["git"]["dirty"] = True
        self._body["budget"]["steps"] = total
        as_dict = self.config.as_dict()
        write_atomic(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(as_dict)).encode())
        # The checkpoint's history is the truth: lines behind it will be written again.
        lines = "".join(json.dumps(entry) + "\n" for entry in state.history)
        write_atomic(self.folder / "history.jsonl", lines.encode())
        self._write_record()
        if self.config.tracking.name == "wandb":
            self.tracker = WandbTracker(
                self.config.tracking,
                self.output,
                {**as_dict, "identity": self.identity, "recipe": self._body["recipe"]},
                {
                    "id": self._wandb_id(),
                    "name": f"{self.title}-seed{self.config.seed}",
                    "group": f"{self.title}-{self.config.identity(with_seed=False)}",
                    "tags": [self.config.model.name, self.config.task.name],
                },
                self._body["sessions"],
                (f"{self.task.monitor}/{self.task.metric}", self.task.higher_is_better),
            )
        steps = f"{total} steps" + (f" ({per_epoch} an epoch)" if per_epoch else "")
        target = self.config.training.target
        if target is not None:
            bound = "above" if self.task.higher_is_better else "below"
            steps += f", fewer once {self.task.monitor}/{self.task.metric} has held {bound} {target}"
        if len(lengths) > 1:
            steps += f", lengths {', '.join(map(str, lengths))}"
        log.info(
            "%s: %s parameters, %s, on %s, time loop: %s",
            self.name,
            f"{self._body['parameters']:,}",
            steps,
            self._body["device"],
            self._body["backend"],
        )
        for entry in state.history:
            self._score(entry)

    def _wandb_id(self) -> str:
        # Made once, so that two checkouts, or a run started afresh, do not share one W&B run.
        path = self.folder / "wandb_id"
        if not path.exists():
            model, task, seed = self.config.model.name, self.config.task.name, self.config.seed
            # `wandb leet` shows the first letters of it.
            write_atomic(path, f"{model}-s{seed}-{task}-{self.identity}-{os.urandom(3).hex()}".encode())
        return path.read_text()

    def log(self, entry: dict) -> None:
        """One more entry of the history."""
        try:
            with open(self.folder / "history.jsonl", "a") as out:
                out.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.folder / 'history.jsonl'}: {error.strerror}") from error
        self.tracker.log(entry)
        self._score(entry)

    def _score(self, entry: dict) -> None:
        key = f"{self.task.monitor}/{self.task.metric}"
        if self._on_score is not None and key in entry:
            self._on_score(self, entry["step"], entry[key])

    def save(self, checkpoint: dict) -> None:
        """Writes a checkpoint, and the record as it would stand if the process died now."""
        save_checkpoint(self.folder / "checkpoint.pt", checkpoint)
        self._write_record()

    def finish(self, outcome: dict, judge: Callable[[dict], object] | None = None) -> None:
        """The run has come to its end.

        Args:
            judge: gives the verdict on the record of a finished run: on this seed alone, for the dashboard.
        """
        self._body |= outcome
        self._body["status"] = "finished"
        self._body["budget"]["steps_done"] = self._state.step
        if judge is not None:
            self._verdict = str(judge(self._body))

    def __exit__(self, kind, error, traceback) -> None:
        exit_code = 0
        if error is not None:
            self._body["status"] = (
                "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit | Pruned) else "failed"
            )
            self._body["error"] = f"{kind.__name__}: {error}"
            if isinstance(error, Diverged):
                self._body["failed_step"] = error.step
            if not isinstance(error, UserError | KeyboardInterrupt):
                self._body["traceback"] = "".join(format_exception(error))
            exit_code = 128 + error.signal if isinstance(error, Interrupted) else 1
        try:
            self._write_record()
            if self.config.diagnostics.gradients:
                self._draw()
        except UserError as second:
            # A full disk must not hide what ended the run.
            if error is None:
                raise
            log.error("%s", second)
        finally:
            try:
                self._keep()
                self.tracker.finish(self._summary(), exit_code)
            finally:
                for number, handler in self._handlers.items():
                    signal.signal(number, handler)
                log.removeHandler(self._log_file)
                self._log_file.close()
                self._lock.release()

    def _write_record(self) -> None:
        self._body["budget"]["steps_done"] = self._state.step
        seconds = self._state.seconds
        self._body |= {
            "wall_seconds": round(seconds, 3),
            "steps_per_second": round(self._state.step / seconds, 3) if seconds else None,
            "peak_memory_bytes": environment.peak_memory_bytes(self._device),
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_atomic(self.folder / "record.json", (json.dumps(self._body, indent=2, allow_nan=False) + "\n").encode())

    def _draw(self) -> None:
        png = diagnostics.picture(self._state.history, self.name)
        if png is not None:
            path = self.folder / "gradients.png"
            write_atomic(path, png)
            self.tracker.show("gradients", path, self._state.step)

    def _keep(self) -> None:
        path = self.folder / "checkpoint.pt"
        if self.config.tracking.artifacts and path.exists():
            self.tracker.keep(path, self.config.task.name, self._body["data"])

    def _summary(self) -> dict:
        """What the W&B dashboard shows beside the curves."""
        body = self._body
        summary = {
            key: body.get(key) for key in ("status", "parameters", "backend", "wall_seconds", "peak_memory_bytes")
        }
        for split, scores in body["metrics"].items():
            summary |= {f"final/{split}/{key}": value for key, value in scores.items()}
        if self.published is not None:
            summary |= {"published/key": self.published["key"], "published/value": self.published["value"]}
        if self._verdict is not None:
            summary["verdict"] = self._verdict
        return summary
