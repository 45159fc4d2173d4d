"""Your own data: arrays, tables and archive files, with no code. docs/own-data.md shows how."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from longwave import home
from longwave.schema import NEUTRAL, REPEAT, Annotated, Ge, Gt, Le, Lt, OneOf, counted, one_line, shown
from longwave.tasks.base import ArrayTask, TaskConfig, numbers
from longwave.tasks.checks import DataError
from longwave.tasks.own import preparation, samples, scores
from longwave.tasks.own.content import content_of
from longwave.tasks.own.delimited import SEPARATORS
from longwave.tasks.own.preparation import Preparation
from longwave.tasks.own.reading import read
from longwave.tasks.own.samples import UNITS, Samples
from longwave.tasks.own.split import split
from longwave.tasks.splits import fingerprint

log = logging.getLogger("longwave")


@dataclass
class Config(TaskConfig):
    """Classify your own series, or predict numbers from them: one of each series, or one at every step.

    Args:
        path: a ``.npz``, CSV, Parquet, ``.ts`` or ``.arff`` file; or a folder of ``.npy`` arrays, of folders that are
            named by class, with one table per sample, or with one pair ``*_TRAIN`` and ``*_TEST``. Relative to the
            checkout, or for ``longwave train`` to the current folder; so are ``labels_path`` and ``test_path``.
        labels_path: a second table, one row per sample: target, group and split are read from it if it has them.
        test_path: a second file like ``path``, whose samples are the test set.
        content: sha256 of all of these files; null takes them as they are. It names the run; the paths do not.
        title: name of the data in tables and in W&B; null is the name of the file.
        layout: ``auto``, by suffix and columns; ``arrays``; ``long``, a table with one row per time step; ``wide``,
            a table with one row per sample; ``archive``; ``folder``, with one table per sample.
        sample_column: of a long table: which sample a row belongs to; null is ``sample``.
        time_column: null is ``time``, if there is one.
        target_column: null is ``target``; in a wide table without a column of that name, the first column.
        group_column: such as the subject; null is ``group``, if there is one.
        split_column: train, validation or test; null is ``split``, if there is one.
        channels: columns that are read as inputs; null is all others.
        per_step: of a table: whether the target is predicted at every step. Of arrays, the shape decides.
        predict: ``classes``, ``numbers``, or ``auto``: classes where the targets are text or whole numbers.
        sep: separator of columns: comma, semicolon, tab, bar or space; null is the most frequent one in the first line.
        decimal: point, or comma.
        comment: lines that begin with it are skipped; null is none.
        encoding: of text files.
        time_format: of times, as in Python's strptime; null is numbers or ISO 8601.
        time_unit: of times that are numbers: s, ms, us or ns.
        missing_marks: further marks of a missing value, such as [-999]; an empty cell, NaN, NA, NULL and ? always are.
        missing: treatment of missing values: ``refuse``; ``forward``, the last value before; ``linear``, on the line
            between neighbours in time; ``mask``, the channel's mean in the training set, and a further channel for each
            that says which values are there.
        missing_ends: treatment of those before the first value of a series, or for ``linear`` also after the last:
            ``refuse``, or ``mean``, the channel's mean in the training set.
        normalise: z-score every channel by the values of the training set.
        scale_target: train on the z-scores of numbers, by the training set; metrics are in the numbers' own unit.
        time: adds the time as the first channel, 1 at the end of the longest series of the training set.
        split: ``random``; ``stratified``, the same fraction of each class; ``group``, no group in two splits; ``file``,
            as the file or ``test_path`` has it; ``auto``, the first of file, group, stratified, random that fits.
        validation: fraction of the samples held out for validation, unless the file has a split.
        test: fraction of the samples held out for the test, unless the file has a split or ``folds`` is set.
        folds: number of parts of the samples, by ``split``; one is the test set. Null is none.
        fold: number of the test part, from 0.
        class_weights: ``balanced`` weights the loss of a sample by N / (classes x samples of its class), counted in the
            training set; ``none``.
        metric: for selection and stopping: accuracy, balanced_accuracy, macro_f1, auroc, log_loss; rmse, mae or r2.
            Null is accuracy, or rmse.
        memory: GB; a ``.npy`` array that is larger is read from the disk batch by batch.
    """

    name: str = "files"
    path: Annotated[str, NEUTRAL] = ""
    labels_path: Annotated[str | None, NEUTRAL] = None
    test_path: Annotated[str | None, NEUTRAL] = None
    content: str | None = None
    title: Annotated[str | None, NEUTRAL] = None
    layout: Annotated[str, OneOf("auto", "arrays", "long", "wide", "archive", "folder")] = "auto"
    sample_column: str | None = None
    time_column: str | None = None
    target_column: str | None = None
    group_column: str | None = None
    split_column: str | None = None
    channels: list[str] | None = None
    per_step: bool = False
    predict: Annotated[str, OneOf("auto", "classes", "numbers")] = "auto"
    sep: Annotated[str | None, OneOf(None, *SEPARATORS)] = None
    decimal: Annotated[str, OneOf("point", "comma")] = "point"
    comment: str | None = "#"
    encoding: str = "utf-8"
    time_format: str | None = None
    time_unit: Annotated[str, OneOf(*UNITS)] = "s"
    missing_marks: list[str] = field(default_factory=list)
    missing: Annotated[str, OneOf("refuse", "forward", "linear", "mask")] = "refuse"
    missing_ends: Annotated[str, OneOf("refuse", "mean")] = "refuse"
    normalise: bool = True
    scale_target: bool = True
    time: bool = False
    split: Annotated[str, OneOf("auto", "random", "stratified", "group", "file")] = "auto"
    validation: Annotated[float, Ge(0), Lt(1)] = 0.15
    test: Annotated[float, Gt(0), Lt(1)] = 0.15
    folds: Annotated[int | None, Ge(2), Le(1000)] = None
    fold: Annotated[int | None, Ge(0), REPEAT] = None
    class_weights: Annotated[str, OneOf("none", "balanced")] = "none"
    metric: Annotated[str | None, OneOf(None, *scores.OF_CLASSES, *scores.OF_NUMBERS)] = None
    memory: Annotated[float, Gt(0), Le(10**6), NEUTRAL] = 8.0

    def __post_init__(self):
        super().__post_init__()
        self._check_split()
        if not self.path:
            return
        if self.title is None:
            name = Path(self.path).name.removesuffix(".gz")
            self.title = name if self.resolved(self.path).is_dir() else name.rpartition(".")[0] or name
        paths = self.paths()
        gone = next((key for key, path in paths.items() if not path.exists()), None)
        if gone is not None:
            # Where it is known what was there, a finished run is still found.
            if self.content is None:
                text = shown(getattr(self, gone))
                raise ValueError(f"{gone}={text}: no such file or folder ({paths[gone]})")
            return
        try:
            found = content_of(paths)
        except OSError as error:
            raise ValueError(f"path={shown(self.path)}: {error}") from error
        if self.content not in (None, found):
            raise ValueError(f"content={shown(self.content)}: the data have changed; their sha256 is now {found}")
        self.content = found

    def _check_split(self) -> None:
        if self.folds is None:
            if self.fold is not None:
                raise ValueError(f"fold={self.fold}: is one of task.folds; set that too, such as task.folds=5")
            if self.validation + self.test >= 1:
                reason = f"leaves nothing to train on beside task.test={self.test}"
                raise ValueError(f"validation={self.validation}: {reason}")
            return
        if self.fold is None or self.fold >= self.folds:
            every = ",".join(map(str, range(self.folds)))
            reason = f"must be from 0 to {self.folds - 1}; -m task.fold={every} runs all"
            raise ValueError(f"fold={shown(self.fold)}: {reason}")
        if self.split == "file":
            raise ValueError("split=file: has no folds; omit task.folds, or set task.split to another")

    @property
    def stepwise(self) -> bool:
        # Filling forward looks back, interpolating looks ahead.
        return self.missing in ("refuse", "mask")

    def prepare(self, sample: Any, statistics: dict[str, Any], start: int = 0) -> Tensor:
        """Steps (T, D), NaN where a value is missing; with ``time``, where the file had times, a pair of these and of
        the times (T,), in seconds from the first step."""
        timed = self.time and statistics["timed"]
        if timed and not (isinstance(sample, tuple) and len(sample) == 2):
            raise ValueError("must be a pair: steps (T, D), and their times (T,) in seconds from the first")
        values, times = sample if timed else (sample, None)
        x = numbers(values, len(statistics["mean"])).numpy()
        times = np.arange(start, start + len(x)) if times is None else np.asarray(times, np.float64)
        if times.shape != x.shape[:1]:
            raise ValueError(f"must have a time for each of {len(x)} steps, got {times.shape}")
        if self.missing == "refuse" and np.isnan(x).any():
            raise ValueError("has missing values, and the training had none (task.missing=refuse)")
        mean, deviation = (statistics[key].numpy() for key in ("mean", "deviation"))
        how = Preparation(mean, deviation, statistics["longest"], self.missing, self.normalise, self.time)
        return how(x[None], np.array([len(x)]), times[None])[0]

    def in_units(self, output: Tensor, statistics: dict[str, Any]) -> Tensor:
        mean, deviation = statistics["unit"]
        return output * deviation + mean

    def paths(self) -> dict[str, Path]:
        """All files and folders of the data, by their keys."""
        keys = ("path", "labels_path", "test_path")
        return {key: self.resolved(getattr(self, key)) for key in keys if getattr(self, key)}

    @staticmethod
    def resolved(path: str) -> Path:
        """A path as the file system has it."""
        return home() / Path(path).expanduser()

    def build(self, seed: int, data_root: Path) -> "Files":
        if not self.path:
            raise DataError("task.path", None, "name your file, such as task.path=my.npz")
        found = read(self, data_root)
        files = tuple((path.name, content_of({"path": path})) for path in self.paths().values())
        kind = OnDisk if isinstance(found.x, samples.Mapped) else Files
        return kind(self, found, seed, files)


class Files(ArrayTask):
    """Samples in memory: x (T, B, D), padded with zeros up to the longest of the batch, whose lengths then follow.

    Attributes:
        preparation: from raw samples to inputs.
        unit: mean and deviation by which outputs are brought to the unit of the targets.
    """

    gathers = True

    def __init__(self, config: Config, found: Samples, seed: int, files: tuple[tuple[str, str], ...]):
        splits, how = split(config, found, seed)
        train = splits["train"]
        self._refuse_missing(config, found)
        self.preparation = preparation.fit(found, train, config.missing, config.normalise, config.time)
        self._refuse_ends(config, found, self.preparation)
        self.classes, self.per_step = found.classes, found.per_step
        super().__init__(*self._held(found), {k: torch.from_numpy(part) for k, part in splits.items()}, seed)
        self.lengths = torch.from_numpy(found.lengths)
        self.ragged = bool((self.lengths != self.lengths[0]).any())
        self.inputs, self.read = self.preparation.inputs, "every" if self.per_step else "last"
        self.outputs = len(self.classes) if self.classes is not None else 1
        self.monitor = "validation" if "validation" in splits else "test"
        # Bounds the memory for the hidden states.
        self.evaluation_batch = max(1, min(self.evaluation_batch, 500_000 // int(found.lengths.max())))
        self.files, self.title = files, config.title
        self.split_id = f"files/{config.content[:16]}/{how}/{fingerprint({'validation': [], **splits})}"
        self._set_scores(config, train, found)
        prepared = self.preparation
        self.statistics = {
            "mean": torch.from_numpy(prepared.mean),
            "deviation": torch.from_numpy(prepared.deviation),
            "longest": prepared.longest,
            "timed": found.times is not None,
            "unit": self.unit,
        }
        self.notes = {
            "samples": {key: len(part) for key, part in splits.items()},
            "classes": self.classes,
            "channels": found.channels[:100],
            "missing_values": self._missing,
            "split": how,
        }
        if found.groups is not None:
            groups = np.array(found.groups)
            self.notes["groups"] = {key: len(np.unique(groups[part])) for key, part in splits.items()}
        self._announce(how, found)

    @property
    def predicts(self) -> str:
        return "values" if self.classes is None else "classes"

    def _announce(self, how: str, found: Samples) -> None:
        steps = sorted({int(found.lengths.min()), int(found.lengths.max())})
        kind = f"{len(self.classes):,} classes" if self.classes else "numbers to predict"
        parts = ", ".join(f"{len(part):,} {name}" for name, part in self.splits.items())
        shape = f"{' to '.join(f'{n:,}' for n in steps)} steps, {counted(len(found.channels), 'channel')}"
        log.info("%s: %s of %s, %s; %s (%s)", self.title, counted(len(found), "sample"), shape, kind, parts, how)

    def _refuse_missing(self, config: Config, found: Samples) -> None:
        self._missing = 0
        first = None
        for indices in found.chunks():
            gaps = np.isnan(found.block(indices))
            gaps &= (np.arange(gaps.shape[1]) < found.lengths[indices][:, None])[..., None]
            self._missing += int(gaps.sum())
            if first is None and gaps.any():
                i, step, channel = (int(part[0]) for part in gaps.nonzero())
                first = int(indices[i]), step, channel
        if first is not None and config.missing == "refuse":
            reason = f"a missing value, one of {self._missing:,}; use task.missing=forward, linear or mask"
            raise DataError(*found.place(*first), reason)

    @staticmethod
    def _refuse_ends(config: Config, found: Samples, prepared: Preparation) -> None:
        if config.missing not in ("forward", "linear") or config.missing_ends == "mean":
            return
        for indices in found.chunks():
            left = np.isnan(prepared.filled(found.block(indices), found.block_times(indices)))
            left &= (np.arange(left.shape[1]) < found.lengths[indices][:, None])[..., None]
            if left.any():
                i, step, channel = (int(part[0]) for part in left.nonzero())
                what = "before it" if config.missing == "forward" else "on both sides"
                raise DataError(
                    *found.place(int(indices[i]), step, channel),
                    f"a missing value without one {what}, for task.missing={config.missing}; "
                    "use task.missing_ends=mean or task.missing=mask",
                )

    def _held(self, found: Samples) -> tuple[Tensor, Tensor]:
        """All inputs (N, T, inputs) and targets."""
        longest = int(found.lengths.max())
        x = torch.zeros(len(found), longest, self.preparation.inputs)
        for indices in found.chunks():
            raw, times = found.block(indices), found.block_times(indices)
            here = slice(int(indices[0]), int(indices[-1]) + 1), slice(raw.shape[1])
            x[here] = self.preparation(raw, found.lengths[indices], times)
        return x, self._targets(found, longest)

    def _targets(self, found: Samples, longest: int) -> Tensor:
        kind, empty = (torch.int64, -1) if self.classes is not None else (torch.float32, torch.nan)
        if not self.per_step:
            return torch.from_numpy(found.targets).to(kind)
        targets = torch.full((len(found), longest), empty, dtype=kind)
        for indices in found.chunks():
            block = torch.from_numpy(found.block_targets(indices)).to(kind)
            targets[int(indices[0]) : int(indices[-1]) + 1, : block.shape[1]] = block
        without = (targets < 0).all(1) if self.classes is not None else targets.isnan().all(1)
        if without.any():
            raise DataError(*found.place(int(without.int().argmax()), None, None), "a sample without any target")
        return targets

    def _set_scores(self, config: Config, train: np.ndarray, found: Samples) -> None:
        offered = scores.OF_CLASSES if self.classes is not None else scores.OF_NUMBERS
        self.metric = config.metric or next(iter(offered))
        file = found.file
        if self.metric not in offered:
            raise DataError(
                file, None, f"task.metric={self.metric}: must be one of {', '.join(offered)} for these targets"
            )
        self.higher_is_better = offered[self.metric]
        self.weights, self.unit = None, (0.0, 1.0)
        seen = self._there(self.targets[train])
        if self.classes is None:
            if config.class_weights != "none":
                raise DataError(file, None, "task.class_weights=balanced: there are no classes")
            if config.scale_target:
                deviation = seen.double().std(correction=0).item()
                self.unit = seen.double().mean().item(), deviation or 1.0
            self.objective = "mse"
        else:
            self._check_classes(config, found)
            counts = torch.bincount(seen, minlength=self.outputs).double()
            self.objective = "cross_entropy"
            if config.class_weights == "balanced":
                occurring = int((counts > 0).sum())
                self.weights = (counts.sum() / (occurring * counts.clamp(min=1))).float()
                self.objective = "weighted_cross_entropy"
        self.baseline = self._trivial(seen)

    def _check_classes(self, config: Config, found: Samples) -> None:
        file = found.file
        numeric = all(samples.number(name) is not None for name in self.classes)
        many = len(found) >= 10 and len(self.classes) > len(found) / 2
        if config.predict == "auto" and numeric and many and not self.per_step:
            reason = f"{len(self.classes)} different whole numbers as targets of {len(found):,} samples"
            raise DataError(file, None, f"{reason}; set task.predict=numbers, or classes if they are")
        if len(self.classes) < 2:
            raise DataError(file, None, f"one class, {one_line(self.classes[0])!r}; there must be two or more")
        counts = {key: torch.bincount(self._there(self.targets[part]), minlength=self.outputs)
                  for key, part in self.splits.items()}  # fmt: skip
        if (counts["train"] > 0).sum() < 2:
            raise DataError(file, None, "one class in the training set; use another task.split, or more samples")
        for key, count in counts.items():
            lacking = [self.classes[i] for i in (count == 0).nonzero()[:, 0].tolist()]
            if not lacking:
                continue
            names = one_line(", ".join(lacking), 100)
            if self.metric == "auroc" and key != "train":
                raise DataError(
                    file, None, f"task.metric=auroc: needs all classes, and the {key} set has none of {names}"
                )
            log.warning("%s: the %s set has no sample of %s", self.title, key, names)

    def _there(self, targets: Tensor) -> Tensor:
        """Targets, flat, without the steps that have none."""
        targets = targets.flatten()
        return targets[targets >= 0] if self.classes is not None else targets[~targets.isnan()]

    def _trivial(self, seen: Tensor) -> dict[str, float]:
        """Metrics on the test set of always predicting the classes' frequencies, or the mean, of the training set."""
        target = self._there(self.targets[self.splits["test"]])
        if not len(target) or not len(seen):
            return {}
        if self.classes is None:
            constant = torch.full_like(target, seen.double().mean().item())
        else:
            frequencies = torch.bincount(seen, minlength=self.outputs).double() / len(seen)
            constant = frequencies.expand(len(target), -1)
        return self.metrics(constant, target)

    def _take(self, indices: Tensor) -> tuple[Tensor, ...]:
        lengths = self.lengths[indices]
        longest = int(lengths.max())
        x = self._inputs(indices, longest)
        target = self.targets[indices]
        target = target[:, :longest].T.contiguous() if self.per_step else target
        return (x, target, lengths) if self.ragged else (x, target)

    def _inputs(self, indices: Tensor, longest: int) -> Tensor:
        return self.prepare(self.samples[indices, :longest])

    def prepare(self, samples: Tensor) -> Tensor:
        return samples.transpose(0, 1).contiguous()

    def scores(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        if self.classes is None:
            there = ~target.isnan()
            mean, deviation = self.unit
            # In units of the deviation; that of a target that is not scaled is 1.
            return {"mse": (output.squeeze(-1)[there] - (target[there] - mean) / deviation) ** 2}
        there = target >= 0
        output, target = output[there], target[there]
        loss = F.cross_entropy(output, target, reduction="none")
        found = {"cross_entropy": loss}
        if self.weights is not None:
            found["weighted_cross_entropy"] = self.weights.to(loss.device)[target] * loss
        return found

    def predictions(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self.classes is None:
            there = ~target.isnan()
            mean, deviation = self.unit
            return output.squeeze(-1)[there].double() * deviation + mean, target[there]
        there = target >= 0
        return output[there].double().softmax(-1), target[there]

    def metrics(self, predictions: Tensor, targets: Tensor) -> dict[str, float]:
        score = scores.of_numbers if self.classes is None else scores.of_classes
        return score(predictions.double().numpy(), targets.numpy())

    def picture(self, predictions: Tensor, targets: Tensor, title: str) -> bytes | None:
        if self.classes is None:
            return None
        return scores.confusion(predictions.numpy(), targets.numpy(), self.classes, title)


class OnDisk(Files):
    """Samples of a file that is larger than the memory for it: each batch is read and prepared when it is asked for."""

    def _held(self, found: Samples) -> tuple[Tensor, Tensor]:
        self.raw = found
        return torch.empty(0), self._targets(found, int(found.lengths.max()))

    def _inputs(self, indices: Tensor, longest: int) -> Tensor:
        chosen = indices.numpy()
        # From the start of the file to its end, whatever the order of the batch.
        order = np.argsort(chosen, kind="stable")
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        where = chosen[order]
        x = self.preparation(self.raw.block(where), self.raw.lengths[where], self.raw.block_times(where))
        return self.prepare(x[torch.from_numpy(back)])
