"""The adding problem (Hochreiter & Schmidhuber 1997), as in coRNN's and LEM's released code."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tasks.base import Task
from tasks.randomness import generator


@dataclass
class Config:
    """Add the two marked numbers of a sequence.

    Args:
        T: length of the sequence; 2 or more.
        test_samples: size of the test set, which is the same for every seed.
    """

    name: str = "adding"
    T: int = 100
    test_samples: int = 1000

    def __post_init__(self):
        if self.T < 2:
            raise ValueError(f"T={self.T}: must be 2 or more (each half of the sequence holds one marker)")
        if self.test_samples < 1:
            raise ValueError(f"test_samples={self.test_samples}: must be 1 or more")

    def build(self, seed: int, data_root: Path) -> "Adding":
        return Adding(self, seed)


class Adding(Task):
    """Channel 0 holds values U[0, 1), channel 1 two ones; the target is the sum of the two marked values.

    The first marker is uniform on [0, floor(T/2)), the second on [floor(T/2), T) (coRNN: adding/utils.py). Training
    batches are fresh for ever. Predicting 1 always gives an MSE of 2/12 = 0.1667. Where the released code draws a new
    test batch at every evaluation, the test set here is drawn once, from a seed of its own.
    """

    inputs, outputs = 2, 1
    objective = metric = "mse"
    higher_is_better = False
    monitor = "test"
    milestones = (0.01, 0.001)
    baseline = {"mse": 1 / 6}

    # The test set is one for all seeds, so that their errors compare.
    test_seed = 0
    # A test batch of 1000 at T = 5000 would need gigabytes for the states of some models.
    values_per_batch = 500_000

    def __init__(self, config: Config, seed: int):
        self.T, self.test_samples, self.seed = config.T, config.test_samples, seed
        self.split_id = f"adding/halves/T={self.T}/test={self.test_samples}"

    def steps_per_epoch(self, batch_size: int) -> None:
        return None

    def batch(self, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        return self._draw(batch_size, generator(self.seed, "batch", step))

    def evaluation(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        x, target = self._draw(self.test_samples, generator(self.test_seed, f"adding {split}"))
        size = max(1, min(1000, self.values_per_batch // self.T))
        yield from zip(x.split(size, dim=1), target.split(size), strict=True)

    def scores(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"mse": (output.squeeze(-1) - target) ** 2}

    def _draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        half, columns = self.T // 2, torch.arange(count)
        values = torch.rand(self.T, count, generator=rng)
        first = torch.randint(0, half, (count,), generator=rng)
        second = torch.randint(half, self.T, (count,), generator=rng)
        markers = torch.zeros(self.T, count)
        markers[first, columns] = 1
        markers[second, columns] = 1
        return torch.stack([values, markers], -1), values[first, columns] + values[second, columns]
