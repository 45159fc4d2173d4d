"""Data sets of the UEA, UCR and Monash archives, and a task on their series."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from longwave.schema import one_line
from longwave.tasks import formats
from longwave.tasks.base import ArrayTask, TaskConfig, class_scores, numbers
from longwave.tasks.checks import DataError
from longwave.tasks.data import Source, cached, code, digest, fetch_all, find, open_archive
from longwave.tasks.splits import fingerprint

PARTS = ("TRAIN", "TEST")


def zipped(name: str) -> tuple[Source, ...]:
    """Address of a data set of the UEA and UCR archives."""
    url = f"https://timeseriesclassification.com/aeon-toolkit/{name}.zip"
    return (Source(f"uea/{name}.zip", (url,)),)


def on_zenodo(name: str, *records: int, licence: str = "not stated") -> tuple[Source, ...]:
    """Addresses of a data set's two files in records on Zenodo, the newest last."""
    return tuple(
        Source(
            f"uea/{file}",
            tuple(f"https://zenodo.org/records/{record}/files/{file}" for record in records),
            licence=licence,
        )
        for file in (f"{name}_{part}.ts" for part in PARTS)
    )


@dataclass(frozen=True)
class Data:
    """A data set: the N series of TRAIN, then those of TEST.

    Args:
        values: (N, T, C), float32; zeros behind the end of a shorter series.
        lengths: (N,), steps.
        targets: (N,), classes as int64 or values as float32.
        classes: names of the classes, sorted; None in regression.
        train: number of series of TRAIN.
        original: (N,), index of the first series with equal values, its own where that is the first.
        files: (name, sha256) of each file.
    """

    values: Tensor
    lengths: Tensor
    targets: Tensor
    classes: list[str] | None
    train: int
    original: Tensor
    files: tuple[tuple[str, str], ...]


def load(root: Path, name: str, sources: Sequence[Source], fallback: Sequence[Source], missing: str = "refuse") -> Data:
    """A data set from ``<name>_TRAIN`` and ``<name>_TEST``, ``.ts`` or ``.arff``: files in ``root/uea``, or in a zip.

    Args:
        sources, fallback: as in :func:`longwave.tasks.data.fetch_all`.
        missing: "refuse" missing values, or "interpolate" them: linearly between neighbours in time, at the ends the
            nearest value.

    Raises:
        DataError: offline, or a malformed file.
    """
    paths = _local(root, name) or fetch_all(sources, fallback, root)
    files = tuple((path.name, digest(path)) for path in paths)
    key = {"files": files, "missing": missing, "code": code(__file__, formats.__file__)}
    kept = cached(root, name, key, lambda: _read(paths, name, missing))
    return Data(**kept, files=files)


def _local(root: Path, name: str) -> list[Path]:
    """Files that were put there by hand."""
    for folder in (root / "uea", root / "uea" / name):
        for suffix in (".ts", ".arff"):
            paths = [folder / f"{name}_{part}{suffix}" for part in PARTS]
            if all(path.exists() for path in paths):
                sources = [Source(str(path.relative_to(root)), ()) for path in paths]
                return fetch_all(sources, (), root)
    return []


def _read(paths: Sequence[Path], name: str, missing: str) -> dict:
    parts = [_read_part(paths, f"{name}_{part}") for part in PARTS]
    (train_name, train), (test_name, test) = parts
    classes = None if train.classes is None else sorted(set(train.labels))
    if classes is None:
        targets = torch.tensor([float(label) for label in train.labels + test.labels])
    else:
        number = {label: index for index, label in enumerate(classes)}
        for label, line in zip(test.labels, test.lines, strict=True):
            if label not in number:
                reason = f"no series of {train_name} has the label {one_line(label)!r}"
                raise DataError(test_name, f"line {line}", reason)
        targets = torch.tensor([number[label] for label in train.labels + test.labels])
    channels = train.series[0].shape[1]
    if test.series[0].shape[1] != channels:
        raise DataError(test_name, None, f"{test.series[0].shape[1]} channels, and {channels} in {train_name}")
    for file, part in parts:
        for index, line in enumerate(part.lines):
            part.series[index] = _fill(part.series[index], missing, file, f"line {line}")
    series = train.series + test.series
    first: dict[bytes, int] = {}
    return {
        "values": pad_sequence([torch.from_numpy(one) for one in series], batch_first=True),
        "lengths": torch.tensor([len(one) for one in series]),
        "targets": targets,
        "classes": classes,
        "train": len(train.series),
        "original": torch.tensor([first.setdefault(one.tobytes(), index) for index, one in enumerate(series)]),
    }


def _read_part(paths: Sequence[Path], stem: str) -> tuple[str, formats.Part]:
    for path in paths:
        if path.stem == stem:
            with open(path, "rb") as file:
                return str(path), formats.read(file, str(path))
    [archive] = paths
    with open_archive(archive) as (names, open_member):
        suffix = ".ts" if any(name.endswith(f"{stem}.ts") for name in names) else ".arff"
        member = find(archive, names, stem + suffix)
        with open_member(member) as file:
            return f"{archive}: {member}", formats.read(file, f"{archive}: {member}")


def _fill(values: np.ndarray, missing: str, file: str, place: str) -> np.ndarray:
    gaps = np.isnan(values)
    if not gaps.any():
        return values
    if missing == "refuse":
        count = int(gaps.sum())
        raise DataError(file, place, f"{count} missing values; use task=uea with task.missing=interpolate")
    steps = np.arange(len(values))
    for channel, gap in zip(values.T, gaps.T, strict=True):
        if gap.all():
            raise DataError(file, place, "a channel without any value")
        channel[gap] = np.interp(steps[gap], steps[~gap], channel[~gap])
    return values


class SeriesConfig(TaskConfig):
    """Base class of the configurations of tasks on series."""

    def prepare(self, sample: Any, statistics: dict[str, Any], start: int = 0) -> Tensor:
        """Steps (T, C), with the normalisation and the time of the training."""
        if "mean" not in statistics:
            x = numbers(sample)
        else:
            x = numbers(sample, len(statistics["mean"]))
            x = (x - statistics["mean"]) / statistics["deviation"]
        return with_time(x, statistics["steps"], start, statistics["clock"]) if "steps" in statistics else x


class SeriesTask(ArrayTask):
    """Classification (accuracy), or regression of one number (root mean squared error), of whole series.

    x is (T, B, C), or (T, B, 1 + C) with the time in [0, 1] first. Where series differ in length they are padded with
    zeros at the end, up to the longest of the batch, and the lengths come with the batch.

    Args:
        data: of all splits.
        splits: indices into it: train, test and validation; where the last is empty, the test set is monitored.
        protocol: begins ``split_id``, which ends with the fingerprint of the splits.
        seed: of the run.
        normalise: z-score every channel with mean and population deviation over all steps of the training series.
        time: whether the time is a channel.
        loss: of a regression: mse, or batch_rmse: sqrt(mean squared error + 1e-6) of the batch.
        metric: of a regression: rmse, or batch_rmse: its mean over batches of 512 weighted by their size, a little
            below the RMSE.
        clock: the time of step n of L: ends, n / (L - 1), or steps, n / L.
        drop_last: whether the batch at the end of an epoch that is not full is left out.
    """

    def __init__(
        self,
        data: Data,
        splits: dict[str, np.ndarray],
        protocol: str,
        seed: int,
        normalise: bool = False,
        time: bool = False,
        loss: str = "mse",
        metric: str = "rmse",
        clock: str = "ends",
        drop_last: bool = False,
    ):
        if not all(len(splits[part]) for part in ("train", "test")):
            files = " and ".join(name for name, _ in data.files)
            raise DataError(files, None, f"{len(data.values)} series, too few to train and test on")
        indices = {key: torch.from_numpy(part) for key, part in splits.items() if len(part)}
        values, self.statistics = data.values, {}
        if normalise:
            values, self.statistics = _normalised(data.values, data.lengths, indices["train"])
        if time:
            self.statistics |= {"steps": values.shape[1], "clock": clock}
        super().__init__(values, data.targets, indices, seed)
        self.split_id = f"{protocol}/{fingerprint(splits)}"
        self.lengths, self.time, self.files = data.lengths, time, data.files
        self.clock, self.drop_last = clock, drop_last
        self.ragged = bool((data.lengths != data.lengths[0]).any())
        self.classes = data.classes
        self.inputs = data.values.shape[2] + time
        self.monitor = "validation" if "validation" in indices else "test"
        # Bounds the memory for the hidden states.
        self.evaluation_batch = max(1, min(self.evaluation_batch, 500_000 // values.shape[1]))
        if metric == "batch_rmse":
            self.evaluation_batch = 512
        train, test = data.targets[indices["train"]], data.targets[indices["test"]]
        if data.classes is None:
            self.outputs, self.objective, self.metric, self.higher_is_better = 1, loss, metric, False
            self.baseline = {"rmse": (test - train.mean()).square().mean().sqrt().item()}
        else:
            self.outputs, self.objective, self.metric = len(data.classes), "cross_entropy", "accuracy"
            self.higher_is_better = True
            self.baseline = {"accuracy": (test == train.mode().values).float().mean().item()}
        copies = data.original != torch.arange(len(data.original))
        held = torch.isin(data.original[indices["test"]], data.original[indices["train"]])
        self.notes = {
            "series": {key: len(part) for key, part in indices.items()},
            "classes": data.classes,
            "exact_copies": int(copies.sum()),
            "test_series_with_a_copy_in_train": int(held.sum()),
        }

    def steps_per_epoch(self, batch_size: int) -> int:
        return len(self.splits["train"]) // batch_size if self.drop_last else super().steps_per_epoch(batch_size)

    def prepare(self, samples: Tensor) -> Tensor:
        x = samples.transpose(0, 1)
        return (with_time(x, self.samples.shape[1], clock=self.clock) if self.time else x).contiguous()

    def _take(self, indices: Tensor) -> tuple[Tensor, ...]:
        if not self.ragged:
            return super()._take(indices)
        lengths = self.lengths[indices]
        return self.prepare(self.samples[indices, : lengths.max()]), self.targets[indices], lengths

    def scores(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        if self.classes is not None:
            return class_scores(output, target)
        squared = (output.squeeze(-1) - target) ** 2
        scores = {"mse": squared}
        if "batch_rmse" in (self.objective, self.metric):
            # Equal for all samples of a batch, so that the mean over samples weighs the batches by their size.
            scores["batch_rmse"] = (squared.mean() + 1e-6).sqrt().expand(len(target))
        return scores

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        return means if self.classes is not None else means | {"rmse": math.sqrt(means["mse"])}


def with_time(x: Tensor, steps: int, start: int = 0, clock: str = "ends") -> Tensor:
    """x (T, ..., C) with the time of each of ``steps`` before its channels; see :class:`SeriesTask`."""
    times = torch.arange(start, start + len(x), dtype=x.dtype) / (max(steps - 1, 1) if clock == "ends" else steps)
    times = times.view(-1, *[1] * (x.dim() - 1))
    return torch.cat([times.expand(*x.shape[:-1], 1), x], dim=-1)


def _normalised(values: Tensor, lengths: Tensor, train: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The values with mean 0 and deviation 1 over the training series, and these two of each channel before."""
    there = torch.arange(values.shape[1]) < lengths[:, None]
    fitted = values[train][there[train]].double()  # (steps, C)
    mean, deviation = fitted.mean(0), fitted.std(0, correction=0)
    deviation[deviation == 0] = 1
    mean, deviation = mean.float(), deviation.float()
    scaled = (values - mean) / deviation
    return scaled.masked_fill_(~there[:, :, None], 0), {"mean": mean, "deviation": deviation}
