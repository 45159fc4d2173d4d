"""Our records: finished runs as small JSON files in ``results/runs``, each whole in itself.

A record is what a run left (``training/run.py``) less the paths of the machine it ran on, with its thinned curves,
``{"test/mse": {"step": [...], "value": [...]}}``, and ``steps_per_epoch``. ``forced`` says why it should not have been
collected, where it was all the same.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from training.config import NOT_IDENTITY

FOLDER = Path(__file__).parent / "runs"

# What every table and chart relies on, and the type it must have.
NEEDED = {
    "name": str,
    "status": str,
    "model": str,
    "task": str,
    "seed": int,
    "command": str,
    "config": dict,
    "metrics": dict,
    "budget": dict,
    "curves": dict,
    "changed": dict,
}
# Of a finished run besides.
NEEDED_OF_FINISHED = {
    "parameters": int, "wall_seconds": float | int, "objective": dict, "stopped": str, "first_passed": dict,
}  # fmt: skip

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


def load(folder: Path = FOLDER) -> tuple[list[dict], list[str]]:
    """The records of a folder by name, and a line on each file that is none and was passed over."""
    records, damaged = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(read(path))
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
    check(record, NEEDED)
    if record["status"] == "finished":
        check(record, NEEDED_OF_FINISHED)
    try:
        whole = _is_whole(record)
    except (AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError("a part of it is missing or not what it should be")
    return record


def _is_whole(record: dict) -> bool:
    """Whether what is inside of the parts that are needed is what tables and charts take it for."""
    lists = [(curve["step"], curve["value"]) for curve in record["curves"].values()]
    numbers = [number for pair in lists for one in pair for number in one]
    config, budget = record["config"], record["budget"]
    if record["status"] == "finished":
        numbers += [*record["metrics"]["test"].values(), budget["steps_done"], budget["steps"]]
        numbers += [record["metrics"]["test"][record["objective"]["key"].partition("/")[2]]]
    return (
        all(len(steps) == len(values) for steps, values in lists)
        and all(isinstance(number, int | float) for number in numbers)
        and isinstance(config["task"], dict)
        and isinstance(config["training"], dict)
        and "steps_in_recipe" in budget
    )


def check(record: dict, needed: dict) -> None:
    """Raises ValueError where something that is needed is not there."""
    if not isinstance(record, dict):
        raise ValueError("it is not a record")
    for key, kind in needed.items():
        if not isinstance(record.get(key), kind):
            raise ValueError(f"{key} is missing or not what it should be")


def groups(records: Iterable[dict]) -> list[Group]:
    """The records by everything but their seed, in the order of model, task and settings."""
    found: dict[str, Group] = {}
    for record in records:
        settings = {key: value for key, value in record["config"].items() if key not in _NOT_GROUP}
        settings["training"] = settings["training"] | {"checkpoint_seconds": None}
        settings["transform"] = settings.get("transform") and settings["transform"] | {"backend": None}
        text = json.dumps([record["model"], record["task"], record.get("recipe"), settings], sort_keys=True)
        group = found.setdefault(text, Group())
        (group.runs if record["status"] == "finished" else group.unfinished).append(record)
    for group in found.values():
        group.runs.sort(key=lambda record: (record["seed"], record["name"]))
    return [found[text] for text in sorted(found)]
