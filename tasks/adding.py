"""The adding problem (Hochreiter & Schmidhuber 1997) in the variants of the papers' released code."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from longwave.tasks.base import ArrayTask, Task
from longwave.tasks.randomness import generator


@dataclass(frozen=True)
class Protocol:
    """Where the markers are, and how large the sets are.

    Args:
        first: of T, the end of the range [0, first) of the first marker.
        second: of T, the beginning of the range [second, T) of the second.
        shortest: the least T.
        train: samples of the training set that is drawn once; 0 is fresh batches for ever.
        test: samples of the test set.
    """

    first: Callable[[int], int]
    second: Callable[[int], int]
    shortest: int = 2
    train: int = 0
    test: int = 1000


PROTOCOLS = {
    # tk-rusch/coRNN: adding/utils.py; LEM's is the same.
    "cornn": Protocol(lambda T: T // 2, lambda T: T // 2),
    # KyleGoyette/nnRNN: adding_problem.py. Where T is odd, the middle is never marked.
    "nnrnn": Protocol(lambda T: T // 2, lambda T: -(-T // 2)),
    # SpartinStuff/scoRNN: scoRNN_adding.py
    "scornn": Protocol(lambda T: (T - 1) // 2, lambda T: (T - 1) // 2, shortest=3, train=100_000, test=10_000),
}


@dataclass
class Config:
    """Add the two marked numbers of a sequence.

    Args:
        T: length of the sequence; 2 or more (3 in ``scornn``, whose own is 200).
        protocol: where the markers may be, and how large the sets are. ``cornn`` (and LEM): one in each half, the first
            in [0, floor(T/2)), the second from there on; fresh batches, 1,000 test sequences. ``nnrnn``: the second
            from ceil(T/2) on. ``scornn``: the boundary is floor((T-1)/2); 100,000 training and 10,000 test sequences.
        train_samples: size of a training set that is drawn once, by the seed; 0 is fresh batches for ever; null is the
            protocol's.
        test_samples: size of the test set, which is the same for every seed; null is the protocol's.
    """

    name: str = "adding"
    T: int = 100
    protocol: str = "cornn"
    train_samples: int | None = None
    test_samples: int | None = None

    def __post_init__(self):
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol={self.protocol}: must be one of {', '.join(PROTOCOLS)}")
        shortest = PROTOCOLS[self.protocol].shortest
        if shortest > self.T:
            raise ValueError(f"T={self.T}: must be {shortest} or more (each half of the sequence holds one marker)")
        if self.train_samples is not None and self.train_samples < 0:
            raise ValueError(f"train_samples={self.train_samples}: must be 0 (fresh batches) or more")
        if self.test_samples is not None and self.test_samples < 1:
            raise ValueError(f"test_samples={self.test_samples}: must be 1 or more")

    def build(self, seed: int, data_root: Path) -> "Adding":
        protocol = PROTOCOLS[self.protocol]
        count = protocol.train if self.train_samples is None else self.train_samples
        return FixedAdding(self, seed, count) if count else Adding(self, seed)


class Adding(Task):
    """Channel 0 holds values U[0, 1), channel 1 two ones; the target is the sum of the two marked values.

    Training batches are fresh for ever. Predicting 1 always gives an MSE of 2/12 = 0.1667. Where the released code
    draws a new test batch at every evaluation, the test set here is drawn once, from a seed of its own.
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
        self.config, self.T, self.protocol, self.seed = config, config.T, PROTOCOLS[config.protocol], seed
        self.length = self.T
        self.test_samples = self.protocol.test if config.test_samples is None else config.test_samples
        self.evaluation_batch = max(1, min(1000, self.values_per_batch // self.T))
        markers = "halves" if config.protocol == "cornn" else config.protocol
        self.split_id = f"adding/{markers}/T={self.T}/test={self.test_samples}"

    def steps_per_epoch(self, batch_size: int) -> int | None:
        return None

    def at_length(self, length: int) -> "Adding":
        return replace(self.config, T=length).build(self.seed, Path())

    def batch(self, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        return self._draw(batch_size, generator(self.seed, "batch", step))

    def evaluation(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        x, target = self._draw(self.test_samples, generator(self.test_seed, f"adding {split}"))
        yield from zip(x.split(self.evaluation_batch, dim=1), target.split(self.evaluation_batch), strict=True)

    def scores(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"mse": (output.squeeze(-1) - target) ** 2}

    def _draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        columns = torch.arange(count)
        values = torch.rand(self.T, count, generator=rng)
        first = torch.randint(0, self.protocol.first(self.T), (count,), generator=rng)
        second = torch.randint(self.protocol.second(self.T), self.T, (count,), generator=rng)
        markers = torch.zeros(self.T, count)
        markers[first, columns] = 1
        markers[second, columns] = 1
        return torch.stack([values, markers], -1), values[first, columns] + values[second, columns]


class FixedAdding(ArrayTask, Adding):
    """The adding problem with a training set that is drawn once and gone through in epochs."""

    def __init__(self, config: Config, seed: int, count: int):
        Adding.__init__(self, config, seed)
        x, target = self._draw(count, generator(seed, "adding train"))
        x_test, target_test = self._draw(self.test_samples, generator(self.test_seed, "adding test"))
        splits = {"train": torch.arange(count), "test": torch.arange(count, count + self.test_samples)}
        samples = torch.cat([x, x_test], dim=1).transpose(0, 1).contiguous()
        ArrayTask.__init__(self, samples, torch.cat([target, target_test]), splits, seed)
        self.split_id += f"/train={count}"

    def prepare(self, samples: Tensor) -> Tensor:
        return samples.transpose(0, 1)
