"""``record.json``: what a run was and what came of it. It is written and read through one class."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    create_model,
    model_validator,
)

from longwave.training.errors import UserError

FINISHED, FAILED, INTERRUPTED = "finished", "failed", "interrupted"

Scores = dict[str, FiniteFloat]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Budget(_Part):
    """Training steps; ``steps`` is None until the run knows how long an epoch is."""

    steps_done: NonNegativeInt = 0
    steps: NonNegativeInt | None = None
    steps_in_recipe: PositiveInt | None = None


class Git(_Part):
    """Commit of the code; ``dirty`` if files differed from it."""

    commit: str
    dirty: bool


class Target(_Part):
    """Published value that the run aims at."""

    model_config = ConfigDict(extra="allow")

    key: str
    value: FiniteFloat | None = None
    kind: str | None = None
    source: str | None = None


class Objective(_Part):
    """Metric on the monitored split, ``<split>/<metric>``."""

    key: str
    value: FiniteFloat

    @property
    def metric(self) -> str:
        return self.key.partition("/")[2]


class Stage(_Part):
    """Length of a curriculum, the steps and seconds spent on it, and the last metric at that length."""

    model_config = ConfigDict(extra="allow")

    length: PositiveInt
    steps: NonNegativeInt
    seconds: FiniteFloat


class File(_Part):
    """Data file and its checksum."""

    file: str
    sha256: str


def refuse_changed(before: list[File], now: list[File]) -> None:
    """UserError where the data files of a run have changed."""
    sums, others = ({one.file: one.sha256 for one in files} for files in (before, now))
    for file in [*sums, *others]:
        was, is_now = (f"sha256 {found[file]}" if file in found else "not read" for found in (sums, others))
        if was != is_now:
            raise UserError(
                f"{file} is not what this run was trained on: it was {was}, and is now {is_now}; restore the "
                f"file, or start over with fresh=true"
            )


class Data(_Part):
    """Identity of the data: split, files with their checksums."""

    split_id: str
    files: list[File] = []
    notes: Any = None


class Curve(_Part):
    """Quantity against training steps."""

    step: list[NonNegativeInt]
    value: list[FiniteFloat]

    @model_validator(mode="after")
    def _is_even(self):
        if len(self.step) != len(self.value):
            raise ValueError("steps and values differ in number")
        return self


# Settings that tables, charts and estimates compute with, by section.
_SETTINGS = {
    "model": {"hidden": PositiveInt, "layers": PositiveInt},
    "task": {"T": PositiveInt, "dataset": str},
    "transform": {"step": PositiveInt, "depth": PositiveInt},
    "training": {"batch_size": PositiveInt, "epochs": PositiveInt, "steps": PositiveInt},
}


def _section(name: str, keys: dict[str, Any]) -> Any:
    fields = {key: (kind | None, None) for key, kind in keys.items()}
    made = create_model(name, __config__=ConfigDict(strict=True, allow_inf_nan=False), **fields)
    return (made | None, None) if name == "transform" else (made, ...)


_Config = create_model("config", **{name: _section(name, keys) for name, keys in _SETTINGS.items()})


def _checked(config: dict) -> dict:
    _Config.model_validate(config)
    return config


class Record(_Part):
    """One run.

    Args:
        version: of this format.
        config: all settings by section, as ``Config.as_dict`` gives them.
        changed: settings that are not as in the recipe, ``{"task.T": 500}``.
        metrics: scores by split, of the selected weights.
        first_passed: by ``<split>/<metric>`` and bound, the step of the first evaluation that was better, or None.
        baseline: scores of the trivial prediction.
        sessions: number of processes that have worked on the run.
        curves: by key of the history; only records in ``results/runs`` have them.
        steps_per_epoch: likewise; None for a task without epochs.
        forced: reasons for which ``results.collect`` took the record only with ``--force``.
    """

    version: Literal[1] = 1
    status: Literal["finished", "failed", "interrupted"]
    name: str
    identity: str = ""
    command: str
    model: str
    task: str
    recipe: str | None = None
    changed: dict[str, Any] = {}
    seed: int
    config: Annotated[dict[str, Any], AfterValidator(_checked)]
    metrics: dict[str, Scores] = {}
    published: Target | None = None
    budget: Budget = Field(default_factory=Budget)
    sessions: PositiveInt = 1
    packages: dict[str, str] = {}
    git: Git | None = None
    parameters: NonNegativeInt | None = None
    backend: str | None = None
    device: str | None = None
    data: Data | None = None
    wall_seconds: FiniteFloat | None = None
    steps_per_second: FiniteFloat | None = None
    peak_memory_bytes: NonNegativeInt | None = None
    written: str | None = None
    objective: Objective | None = None
    selected_step: NonNegativeInt | None = None
    stopped: str | None = None
    first_passed: dict[str, dict[str, int | None]] = {}
    baseline: Scores = {}
    curriculum: list[Stage] = []
    error: str | None = None
    failed_step: NonNegativeInt | None = None
    traceback: str | None = None
    steps_per_epoch: PositiveInt | None = None
    forced: list[str] = []
    curves: dict[str, Curve] | None = None

    @model_validator(mode="after")
    def _is_whole(self):
        if self.status != FINISHED:
            return self
        needed = {key: getattr(self, key) for key in ("parameters", "wall_seconds", "objective", "stopped")}
        for key, value in (needed | {"budget.steps": self.budget.steps}).items():
            if value is None:
                raise ValueError(f"{key}: a finished run has it")
        if self.objective.metric not in self.metrics.get("test", {}):
            raise ValueError("metrics.test does not have the metric that the run was selected by")
        return self

    @property
    def diverged(self) -> bool:
        """True if a loss, gradient, score or weight that is not finite ended it, at ``failed_step``."""
        return self.status == FAILED and self.failed_step is not None

    @property
    def far_below_trivial(self) -> bool:
        """True if the trivial prediction is far better: twice the score, or a tenth of the squared error."""
        metric = self.objective.metric.removeprefix("batch_") if self.objective else None
        if metric not in self.baseline or metric not in self.metrics.get("test", {}):
            return False
        value, trivial = self.metrics["test"][metric], self.baseline[metric]
        if metric == "r2":
            return 1 - value > 10 * (1 - trivial)
        if metric in ("accuracy", "balanced_accuracy", "macro_f1", "auroc"):
            return value < trivial / 2
        return value > trivial * (10**0.5 if metric in ("rmse", "mae") else 10)

    def dump(self) -> dict:
        """The record as JSON has it; what was never set is left out."""
        return self.model_dump(mode="json", exclude_unset=True)


def parse(text: str | bytes) -> Record:
    """Reads a record; ValueError, one line with the reason, where it is none."""
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {reason}" if where else reason) from error


def read(folder: Path) -> Record:
    """Reads the record in the folder of a run; OSError where there is none, ValueError where it is damaged."""
    return parse((folder / "record.json").read_bytes())
