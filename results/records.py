"""Our records: finished runs as small JSON files in ``results/runs``, each whole in itself.

A record is what a run left (``training/run.py``) less the paths of the machine it ran on, with its thinned curves,
``{"test/mse": {"step": [...], "value": [...]}}``, and ``steps_per_epoch``. ``forced`` says why it should not have been
collected, where it was all the same.
"""

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from longwave import home
from longwave.training.config import NOT_IDENTITY
from longwave.training.errors import UserError

FOLDER = home() / "results" / "runs"

# A curve keeps at most this many points.
POINTS = 200

# What a command need not repeat elsewhere: where files are, and who watches.
_LOCAL = ("output", "data", "tracking", "fresh", "hydra")
_NOT_CURVES = ("step", "epoch", "seconds", "lr")


class _Part(BaseModel):
    """What tables and charts rely on; a record has more."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


Scores = dict[str, FiniteFloat]


class _Model(_Part):
    hidden: PositiveInt | None = None
    layers: PositiveInt | None = None


class _Task(_Part):
    T: PositiveInt | None = None
    dataset: str | None = None


class _Transform(_Part):
    step: PositiveInt | None = None
    depth: PositiveInt | None = None


class _Training(_Part):
    batch_size: PositiveInt | None = None
    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None


class _Config(_Part):
    model: _Model
    task: _Task
    training: _Training
    transform: _Transform | None = None


class _Budget(_Part):
    steps_done: NonNegativeInt
    # None until the run knows how long an epoch is.
    steps: NonNegativeInt | None = None
    steps_in_recipe: PositiveInt | None


class _FinishedBudget(_Budget):
    steps: NonNegativeInt


class _Git(_Part):
    commit: str
    dirty: bool


class _Target(_Part):
    key: str


class _Run(_Part):
    """``record.json``, of a run in any state."""

    name: str
    status: str
    model: str
    task: str
    seed: int
    command: str
    recipe: str | None = None
    changed: dict
    config: _Config
    budget: _Budget
    metrics: dict[str, Scores]
    published: _Target | None = None
    git: _Git | None = None
    packages: dict[str, str] = {}
    parameters: int | None = None
    wall_seconds: FiniteFloat | None = None
    peak_memory_bytes: NonNegativeInt | None = None
    baseline: Scores | None = None


class _Finished(_Run):
    budget: _FinishedBudget
    parameters: int
    wall_seconds: FiniteFloat
    objective: _Target
    stopped: str
    first_passed: dict[str, dict[str, int | None]]

    @model_validator(mode="after")
    def _is_tested(self):
        if self.objective.key.partition("/")[2] not in self.metrics.get("test", {}):
            raise ValueError("metrics.test does not have what the run was selected by")
        return self


class _Curve(_Part):
    step: list[NonNegativeInt]
    value: list[FiniteFloat]

    @model_validator(mode="after")
    def _is_even(self):
        if len(self.step) != len(self.value):
            raise ValueError("steps and values are not as many")
        return self


class _Collected(_Part):
    """What ``results.collect`` adds."""

    curves: dict[str, _Curve]
    steps_per_epoch: PositiveInt | None = None
    forced: list[str] = []


# Settings that make no other group: the seed, and what cannot change the numbers.
_NOT_GROUP = ("seed", *NOT_IDENTITY)


@dataclass
class Group:
    """Runs that differ in the seed only.

    Args:
        runs: the finished ones, by seed.
        unfinished: the others, which only force has collected.
    """

    runs: list[dict] = field(default_factory=list)
    unfinished: list[dict] = field(default_factory=list)

    @property
    def any(self) -> dict:
        """One of them, for what they share."""
        return (self.runs or self.unfinished)[0]


def need_folder(path: Path) -> None:
    """Raises UserError where ``--runs`` names no folder."""
    if not path.is_dir():
        raise UserError(f"--runs {path}: there is no such folder")


def load(folder: Path = FOLDER) -> tuple[list[dict], list[str]]:
    """The records in a folder by name, and a line on each that cannot be read and was passed over.

    Args:
        folder: of collected records, or of runs (``outputs/runs``).
    """
    records, damaged = [], []
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in paths:
        if path.suffix != ".json" and not (path / "record.json").exists():
            continue
        try:
            record = read(path) if path.suffix == ".json" else read_run(path)
            if record["name"] != path.stem:
                # A copy would count as one more seed.
                raise ValueError(f"its name is {record['name']}")
            records.append(record)
        except ValueError as error:
            damaged.append(f"{path.name} is passed over: {error}")
    return records, damaged


def read(path: Path) -> dict:
    """One record.

    Raises:
        ValueError: for a file that is none; says why.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        # Not the path: this line is shown in the report.
        raise ValueError(f"it cannot be read ({getattr(error, 'strerror', None) or error})") from error
    check(record)
    return record


def read_run(folder: Path) -> dict:
    """The record of a run's folder, as ``results.collect`` keeps it.

    Raises:
        ValueError: where its record or its history cannot be read; says why.
    """
    try:
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        # A process that was killed leaves a last line that is not whole.
        lines = (folder / "history.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        history = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise ValueError(f"it cannot be read ({error})") from error
    check(record, collected=False)
    if not all(isinstance(entry, dict) and type(entry.get("step")) is int for entry in history):
        raise ValueError("a line of history.jsonl is no entry")
    record.pop("traceback", None)
    record["config"] = {key: value for key, value in record["config"].items() if key not in _LOCAL}
    record["command"] = shlex.join(word for word in shlex.split(record["command"]) if not _is_local(word))
    try:
        epochs = [entry["step"] / entry["epoch"] for entry in history if entry.get("epoch")]
        record["steps_per_epoch"] = round(epochs[-1]) if epochs else None
        record["curves"] = curves(history)
    except TypeError as error:
        raise ValueError(f"history.jsonl has what is no number ({error})") from error
    check(record)
    return record


def _is_local(word: str) -> bool:
    return word.lstrip("+~").partition("=")[0].partition(".")[0] in _LOCAL


def curves(history: list[dict]) -> dict[str, dict[str, list]]:
    """Each quantity of a history against the steps at which it was taken, thinned evenly, first and last kept."""
    keys = dict.fromkeys(key for entry in history for key in entry if key not in _NOT_CURVES)
    found = {}
    for key in keys:
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        kept = np.linspace(0, len(points) - 1, min(len(points), POINTS)).round().astype(int)
        found[key] = {
            "step": [points[i][0] for i in kept],
            "value": [float(f"{points[i][1]:.5g}") for i in kept],
        }
    return found


def check(record: dict, collected: bool = True) -> None:
    """Raises ValueError where something is not what tables and charts take it for.

    Args:
        collected: whether it has what ``results.collect`` adds, too.
    """
    if not isinstance(record, dict):
        raise ValueError("it is not a record")
    parts = [_Finished if record.get("status") == "finished" else _Run] + [_Collected] * collected
    for part in parts:
        try:
            part.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from error


def groups(records: Iterable[dict]) -> list[Group]:
    """The records by everything but their seed, in the order of model, task and settings."""
    found: dict[str, Group] = {}
    for record in records:
        settings = {k: v for k, v in record["config"].items() if k not in _NOT_GROUP and v is not None}
        settings["training"] = settings["training"] | {"checkpoint_seconds": None}
        settings["transform"] = settings.get("transform") and settings["transform"] | {"backend": None}
        text = json.dumps([record["model"], record["task"], record.get("recipe"), settings], sort_keys=True)
        group = found.setdefault(text, Group())
        (group.runs if record["status"] == "finished" else group.unfinished).append(record)
    for group in found.values():
        group.runs.sort(key=lambda record: (record["seed"], record["name"]))
    return [found[text] for text in sorted(found)]
