"""What every task gives to the training loop."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from longwave import home
from longwave.tasks.randomness import generator

Batch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]
"""x, its targets, and the lengths where they count."""


READOUTS = ("model", "uniform", "kaiming")


def start_readout(readout: nn.Linear, how: str) -> None:
    """Initialises a model's readout as a task's protocol wants it.

    Args:
        how: ``model`` leaves it as it is; ``uniform``: weights U(-0.1, 0.1); ``kaiming``: N(0, 2 / inputs); the biases
            of both are 0.
    """
    if how == "uniform":
        nn.init.uniform_(readout.weight, -0.1, 0.1)
    elif how == "kaiming":
        nn.init.kaiming_normal_(readout.weight, nonlinearity="relu")
    if how != "model":
        nn.init.zeros_(readout.bias)


class Task:
    """A source of batches with its splits, loss and metric. Batches are time-major: x is (T, B, D).

    A subclass sets the attributes and gives ``batch``, ``evaluation`` and ``scores``.

    A batch is x and its targets, and where samples differ in length and what pads them is not to be read, the lengths
    (B,) too. Where the task has an ``embedding``, x is what that takes, such as tokens (T, B).
    """

    inputs: int
    """D, the number of input channels, or the width of the embedding."""
    outputs: int
    """The width of the model's output."""
    readout: str = "model"
    """How the model's readout is initialised; see :func:`start_readout`."""
    read: str = "last"
    """What the model is asked for: "last", an output (B, outputs), or "every", one at every step, (T, B, outputs)."""
    carries_state: bool = False
    """Whether a batch goes on where the one before it ended: then the model starts from the state it had there (without
    its gradient), and from zeros at the beginning of an epoch and of an evaluation."""
    objective: str
    """The score that is minimised in training (its mean over the batch is the loss)."""
    metric: str
    """The score that selects, stops and is compared with published values."""
    higher_is_better: bool
    monitor: str = "validation"
    """The split that is evaluated while training."""
    selects_on_test: bool = False
    """Whether the protocol selects the weights by the test set, as some papers do."""
    milestones: tuple[float, ...] = ()
    """Values of the metric on ``monitor``; the record says at which step each was first passed."""
    baseline: dict[str, float] = {}
    """Scores of the trivial prediction, for comparison."""
    length: int | None = None
    """The number of steps that a curriculum may shorten; None where the data have the length that they have."""
    split_id: str
    """What identifies the split and the order of the data: two runs compare only when it is equal."""
    files: tuple[tuple[str, str], ...] = ()
    """(name, sha256) of each data file that was read."""
    notes: dict = {}
    """What else the record says of the data."""

    def steps_per_epoch(self, batch_size: int) -> int | None:
        """The number of batches in an epoch; None where fresh batches are drawn for ever."""
        raise NotImplementedError

    def at_length(self, length: int) -> "Task":
        """The same task at another ``length``, for a curriculum; only where ``length`` is not None.

        Raises:
            ValueError: where the task cannot have that length; one line that names it.
        """
        raise NotImplementedError

    def embedding(self) -> nn.Module | None:
        """What turns x into (T, B, inputs), to be trained with the model; None where x is that already."""
        return None

    def batch(self, step: int, batch_size: int) -> Batch:
        """The training batch of step 0, 1, ...: x (T, B, D) and its targets. A function of (seed, step)."""
        raise NotImplementedError

    def evaluation(self, split: str) -> Iterator[Batch]:
        """The batches of ``split``, in a fixed order."""
        raise NotImplementedError

    def scores(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Every score of every prediction, (B,) or, where every step is read, (T, B), or of a batch as a whole, ().

        What is reported is the mean over all of a split: over its predictions, or over its batches.
        """
        raise NotImplementedError

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """What is reported, of the mean scores over a split: a root mean squared error is a root of a mean."""
        return means

    def better(self, a: float, b: float | None) -> bool:
        """Whether metric value ``a`` beats ``b`` (None is beaten by everything)."""
        return b is None or (a > b if self.higher_is_better else a < b)


class ArrayTask(Task):
    """A data set that fits in memory: one array of samples, sliced by an index permutation.

    The order of epoch e is a function of (seed, e). The last batch of an epoch may be smaller.

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
        """Turns stored samples (B, ...) into the model's input (T, B, D)."""
        raise NotImplementedError

    def steps_per_epoch(self, batch_size: int) -> int:
        return -(-len(self.splits["train"]) // batch_size)

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
