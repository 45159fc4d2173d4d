"""Interface between the tasks and the training loop."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longwave import home
from longwave.schema import Section
from longwave.tasks.randomness import generator

Batch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]
"""x, targets, and lengths where samples differ in length."""

READOUTS = ("model", "uniform", "kaiming")


def start_readout(readout: nn.Linear, how: str) -> None:
    """Initialises a model's readout as in a task's protocol.

    Args:
        how: ``model``: unchanged; ``uniform``: weights U(-0.1, 0.1); ``kaiming``: N(0, 2 / inputs). With the last two
            the biases are 0.
    """
    if how == "uniform":
        nn.init.uniform_(readout.weight, -0.1, 0.1)
    elif how == "kaiming":
        nn.init.kaiming_normal_(readout.weight, nonlinearity="relu")
    if how != "model":
        nn.init.zeros_(readout.bias)


class TaskConfig(Section):
    """Base class of the configurations of tasks: dataclasses whose fields are the settings.

    Attributes:
        stepwise: whether a step is prepared without those that follow it, as a stream needs it.
        time: whether the first channel is the time.
    """

    stepwise = True
    time = False

    def build(self, seed: int, data_root: Path) -> "Task":
        """The task; OSError where its data are missing or damaged."""
        raise NotImplementedError

    def prepare(self, sample: Any, statistics: dict[str, Any], start: int = 0) -> Tensor:
        """One raw sample as the model reads it, before any transform: (T, D), or tokens (T,).

        Args:
            sample: as the data set has it: numbers (T, D) or (T,), a text, ...
            statistics: :attr:`Task.statistics` of the training.
            start: index of its first step, where it is a part of a longer one.

        Raises:
            ValueError: for what is no such sample.
        """
        return numbers(sample)

    def in_units(self, output: Tensor, statistics: dict[str, Any]) -> Tensor:
        """An output of the network, (..., outputs), in the unit of the targets."""
        return output


def numbers(sample: Any, channels: int | None = None) -> Tensor:
    """An array (T, D) or (T,) as a float32 tensor (T, D); ValueError for another shape, or D where that is given."""
    x = torch.as_tensor(sample, dtype=torch.float32)
    if x.dim() not in (1, 2) or not x.numel():
        raise ValueError(f"must be (T, D) or (T,), got {tuple(x.shape)}")
    x = x.unsqueeze(1) if x.dim() == 1 else x
    if channels not in (None, x.shape[1]):
        raise ValueError(f"must have {channels} channels, got {x.shape[1]}")
    return x


class Task:
    """A source of batches with its splits, loss and metric. Batches are time-major: x is (T, B, D).

    A subclass sets the attributes and implements ``batch``, ``evaluation`` and ``scores``. A batch has the lengths (B,)
    where samples differ in length and padding is not to be read. A task with an ``embedding`` has tokens (T, B) as x.
    """

    inputs: int
    """Number of input channels D, or width of the embedding."""
    outputs: int
    """Width of the model's output."""
    readout: str = "model"
    """Initialisation of the model's readout; see :func:`start_readout`."""
    read: str = "last"
    """Steps that are read out: "last", an output (B, outputs), or "every", (T, B, outputs)."""
    carries_state: bool = False
    """Truncated BPTT: the hidden state is carried, detached, from batch to batch; epochs and evaluations start from
    zeros."""
    objective: str
    """Score whose mean over the batch is the training loss."""
    metric: str
    """Score for selection, early stopping and the comparison with published values."""
    higher_is_better: bool
    monitor: str = "validation"
    """Split that is evaluated during training."""
    tests: tuple[str, ...] = ("test",)
    """Splits that are tested at the end; the first gives the result."""
    selects_on_test: bool = False
    """True if the protocol selects the weights by the test set, as some papers do."""
    gathers: bool = False
    """True if there are ``metrics`` of all predictions of a split together."""
    milestones: tuple[float, ...] = ()
    """Values of the metric on ``monitor``; the record has the step at which each was first passed."""
    baseline: dict[str, float] = {}
    """Scores of the trivial prediction."""
    length: int | None = None
    """Length of the sequences, for a curriculum to shorten; None where the data fix it."""
    split_id: str
    """Identifies protocol and split: two runs with the same seed are comparable only if it is equal."""
    splits: dict[str, Tensor] = {}
    """Indices of the samples, by split; empty for generated data and texts."""
    targets: Tensor | None = None
    """Targets of all samples."""
    lengths: Tensor | None = None
    """Lengths of all samples."""
    classes: list[str] | None = None
    """Names of the classes; None where they are numbered."""
    statistics: dict[str, Any] = {}
    """What :meth:`TaskConfig.prepare` needs besides the settings, tensors and plain values; a checkpoint keeps it."""
    files: tuple[tuple[str, str], ...] = ()
    """(name, sha256) of each data file."""
    notes: dict = {}
    """Further facts on the data, for the record."""

    @property
    def predicts(self) -> str:
        """What an output is: "values", or with a cross-entropy as objective "classes" (logits) or "binary" (one)."""
        if self.objective != "cross_entropy":
            return "values"
        return "binary" if self.outputs == 1 else "classes"

    def steps_per_epoch(self, batch_size: int) -> int | None:
        """Number of batches in an epoch, of which the last may be smaller; None for an endless stream."""
        return -(-len(self.splits["train"]) // batch_size) if self.splits else None

    def at_length(self, length: int) -> "Task":
        """The same task at another ``length``, for a curriculum; only where ``length`` is not None.

        Raises:
            ValueError: for a length that the task cannot have.
        """
        raise NotImplementedError

    def embedding(self) -> nn.Module | None:
        """A module from tokens to (T, B, inputs), trained with the model; None where x is (T, B, inputs) already."""
        return None

    def batch(self, step: int, batch_size: int) -> Batch:
        """The training batch of step 0, 1, ...: x (T, B, D) and its targets. A function of (seed, step)."""
        raise NotImplementedError

    def evaluation(self, split: str) -> Iterator[Batch]:
        """The batches of ``split``, in a fixed order."""
        raise NotImplementedError

    def scores(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Scores of each prediction, (B,) or (T, B) where every step is read; or of the batch as a whole, ().

        Reported is the mean over a split: over its predictions, or over its batches.
        """
        raise NotImplementedError

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Reported scores, given the means over a split: a root mean squared error is the root of a mean."""
        return means

    def predictions(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`metrics` needs of a batch on the CPU, (n, ...) and (n,); only where the task ``gathers``."""
        raise NotImplementedError

    def metrics(self, predictions: Tensor, targets: Tensor) -> dict[str, float]:
        """Further scores of all predictions of a split, which are not means over them."""
        return {}

    def picture(self, predictions: Tensor, targets: Tensor, title: str) -> bytes | None:
        """A PNG of all predictions of the test set; None (the default) where there is nothing to see."""
        return None

    def better(self, a: float, b: float | None) -> bool:
        """True if metric value ``a`` is better than ``b``; everything is better than None."""
        return b is None or (a > b if self.higher_is_better else a < b)


def class_scores(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Scores of a classification: logits (B, classes) and classes (B,)."""
    return {
        "cross_entropy": F.cross_entropy(output, target, reduction="none"),
        "accuracy": (output.argmax(-1) == target).float(),
    }


def binary_scores(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Scores of a binary classification: one logit (B, 1) and 0.0 or 1.0, (B,)."""
    logit = output.squeeze(-1)
    return {
        "cross_entropy": F.binary_cross_entropy_with_logits(logit, target, reduction="none"),
        "accuracy": ((logit > 0) == (target > 0.5)).float(),
    }


class ArrayTask(Task):
    """A data set in memory: one array of samples, and indices of the splits.

    The order of epoch e is a function of (seed, e).

    Args:
        samples: (N, ...) inputs of all splits, in any storage type.
        targets: (N, ...).
        splits: indices into both, by name; "train" is the training set.
        seed: of the run.
    """

    evaluation_batch = 1000

    def __init__(self, samples: Tensor, targets: Tensor, splits: dict[str, Tensor], seed: int):
        self.samples, self.targets, self.splits, self.seed = samples, targets, splits, seed
        self._order: tuple[int, Tensor] | None = None

    def prepare(self, samples: Tensor) -> Tensor:
        """Turns stored samples (B, ...) into the model's input (T, B, D); they are (B, T, D) unless overridden."""
        return samples.transpose(0, 1)

    def batch(self, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        epoch, position = divmod(step, self.steps_per_epoch(batch_size))
        if self._order is None or self._order[0] != epoch:
            train = self.splits["train"]
            self._order = epoch, train[torch.randperm(len(train), generator=generator(self.seed, "order", epoch))]
        return self._take(self._order[1][position * batch_size : (position + 1) * batch_size])

    def evaluation(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in self.splits[split].split(self.evaluation_batch):
            yield self._take(indices)

    def _take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.prepare(self.samples[indices]), self.targets[indices]


def data_root(configured: str | None = None) -> Path:
    """Folder of the data sets: the configured one, else ``LONGWAVE_DATA``, else ``data``; relative to the home."""
    return home() / Path(configured or os.environ.get("LONGWAVE_DATA") or "data").expanduser()
