"""The copying memory problem (Hochreiter & Schmidhuber 1997), as in expRNN's released code."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longwave.schema import Annotated, Ge, Le, OneOf
from longwave.tasks.base import READOUTS, Task, TaskConfig, numbers
from longwave.tasks.randomness import generator


@dataclass
class Config(TaskConfig):
    """Repeat a few symbols long after they were read.

    Args:
        K: number of symbols to repeat.
        L: number of blanks between them and the marker.
        alphabet: number of different symbols.
        test_samples: size of the test set, the same for every seed.
        readout: initialisation of the readout: ``model`` (the model's own), ``uniform`` or ``kaiming``; ``kaiming``
            (N(0, 2 / hidden), biases 0) in expRNN's code.
    """

    name: str = "copying"
    K: Annotated[int, Ge(1), Le(100_000)] = 10
    L: Annotated[int, Ge(1), Le(10_000_000)] = 1000
    alphabet: Annotated[int, Ge(1), Le(10_000)] = 8
    test_samples: Annotated[int, Ge(1), Le(100_000_000)] = 1000
    readout: Annotated[str, OneOf(*READOUTS)] = "model"

    def build(self, seed: int, data_root: Path) -> "Copying":
        return Copying(self, seed)

    def prepare(self, sample: Any, statistics: dict[str, Any], start: int = 0) -> Tensor:
        """Symbols (T,), of which 0 is the blank and ``alphabet + 1`` the marker, or as they are read, (T, D)."""
        x = torch.as_tensor(sample)
        if x.dim() != 1:
            return numbers(x)
        if x.is_floating_point() or not len(x) or not 0 <= x.min() <= x.max() <= self.alphabet + 1:
            raise ValueError(f"symbols must be whole numbers from 0 to {self.alphabet + 1}")
        return F.one_hot(x.long(), self.alphabet + 2).float()


class Copying(Task):
    """One-hot inputs (L + 2K, B, alphabet + 2): K symbols, L blanks, the marker, K - 1 blanks.

    The target is the blank up to the marker, then the K symbols in their order. The loss is the cross-entropy over all
    steps; ``accuracy`` is that of the last K. Training batches are an endless stream. Predicting the blank and then
    guessing has a cross-entropy of K log(alphabet) / (L + 2K).
    """

    read = "every"
    objective = metric = "cross_entropy"
    higher_is_better = False
    monitor = "test"
    milestones = (0.01, 0.001)

    # One test set for all seeds, so that their errors compare.
    test_seed = 0
    # Bounds the memory for the hidden states of an evaluation batch.
    steps_per_evaluation_batch = 200_000

    def __init__(self, config: Config, seed: int):
        self.config, self.seed = config, seed
        self.K, self.L, self.alphabet = config.K, config.L, config.alphabet
        self.length = self.L
        self.test_samples, self.readout = config.test_samples, config.readout
        # 0 is the blank, then come the symbols, then the marker.
        self.inputs, self.outputs = self.alphabet + 2, self.alphabet + 1
        guessing = self.K * math.log(self.alphabet) / (self.L + 2 * self.K)
        self.baseline = {"cross_entropy": guessing, "accuracy": 1 / self.alphabet}
        self.split_id = f"copying/K={self.K}/L={self.L}/alphabet={self.alphabet}/test={self.test_samples}"

    def at_length(self, length: int) -> "Copying":
        return replace(self.config, L=length).build(self.seed, Path())

    def batch(self, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        return self._draw(batch_size, generator(self.seed, "batch", step))

    def evaluation(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        size = max(1, self.steps_per_evaluation_batch // (self.L + 2 * self.K))
        rng = generator(self.test_seed, f"copying {split}")
        for first in range(0, self.test_samples, size):
            yield self._draw(min(size, self.test_samples - first), rng)

    def scores(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        nats = F.cross_entropy(output.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        return {"cross_entropy": nats, "accuracy": (output[-self.K :].argmax(-1) == target[-self.K :]).float()}

    def _draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        symbols = torch.randint(1, self.alphabet + 1, (self.K, count), generator=rng)
        marker = torch.full((1, count), self.alphabet + 1)
        blanks = torch.zeros(self.L + self.K, count, dtype=torch.long)
        read = torch.cat([symbols, blanks[: self.L], marker, blanks[: self.K - 1]])
        return F.one_hot(read, self.inputs).float(), torch.cat([blanks, symbols])
