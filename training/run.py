"""A run is a folder: its configuration, checkpoint, history, log and record."""

import contextlib
import json
import logging
import os
import sys
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path
from traceback import format_exception
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from longwave import home
from longwave.schema import one_line
from longwave.training import record
from longwave.training.config import Config
from longwave.training.errors import Diverged, Pruned, Taken, UserError
from longwave.training.files import load_checkpoint, save_checkpoint, write_atomic
from longwave.training.progress import log
from longwave.training.record import FAILED, FINISHED, INTERRUPTED, Budget, Data, File, Git, Record, refuse_changed

# What a checkpoint keeps of the task, for use without its data.
KEPT_OF_TASK = ("inputs", "outputs", "read", "predicts", "classes", "statistics")

if TYPE_CHECKING:
    import torch

    from longwave.models.network import Network
    from longwave.tasks.base import Task


def folder_of(config: Config) -> Path:
    """Folder of this run; the folder's name is the run's name."""
    name = f"{config.model.name}-{config.task.name}-seed{config.seed}-{config.identity()}"
    return home() / Path(config.output).expanduser() / "runs" / name


def files_of(task: "Task") -> list[File]:
    """The data files of a task, as a record has them."""
    return [File(file=name, sha256=sha256) for name, sha256 in task.files]


def is_locked(folder: Path) -> bool:
    """True if another process holds the run's lock."""
    if not (folder / "lock").exists():
        return False
    try:
        with FileLock(folder / "lock", timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        # It is no file: whoever starts the run says so.
        return False


class _LogFile(logging.FileHandler):
    """``log.txt``. A full disk must not end a run for its log, nor hide what did: one line on the console says so."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.failed:
            self.failed = True
            log.error("cannot write %s: %s", self.baseFilename, sys.exc_info()[1])

    def close(self) -> None:
        # What could not be written is flushed once more.
        with contextlib.suppress(OSError):
            super().close()


class Run:
    """One run: found by its identity, locked while it works, with a record at every end.

    Files in ``folder``: ``config.yaml``, ``checkpoint.pt`` (and the one before it, ``checkpoint.previous.pt``),
    ``history.jsonl`` (a line an entry, of training or evaluation), ``log.txt`` and ``record.json``, which has the
    ``command`` that runs it again; ``about`` are further fields of it that are known before the run starts.
    """

    def __init__(self, config: Config, command: str, **about):
        from longwave.training import environment

        self.config = config
        self.folder = folder_of(config)
        self.name, self.output = self.folder.name, self.folder.parent.parent
        self.title = f"{config.model.name}-{config.task.name}"
        self.record = Record(
            status=INTERRUPTED,
            name=self.name,
            identity=config.identity(),
            command=command,
            model=config.model.name,
            task=config.task.name,
            seed=config.seed,
            config=config.as_dict(),
            packages=environment.packages(),
            git=environment.git(),
            # Named, since what was never set is not written.
            budget=Budget(),
            **about,
        )

    def earlier(self) -> Record | None:
        """The record that an earlier process left, or None."""
        try:
            found = record.read(self.folder)
            if found.name != self.name:
                raise ValueError(f"it belongs to {one_line(found.name)}")
            return found
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = one_line(str(error), 150)
            log.warning("%s cannot be read (%s); it will be written again", self.folder / "record.json", reason)
            return None

    def describe(self, task: "Task", model: "Network", device: "torch.device", steps_in_recipe: int | None) -> None:
        """Adds to the record what is known once task and model are built."""
        from longwave.training import environment

        record = self.record
        record.budget.steps_in_recipe = steps_in_recipe
        record.parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        record.backend, record.device = model.layer.backend, environment.device_name(device)
        notes = {"notes": task.notes} if task.notes else {}
        record.data = Data(split_id=task.split_id, files=files_of(task), **notes)
        self._task = {key: getattr(task, key) for key in KEPT_OF_TASK}

    def __enter__(self) -> "Run":
        with ExitStack() as opened:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                # Whoever looks whether a run is locked holds its lock for a moment.
                opened.enter_context(FileLock(self.folder / "lock", timeout=0.5))
                if self.config.fresh:
                    self._set_aside()
                elif (found := self.earlier()) and found.status == FINISHED:
                    # Since this process last looked.
                    raise Taken(f"another process has just finished this run: {self.folder}")
                log_file = _LogFile(self.folder / "log.txt")
            except Timeout:
                raise Taken(f"another process is training this run: {self.folder} is locked") from None
            except OSError as error:
                where = f"output={self.config.output}"
                raise UserError(
                    f"{where}: cannot write to {error.filename or self.folder} ({error.strerror})"
                ) from error
            log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            log.addHandler(log_file)
            opened.callback(log_file.close)
            opened.callback(log.removeHandler, log_file)
            self._opened = opened.pop_all()
        return self

    def enter(self, manager: AbstractContextManager):
        """Enters a context that is left after the last record has been written, and before the lock is released."""
        return self._opened.enter_context(manager)

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
        """The newest good checkpoint, or None; UserError where it was trained on other data."""
        saved, damaged = load_checkpoint(self.folder / "checkpoint.pt")
        for line in damaged:
            then = f"resuming at step {saved['state']['step']}" if saved else "starting from the beginning"
            log.warning("%s; %s", line, then)
        # An older checkpoint does not have them.
        if saved and "files" in saved:
            refuse_changed([File(**file) for file in saved["files"]], self.record.data.files)
        return saved

    def start(self, step: int, history: list[dict]) -> None:
        """Writes the configuration, the history and the record as they are at ``step``, where training begins."""
        # The record of the process before, where there was one: it may have died before its first checkpoint.
        earlier = self.earlier()
        self.record.sessions = earlier.sessions + 1 if earlier else 1
        # What was trained with code that is in no commit stays so, whatever the tree is now.
        if step and earlier and self.record.git and (earlier.git is None or earlier.git.dirty):
            self.record.git = Git(commit=self.record.git.commit, dirty=True)
        write_atomic(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.record.config)).encode())
        # The checkpoint's history is the truth: lines behind it will be written again.
        lines = "".join(json.dumps(entry) + "\n" for entry in history)
        write_atomic(self.folder / "history.jsonl", lines.encode())
        self.write()

    def log(self, entry: dict) -> None:
        """Appends an entry to the history."""
        try:
            with open(self.folder / "history.jsonl", "a") as out:
                out.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.folder / 'history.jsonl'}: {error.strerror}") from error

    def save(self, checkpoint: dict) -> None:
        """Writes a checkpoint, and the record as it would stand if the process died now."""
        files = [file.model_dump() for file in self.record.data.files]
        save_checkpoint(self.folder / "checkpoint.pt", checkpoint | {"files": files, "task": self._task})
        self.write()

    def finish(self, outcome: dict) -> None:
        """Adds the outcome to the record, which is written on leaving the run."""
        self.record = Record.model_validate(self.record.dump() | outcome | {"status": FINISHED})

    def write(self) -> None:
        """Writes the record."""
        self.record.written = datetime.now(UTC).isoformat(timespec="seconds")
        content = self.record.model_dump_json(indent=2, exclude_unset=True)
        record.parse(content)
        write_atomic(self.folder / "record.json", f"{content}\n".encode())

    def __exit__(self, kind, error, traceback) -> None:
        if error is not None:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit | Pruned)
            self.record.status = INTERRUPTED if stopped else FAILED
            self.record.error = f"{kind.__name__}: {error}"
            if isinstance(error, Diverged):
                self.record.failed_step = error.step
            if not isinstance(error, UserError | KeyboardInterrupt):
                self.record.traceback = "".join(format_exception(error))
        try:
            self.write()
        except UserError as second:
            # A full disk must not hide what ended the run.
            if error is None:
                raise
            log.error("%s", second)
        finally:
            self._opened.__exit__(kind, error, traceback)
