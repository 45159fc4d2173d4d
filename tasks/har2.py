"""HAR-2 (Kusupati et al., NeurIPS 2018): two groups of activities from 128 steps of a phone's motion sensors."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longwave.schema import Annotated, Gt, Lt, OneOf
from longwave.tasks import formats
from longwave.tasks.base import ArrayTask, TaskConfig, binary_scores, numbers
from longwave.tasks.checks import DataError, check, lines
from longwave.tasks.data import AGAIN, Source, cached, code, digest, fetch, unpack
from longwave.tasks.splits import hold_out, index_hash

SOURCES = {
    "har2": (
        Source(
            path="downloads/human+activity+recognition+using+smartphones.zip",
            urls=("https://archive.ics.uci.edu/static/public/240/human+activity+recognition+using+smartphones.zip",),
            sha256="c00b803081a5c797cd5e4b83700a9810b38d53d9d84e01917e090e1fdbc81031",
            size=61_000_000,
            licence="as its page at UCI says",
        ),
    )
}
# Of each part: nine signals, a window a line; labels; subjects.
NAMES = [
    f"{{part}}/Inertial Signals/{kind}_{axis}_{{part}}.txt"
    for kind in ("body_acc", "body_gyro", "total_acc")
    for axis in "xyz"
] + ["{part}/y_{part}.txt", "{part}/subject_{part}.txt"]

# Accelerations in g, within 16, and angular velocities in rad/s, within 35.
SIGNAL = 100
ACTIVITIES, PEOPLE = 6, 30

# Walking, downstairs, standing; the others are upstairs, sitting, laying (FastGRNN's paper, appendix B).
ONES = (1, 3, 5)


@dataclass
class Config(TaskConfig):
    """Distinguish {walking, walking downstairs, standing} (1) from {walking upstairs, sitting, laying} (0).

    The validation windows and the normalisation of coRNN's authors are not known.

    Args:
        validation: held out of the 7,352 training windows. ``random``: windows (80/20 in FastGRNN's tuning);
            ``subject``: all windows of some of the 21 subjects (as in EdgeML's loader); ``none``: nothing, as in
            FastGRNN's final training; the test set is then evaluated during training; ``test``: as ``none``, and
            ``training.selection=best`` selects by the test set, as EdgeML's trainer reports the best test epoch.
        fraction: of the windows or subjects, held out.
        normalisation: ``channel``: each of the 9 signals to zero mean and unit variance; ``feature``: each signal at
            each step (1,152 statistics); ``none``. The statistics are those of the training windows.
    """

    name: str = "har2"
    validation: Annotated[str, OneOf("random", "subject", "none", "test")] = "random"
    fraction: Annotated[float, Gt(0), Lt(1)] = 0.2
    normalisation: Annotated[str, OneOf("channel", "feature", "none")] = "channel"

    def build(self, seed: int, data_root: Path) -> "HAR2":
        return HAR2(self, seed, data_root)

    def prepare(self, sample: Any, statistics: dict[str, Any], start: int = 0) -> Tensor:
        x = numbers(sample, 9)
        if self.normalisation == "none":
            return x
        mean, std = statistics["mean"], statistics["std"]
        if self.normalisation == "feature":
            if start + len(x) > len(mean):
                raise ValueError(f"must have at most {len(mean)} steps where task.normalisation=feature")
            mean, std = mean[start : start + len(x)], std[start : start + len(x)]
        return (x - mean) / std


class HAR2(ArrayTask):
    """Windows (128, B, 9) of body acceleration, angular velocity, total acceleration, each x, y, z.

    Binary cross-entropy on one logit, accuracy as the metric. The test set is the official one of 2,947 windows.
    """

    inputs, outputs = 9, 1
    objective, metric = "cross_entropy", "accuracy"
    higher_is_better = True
    scores = staticmethod(binary_scores)

    def __init__(self, config: Config, seed: int, data_root: Path):
        windows, labels, subjects, train, self.files = read(data_root)
        if config.validation in ("none", "test"):
            self.monitor, self.selects_on_test = "test", config.validation == "test"
            splits = {"train": torch.arange(train), "validation": torch.arange(0)}
            held_out = "none"
        else:
            splits = self._split(config, subjects[:train], seed)
            held_out = f"{config.validation}={config.fraction}/{index_hash(splits['validation'])}"
        splits["test"] = torch.arange(train, len(windows))
        if config.normalisation != "none":
            seen = windows[splits["train"]]
            dim = (0, 1) if config.normalisation == "channel" else 0
            std = seen.std(dim, correction=0)
            std = std.where(std > 0, 1)
            self.statistics = {"mean": seen.mean(dim), "std": std}
            windows = (windows - self.statistics["mean"]) / std
        targets = torch.isin(labels, torch.tensor(ONES)).float()
        super().__init__(windows, targets, splits, seed)
        ones = targets[train:].mean().item()
        self.baseline = {"accuracy": max(ones, 1 - ones)}
        self.split_id = f"har2/{config.normalisation}/validation={held_out}"

    @staticmethod
    def _split(config: Config, subjects: Tensor, seed: int) -> dict[str, Tensor]:
        if config.validation == "random":
            return hold_out(len(subjects), round(config.fraction * len(subjects)), seed)
        people = subjects.unique()
        count = max(1, round(config.fraction * len(people)))
        held_out = torch.isin(subjects, people[hold_out(len(people), count, seed)["validation"]])
        return {"train": (~held_out).nonzero()[:, 0], "validation": held_out.nonzero()[:, 0]}


def read(root: Path) -> tuple[Tensor, Tensor, Tensor, int, tuple[tuple[str, str], ...]]:
    """Reads the data set, the training windows first.

    Returns:
        Windows (N, 128, 9); labels 1 to 6, (N,); subjects (N,); the number of training windows; (name, sha256) of each
        file.

    Raises:
        DataError: offline, or a malformed file.
    """
    names = {part: [name.format(part=part) for name in NAMES] for part in ("train", "test")}
    every = names["train"] + names["test"]
    folder = root / "UCI HAR Dataset"
    if not all((folder / name).exists() for name in every):
        # An archive in an archive.
        outer = fetch(SOURCES["har2"][0], root)
        inner = unpack(outer, ["UCI HAR Dataset.zip"], outer.parent / "har2") / "UCI HAR Dataset.zip"
        unpack(inner, every, folder)
    files = tuple((name, digest(folder / name)) for name in every)

    def build() -> dict[str, Tensor]:
        parts = {part: [_table(folder / name) for name in names[part]] for part in names}
        for part, tables in parts.items():
            rows = statistics.mode(map(len, tables))
            for name, table in zip(names[part], tables, strict=True):
                if len(table) != rows:
                    raise DataError(folder / name, None, f"{len(table)} lines, and {rows} in the other files; {AGAIN}")
        joined = [np.concatenate(pair) for pair in zip(*parts.values(), strict=True)]
        return {
            "windows": torch.from_numpy(np.stack(joined[:9], -1).astype(np.float32)),
            "labels": torch.from_numpy(joined[9][:, 0]).long(),
            "subjects": torch.from_numpy(joined[10][:, 0]).long(),
            "train": len(parts["train"][0]),
        }

    kept = cached(root, "har2", {"files": files, "code": code(formats.__file__)}, build)
    return kept["windows"], kept["labels"], kept["subjects"], kept["train"], files


def _table(path: Path) -> np.ndarray:
    """Numbers of a file, a row for each line: 128 of a signal, or a label or subject."""
    signal = path.parent.name == "Inertial Signals"
    rows = []
    with path.open("rb") as file:
        for number, line in lines(file, path):
            try:
                rows.append(formats.row(line, 128 if signal else 1))
            except ValueError as error:
                raise DataError(path, f"line {number}", f"{error}; {AGAIN}") from error
    table = np.stack(rows)
    if signal:
        check(table, path, lambda row, step: f"line {row + 1}, number {step + 1}", -SIGNAL, SIGNAL)
    else:
        classes = ACTIVITIES if path.name.startswith("y_") else PEOPLE
        check(table, path, lambda row, _: f"line {row + 1}", 1, classes, whole=True)
    return table
