"""A table (``conf/table/*.yaml``) as runs: rows x lengths x seeds, each a command line of ``train.py``."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from longwave.results import records
from longwave.schema import one_line
from longwave.training import record
from longwave.training.config import CONF, Config, compose_run, recipe_overrides
from longwave.training.errors import UserError
from longwave.training.overrides import MOST_RUNS, check_count, choices, no_choice, read
from longwave.training.record import FINISHED, Record
from longwave.training.run import folder_of, is_locked

# States of a run beside those of its record.
RUNNING, MISSING = "running", "missing"

# What a run costs beside its steps, before a sweep has measured it: composition, building, the last record. Seen on two
# cores that had other work: 0.5 s in one process, 5 s in a process of its own. The sweep measures.
SECONDS_BESIDE = 1.0


@dataclass
class Row:
    """A row of a table: a recipe, or a model and a task (with their recipe, where there is one).

    Args:
        recipe: as in ``conf/recipe``.
        overrides: as on the command line of ``train.py``, for this row alone; they win over the table's.
        seeds: of this row, where they are not the table's.
    """

    recipe: str | None = None
    model: str | None = None
    task: str | None = None
    overrides: list[str] = field(default_factory=list)
    seeds: Any = None

    @property
    def title(self) -> str:
        return " ".join([self.recipe or f"{self.model}/{self.task}", *self.overrides])

    def selection(self) -> list[str]:
        if self.recipe is None:
            if self.model is None or self.task is None:
                raise UserError("needs a recipe, or a model and a task")
            return [f"model={self.model}", f"task={self.task}"]
        if self.model is not None or self.task is not None:
            raise UserError(f"recipe={self.recipe}: chooses model and task itself; omit them")
        if self.recipe not in choices("recipe"):
            raise UserError(no_choice("recipe", self.recipe, choices("recipe")))
        return recipe_overrides(self.recipe)


@dataclass
class Table:
    """Rows, lengths and seeds of a table.

    Args:
        overrides: of all rows.
        lengths: every row at each of these ``task.T``.
        seeds: a number N for 0 to N - 1, or a list.
    """

    rows: list[Row] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    lengths: list[int] | None = None
    seeds: Any = 3


@dataclass
class Planned:
    """One run of a sweep.

    Args:
        title: of its row.
        overrides: its command line.
        config: what that makes.
    """

    title: str
    overrides: list[str]
    config: Config
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    def record(self) -> Record | None:
        """The run's record so far; None where there is none that can be read."""
        return _read(self.folder / "record.json")

    def state(self) -> str:
        """finished, running (in any process), failed, interrupted or missing."""
        found = self.record()
        if found is not None and found.status == FINISHED:
            return FINISHED
        if is_locked(self.folder):
            return RUNNING
        return MISSING if found is None else found.status


def seeds_of(seeds: Any) -> list[int]:
    """``N`` means 0 to N - 1.

    Raises:
        UserError: for anything but a number of 1 or more, or a list of whole numbers.
    """
    if type(seeds) is int and seeds > MOST_RUNS:
        raise UserError(f"seeds={seeds}: at most {MOST_RUNS} runs can be started at once")
    found = list(range(seeds)) if type(seeds) is int else seeds
    if not isinstance(found, list) or not found or not all(type(seed) is int and seed >= 0 for seed in found):
        raise UserError(f"seeds={one_line(str(seeds))}: must be a number of seeds (at least 1), or a list as [0,7]")
    return list(dict.fromkeys(found))


def key_of(override: str) -> str:
    """Key that an override sets."""
    return read(override).key_or_group


def merge(*lists: Sequence[str]) -> list[str]:
    """Overrides, each key once; the later wins. A choice of a group wins over all keys of it in earlier lists."""
    found: dict[str, str] = {}
    for overrides in lists:
        for prefix in (prefix for override in overrides for prefix in _chosen(override)):
            found = {key: text for key, text in found.items() if not f"{key}.".startswith(f"{prefix}.")}
        for override in overrides:
            key = key_of(override)
            found.pop(key, None)
            found[key] = override
    return list(found.values())


def _chosen(override: str) -> list[str]:
    """Keys that ``optimizer=sgd`` or ``debug=fast`` sets: to Hydra, a key beats a choice wherever it stands."""
    group, path = key_of(override), CONF / key_of(override) / f"{override.partition('=')[2]}.yaml"
    if "." in group or not os.path.isfile(path):
        return []
    if "@package _global_" not in path.read_text(encoding="utf-8"):
        return [group]
    sections = OmegaConf.to_container(OmegaConf.load(path))
    return [f"{name}.{key}" for name, keys in sections.items() if isinstance(keys, dict) for key in keys]


def expand(name: str, table: Table, seeds: Any, overrides: Sequence[str] = ()) -> list[Planned]:
    """The runs of a table, each checked; prints their number first if that takes a while.

    Args:
        name: of the table, for messages.
        seeds: instead of the table's and its rows', where not None.
        overrides: of all runs; they win over everything in the table.

    Raises:
        UserError: where a row does not compose, in one line that names it; where there are more than MOST_RUNS runs.
    """
    if not isinstance(table, Table):
        raise UserError(f"conf/table/{name}.yaml: must begin with defaults: [/schema/table@_here_]")
    if not table.rows:
        raise UserError(f"table={name}: has no rows")
    common = seeds_of(table.seeds if seeds is None else seeds)
    for text in overrides:
        if key_of(text) in ("seed", "fresh"):
            raise UserError(
                f"{text}: is no setting of a sweep" + ("; write seeds=N" if text.startswith("seed") else "")
            )
    lengths = [None] if "task.T" in map(key_of, overrides) else table.lengths or [None]
    # Of each row.
    seeds_in: list[list[int]] = []
    for index, row in enumerate(table.rows, start=1):
        with _named(name, index, row):
            seeds_in.append(common if seeds is not None or row.seeds is None else seeds_of(row.seeds))
    count = len(lengths) * sum(map(len, seeds_in))
    check_count(count, f"table={name}: {count} runs", "seeds or lengths")
    found: dict[str, Planned] = {}
    for index, (row, numbers) in enumerate(zip(table.rows, seeds_in, strict=True), start=1):
        with _named(name, index, row):
            for length in lengths:
                longer = [] if length is None else [f"task.T={length}"]
                chosen = merge(row.selection(), table.overrides, row.overrides, longer, overrides)
                first = compose_run([*chosen, f"seed={numbers[0]}"])[0]
                for seed in numbers:
                    config = dataclasses.replace(first, seed=seed)
                    folder = folder_of(config)
                    title = row.title + ("" if length is None else f", T = {length}")
                    found.setdefault(folder.name, Planned(title, [*chosen, f"seed={seed}"], config, folder))
    return list(found.values())


@contextlib.contextmanager
def _named(table: str, index: int, row: Row):
    """Errors name the row."""
    try:
        yield
    except UserError as error:
        raise UserError(f"table={table}, row {index} ({row.title}): {error}") from error


class Estimate:
    """Estimates of the time that runs take, from the records of earlier ones: ``output`` and ``results/runs``.

    Attributes:
        beside: seconds that a run takes beside its steps, such as its process's start; a sweep measures them.
    """

    def __init__(self, output: Path):
        self.beside = SECONDS_BESIDE
        self.earlier: list[Record] = []
        self._nearest: dict[str, Record | None] = {}
        for path in [*records.FOLDER.glob("*.json"), *output.glob("runs/*/record.json")]:
            self.learn(path)

    def learn(self, path: Path) -> None:
        """Adds a record; of two equally near ones, the later one counts."""
        found = _read(path)
        if found is not None and found.budget.steps_done and found.wall_seconds:
            self.earlier.insert(0, found)
            self._nearest.clear()

    def nearest(self, config: Config) -> Record | None:
        """The run of the same model and task whose length, batch and size are nearest."""
        same = [r for r in self.earlier if (r.model, r.task) == (config.model.name, config.task.name)]
        return min(same, key=lambda found: _distance(config.as_dict(), found.config), default=None)

    def seconds(self, run: Planned, started: bool = False) -> float | None:
        """Time to the end of a run's budget, with what it takes beside its steps where it is not ``started``.

        None where there is no earlier run to estimate it from.
        """
        steps = self._seconds_of_steps(run)
        return None if steps is None else steps + (0.0 if started else self.beside)

    def _seconds_of_steps(self, run: Planned) -> float | None:
        if run.name not in self._nearest:
            self._nearest[run.name] = self.nearest(run.config)
        near = self._nearest[run.name]
        if near is None:
            return None
        own = run.record()
        if own is not None and own.budget.steps and own.budget.steps_done and own.wall_seconds:
            left = max(0, own.budget.steps - own.budget.steps_done)
            return left * own.wall_seconds / own.budget.steps_done
        steps = _steps(run.config, near)
        if steps is None:
            return None
        longer = getattr(run.config.task, "T", 1) / (near.config["task"].get("T") or 1)
        return steps * longer * near.wall_seconds / near.budget.steps_done


def _read(path: Path) -> Record | None:
    """A record; None where there is none that can be read."""
    try:
        return record.parse(path.read_bytes())
    except (OSError, ValueError):
        return None


# What decides about the time of a step.
_SIZES = (
    ("task", "T"), ("model", "hidden"), ("model", "layers"), ("training", "batch_size"), ("transform", "step"),
    ("transform", "depth"),
)  # fmt: skip


def _distance(ours: dict, theirs: dict) -> float:
    distance = 0.0
    for section, key in _SIZES:
        a, b = ((config.get(section) or {}).get(key) or 1 for config in (ours, theirs))
        distance += abs(math.log(a / b))
    return distance


def _steps(config: Config, near: Record) -> int | None:
    """The budget of a run that has not begun; epochs are as long as those of the run ``near``."""
    training = config.training
    if training.epochs is None:
        return training.steps
    theirs = near.config["training"]
    whole = near.budget.steps
    if not whole or not theirs.get("epochs") or not theirs.get("batch_size") or theirs.get("steps") is not None:
        return training.steps
    samples = whole / theirs["epochs"] * theirs["batch_size"]
    steps = math.ceil(training.epochs * samples / training.batch_size)
    return steps if training.steps is None else min(steps, training.steps)


def register() -> None:
    """Puts the schema of a table into place; called once, at import."""
    ConfigStore.instance().store(group="schema", name="table", node=Table)


register()
