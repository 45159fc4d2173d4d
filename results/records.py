"""Our records: finished runs as small JSON files in ``results/runs``, each complete in itself.

They are the runs' own records (:mod:`longwave.training.record`) without the machine's paths, with thinned curves. Runs
that were not collected are read in the same way, from their folders.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from longwave import home
from longwave.schema import counted
from longwave.training import record
from longwave.training.config import experiment
from longwave.training.errors import UserError
from longwave.training.record import FINISHED, Record

FOLDER = home() / "results" / "runs"
# One's own: runs in ``runs``, and what was collected of them in ``records``.
OUTPUT = home() / "outputs"

# A curve keeps at most this many points.
POINTS = 200

# What a command need not repeat elsewhere: where files are, and who watches.
_LOCAL = ("output", "data", "tracking", "fresh", "hydra")
_NOT_CURVES = ("step", "epoch", "seconds", "lr")


@dataclass
class Group:
    """Runs that differ in seed or fold only: the finished ones, by these, and others; ``mine`` if marked as own."""

    runs: list[Record] = field(default_factory=list)
    unfinished: list[Record] = field(default_factory=list)
    mine: bool = False

    @property
    def any(self) -> Record:
        """One of them, for what they share."""
        return (self.runs or self.unfinished)[0]


def load(folder: Path = FOLDER) -> tuple[list[Record], list[str]]:
    """The records in a folder, collected ones or runs, by name, and a line on each that is damaged and left out."""
    records, damaged = [], []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix != ".json" and not (path / "record.json").exists():
            continue
        try:
            found = read(path) if path.suffix == ".json" else read_run(path)
            if found.name != path.stem:
                # A copy would count as one more seed.
                raise ValueError(f"its name is {found.name}")
            records.append(found)
        except ValueError as error:
            damaged.append(f"{path.name} is left out: {error}")
    return records, damaged


def load_named(folder: Path) -> tuple[list[Record], list[str]]:
    """As :func:`load`, for ``--runs``: UserError where there is no such folder; damaged records go to stderr, too.

    Read are the folder and, in it, ``runs`` and ``records``. Of two records of one name the first counts.
    """
    if not folder.is_dir():
        raise UserError(f"--runs {folder}: no such folder")
    found: dict[str, Record] = {}
    damaged = []
    for path in (folder, folder / "runs", folder / "records"):
        records, lines = load(path)
        found = {record.name: record for record in records} | found
        damaged += lines
    for line in damaged:
        print(line, file=sys.stderr)
    return list(found.values()), damaged


@dataclass
class Shown:
    """Records to show: ``mine`` are marked beside the others; ``damaged`` has a line on each that is left out."""

    records: list[Record]
    mine: list[Record] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        number = counted(len(self.records) + len(self.mine), "record")
        return number + (f", {len(self.mine):,} of them yours" if self.mine else "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`shown` reads."""
    text = "a folder of runs or records, instead of results/runs and your outputs"
    parser.add_argument("--runs", type=Path, help=text)
    text = "only your own runs, in outputs or --runs, and no rows that have not been run"
    parser.add_argument("--mine", action="store_true", help=text)


def shown(chosen: argparse.Namespace) -> Shown:
    """Without options the committed records and, marked, the runs in ``outputs``.

    Raises:
        UserError: where there is no such folder, or no record in it.
    """
    if chosen.runs is not None:
        found, damaged = load_named(chosen.runs)
        if not found:
            raise UserError(f"--runs {chosen.runs}: has no record of a run that can be read")
        return Shown(found, damaged=damaged)
    own, damaged = load_named(OUTPUT) if OUTPUT.is_dir() else ([], [])
    if chosen.mine:
        if not own:
            raise UserError(f"--mine: there is no record of a run in {OUTPUT}; name another folder with --runs")
        return Shown(own, damaged=damaged)
    committed, more = load(FOLDER)
    for line in more:
        print(line, file=sys.stderr)
    # What was published is shown once.
    published = {record.name: record for record in committed}
    return Shown(committed, [record for record in own if published.get(record.name) != record], [*more, *damaged])


def read(path: Path) -> Record:
    """One collected record; ValueError with the reason for a file that is none."""
    try:
        found = record.parse(path.read_bytes())
    except OSError as error:
        # Not the path: this line is shown in the report.
        raise ValueError(f"it cannot be read ({error.strerror})") from error
    if found.curves is None:
        raise ValueError("curves: a collected record has them")
    return found


def read_run(folder: Path) -> Record:
    """The record of a run's folder, as ``results.collect`` keeps it; ValueError with the reason where there is none."""
    try:
        found = record.read(folder)
        # A process that was killed leaves a last line that is not whole.
        lines = (folder / "history.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        history = [json.loads(line) for line in lines]
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from error
    if not all(isinstance(entry, dict) and type(entry.get("step")) is int for entry in history):
        raise ValueError("a line of history.jsonl is no entry")
    try:
        epochs = [entry["step"] / entry["epoch"] for entry in history if entry.get("epoch")]
        more = {"steps_per_epoch": round(epochs[-1]) if epochs else None, "curves": curves(history)}
    except TypeError as error:
        raise ValueError(f"history.jsonl has what is no number ({error})") from error
    kept = found.dump()
    kept.pop("traceback", None)
    kept["config"] = {key: value for key, value in kept["config"].items() if key not in _LOCAL}
    words = shlex.split(kept["command"])
    kept["command"] = shlex.join(word for word in words if re.split("[.=]", word.lstrip("+~"))[0] not in _LOCAL)
    return record.parse(json.dumps(kept | more))


def curves(history: list[dict]) -> dict[str, dict[str, list]]:
    """Each quantity of a history against the steps at which it was taken, thinned evenly, first and last kept."""
    keys = dict.fromkeys(key for entry in history for key in entry if key not in _NOT_CURVES)
    found = {}
    for key in keys:
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        kept = np.linspace(0, len(points) - 1, min(len(points), POINTS)).round().astype(int)
        steps, values = zip(*(points[i] for i in kept), strict=True)
        found[key] = {"step": list(steps), "value": [float(f"{value:.5g}") for value in values]}
    return found


def refusals(record: Record) -> list[str]:
    """Reasons not to publish a record; empty if there are none. It can still be shown."""
    return [*unfinished(record), *flaws(record)]


def unfinished(record: Record) -> list[str]:
    """Its status and error, where a run has neither finished nor diverged: then it has a result."""
    if record.status == FINISHED or record.diverged:
        return []
    return [record.status + (f" ({record.error})" if record.error else "")]


def flaws(record: Record) -> list[str]:
    """What makes a run that has ended no result."""
    reasons = []
    if record.git is None:
        reasons.append("of an unknown commit")
    elif record.git.dirty:
        reasons.append("from a dirty tree")
    training = record.config["training"]
    if training.get("overfit"):
        reasons.append("trained on one batch")
    if training.get("limit_evaluation") is not None:
        reasons.append("tested on a part of the test set")
    return reasons


def groups(records: Iterable[Record], mine: bool = False) -> list[Group]:
    """The records by everything but seed and fold, in the order of model, task and settings."""
    found: dict[str, Group] = {}
    for one in records:
        text = json.dumps([one.model, one.task, one.recipe, experiment(one.config)], sort_keys=True)
        group = found.setdefault(text, Group(mine=mine))
        (group.runs if one.status == FINISHED else group.unfinished).append(one)
    for group in found.values():
        group.runs.sort(key=lambda one: (one.seed, one.config["task"].get("fold") or 0, one.name))
    return [found[text] for text in sorted(found)]
