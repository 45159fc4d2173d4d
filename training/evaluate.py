"""Recomputes the metrics of a finished run from its checkpoint: ``python -m longwave.training.evaluate <run> [split]``.

They are compared with those of the record: on the same machine they are equal to the last digit, and a difference is an
error. ``predictions.csv`` in the run's folder gets a row for each prediction.
"""

import argparse
import csv
import functools
import io
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from torch import Tensor

from longwave.files import replacing
from longwave.schema import one_line
from longwave.tasks.base import Task
from longwave.training import entry, environment, memory, weights
from longwave.training.build import build
from longwave.training.config import Config, restore
from longwave.training.errors import UserError
from longwave.training.loop import evaluate
from longwave.training.record import Record, refuse_changed
from longwave.training.run import files_of
from longwave.training.trained import probabilities

# With more classes, or a prediction at every step, a row has the probability of its class only.
MOST_COLUMNS = 20


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m longwave.training.evaluate", description=__doc__)
    parser.add_argument("run", help="its folder, or its name or identity in outputs/runs")
    parser.add_argument("split", nargs="?", help="test, validation or train; by default those of the record")
    parser.add_argument("--root", help="folder of the data sets, if it is not the run's")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], help="if it is not the run's")
    chosen = parser.parse_args(arguments)
    for line in again(weights.find(chosen.run), chosen.split, chosen.root, chosen.device):
        print(line)


def again(folder: Path, split: str | None = None, root: str | None = None, device: str | None = None) -> list[str]:
    """A line for each score, equal to the record's; writes ``predictions.csv``.

    Raises:
        UserError: where the run is not finished or damaged, or has no such split; where its data are missing or have
            changed; and, with both values, for a score that is not that of the record.
    """
    record = weights.read_record(folder)
    config = restore(record.config)
    config = replace(config, data=replace(config.data, root=root or config.data.root), device=device or config.device)
    place = environment.pick_device(config.device)
    environment.set_up_process(config.threads)
    with memory.in_one_line():
        task, model = build(config, place)
        refuse_changed(record.data.files, files_of(task))
        try:
            weights.assign(model, weights.selected(folder)[0])
        except ValueError as error:
            raise UserError(f"{folder}: the run was made by another version of the code: {error}") from error
        model.to(place)
        found = {}
        try:
            with replacing(folder / "predictions.csv") as out:
                text = io.TextIOWrapper(out, encoding="utf-8", newline="", write_through=True)
                rows = Rows(config, task, text)
                for name in _splits(task, record, split):
                    rows.split(name)
                    step = record.selected_step or 0
                    found[name] = evaluate(model, task, name, place, config.training, None, step, on_batch=rows.add)
                text.detach()
        except OSError as error:
            raise UserError(f"cannot write {folder / 'predictions.csv'}: {error.strerror}") from error
    here = {
        "device": environment.device_name(place),
        "time loop": model.layer.backend,
        "torch": environment.packages()["torch"],
    }
    return [*_compared(record, found, here), f"predictions: {folder / 'predictions.csv'}"]


def _splits(task: Task, record: Record, split: str | None) -> list[str]:
    """The splits to evaluate; of the training set a record has the loss of some steps only."""
    known = [name for name in record.metrics if name != "train"]
    allowed = [*known, *(["train"] if "train" in task.splits else [])]
    if split is not None and split not in allowed:
        raise UserError(f"{one_line(split)}: no such split; there are {', '.join(allowed)}")
    return [split] if split else known


def _compared(record: Record, found: dict[str, dict[str, float]], here: dict[str, str]) -> Iterable[str]:
    then = {"device": record.device, "time loop": record.backend, "torch": record.packages.get("torch")}
    lines, wrong = [], []
    for split, scores in found.items():
        for key, value in scores.items():
            before = record.metrics.get(split, {}).get(key) if split != "train" else None
            lines.append(f"{split} {key}: {value:.6g}" + ("" if before is None else ", as in the record"))
            if before is not None and before != value:
                wrong.append(f"{split} {key} is {value!r}, and {before!r} in the record")
    if wrong:
        moved = [f"{key} {then[key]} then, {here[key]} now" for key in here if then[key] not in (None, here[key])]
        raise UserError("; ".join(wrong) + (f" ({'; '.join(moved)})" if moved else ""))
    return lines


class Rows:
    """The rows of ``predictions.csv``, written batch by batch.

    Columns: split; sample, its place in the split; step, where the task reads every step; target; and the outputs, or
    class and probabilities.
    """

    def __init__(self, config: Config, task: Task, out: TextIO):
        self.in_units = functools.partial(config.task.in_units, statistics=task.statistics)
        self.task, self.writer = task, csv.writer(out, lineterminator="\n")
        self.every = task.read == "every"
        names = task.classes or [str(number) for number in range(2 if task.predicts == "binary" else task.outputs)]
        self.names = names
        self.wide = not self.every and len(names) <= MOST_COLUMNS
        if task.predicts == "values":
            found = [f"prediction_{number}" for number in range(task.outputs)] if task.outputs > 1 else ["prediction"]
        else:
            found = ["class", *([f"p({name})" for name in names] if self.wide else ["probability"])]
        self.writer.writerow(["split", "sample", *(["step"] if self.every else []), "target", *found])

    def split(self, name: str) -> None:
        """Begins a split."""
        self.name, self.first, self.step = name, 0, 0

    def add(self, output: Tensor, target: Tensor) -> None:
        """A batch: (B, outputs) and (B,), or (T, B, outputs) and (T, B)."""
        if not self.every:
            output, target = output.unsqueeze(0), target.unsqueeze(0)
        predicts = self.task.predicts
        parts = self.in_units(output) if predicts == "values" else probabilities(output, predicts)
        classes = parts.argmax(-1).tolist()
        if predicts != "values" and not self.wide:
            parts = parts.amax(-1, keepdim=True)
        parts, targets = parts.tolist(), target.tolist()
        for sample in range(output.shape[1]):
            for step in range(output.shape[0]):
                wanted, number = targets[step][sample], classes[step][sample]
                # Behind the end of a shorter sample, or without a target.
                if math.isnan(wanted) if predicts == "values" else wanted < 0:
                    continue
                named = [wanted] if predicts == "values" else [self.names[int(wanted)], self.names[number]]
                place = [self.step + step] if self.every else []
                self.writer.writerow([self.name, self.first + sample, *place, *named, *parts[step][sample]])
        # A text continues in the same rows of the next batch.
        if self.task.carries_state:
            self.step += output.shape[0]
        else:
            self.first += output.shape[1]


if __name__ == "__main__":
    with entry.in_one_line():
        main()
