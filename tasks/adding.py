"""The adding problem (Hochreiter & Schmidhuber 1997) in the variants of the papers' released code."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from longwave.schema import Annotated, Ge, Le, OneOf
from longwave.tasks.base import ArrayTask, Task, TaskConfig
from longwave.tasks.randomness import generator


@dataclass(frozen=True)
class Protocol:
    """Positions of the markers and sizes of the sets.

    Args:
        first: the first marker is in [0, first(T)).
        second: the second marker is in [second(T), T).
        shortest: least T.
        train: size of the training set; 0 is an endless stream.
        test: size of the test set.
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
class Config(TaskConfig):
    """Add the two marked numbers of a sequence.

    Args:
        T: length of the sequence; 2 or more (3 in ``scornn``, whose own is 200).
        protocol: positions of the markers and sizes of the sets. ``cornn`` (and LEM): one in each half, the first
            in [0, floor(T/2)), the second from there on; fresh batches, 1,000 test sequences. ``nnrnn``: the second
            from ceil(T/2) on. ``scornn``: the boundary is floor((T-1)/2); 100,000 training and 10,000 test sequences.
        train_samples: size of a training set drawn by the seed; 0 is an endless stream; null is the protocol's.
        test_samples: size of the test set, the same for every seed; null is the protocol's.
    """

    name: str = "adding"
    T: Annotated[int, Ge(2), Le(10_000_000)] = 100
    protocol: Annotated[str, OneOf(*PROTOCOLS)] = "cornn"
    train_samples: Annotated[int | None, Ge(0), Le(100_000_000)] = None
    test_samples: Annotated[int | None, Ge(1), Le(100_000_000)] = None

    def __post_init__(self):
        super().__post_init__()
        shortest = PROTOCOLS[self.protocol].shortest
        if shortest > self.T:
            raise ValueError(f"T={self.T}: must be at least {shortest} in the protocol {self.protocol}")

    def build(self, seed: int, data_root: Path) -> "Adding":
        protocol = PROTOCOLS[self.protocol]
        count = protocol.train if self.train_samples is None else self.train_samples
        return FixedAdding(self, seed, count) if count else Adding(self, seed)


class Adding(Task):
    """Channel 0 holds values U[0, 1), channel 1 two ones; the target is the sum of the two marked values.

    Training batches are an endless stream. Predicting 1 has an MSE of 2/12 = 0.1667. The released code draws a new test
    batch at every evaluation; here the test set is drawn once, from a seed of its own.
    """

    inputs, outputs = 2, 1
    objective = metric = "mse"
    higher_is_better = False
    monitor = "test"
    milestones = (0.01, 0.001)
    baseline = {"mse": 1 / 6}

    # One test set for all seeds, so that their errors compare.
    test_seed = 0
    # The hidden states of a test batch of 1000 at T = 5000 would take gigabytes.
    values_per_batch = 500_000

    def __init__(self, config: Config, seed: int):
        self.config, self.T, self.protocol, self.seed = config, config.T, PROTOCOLS[config.protocol], seed
        self.length = self.T
        self.test_samples = self.protocol.test if config.test_samples is None else config.test_samples
        self.evaluation_batch = max(1, min(1000, self.values_per_batch // self.T))
        markers = "halves" if config.protocol == "cornn" else config.protocol
        self.split_id = f"adding/{markers}/T={self.T}/test={self.test_samples}"

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
    """The adding problem with a training set that is drawn once and read in epochs."""

    def __init__(self, config: Config, seed: int, count: int):
        Adding.__init__(self, config, seed)
        x, target = self._draw(count, generator(seed, "adding train"))
        x_test, target_test = self._draw(self.test_samples, generator(self.test_seed, "adding test"))
        splits = {"train": torch.arange(count), "test": torch.arange(count, count + self.test_samples)}
        samples = torch.cat([x, x_test], dim=1).transpose(0, 1).contiguous()
        ArrayTask.__init__(self, samples, torch.cat([target, target_test]), splits, seed)
        self.split_id += f"/train={count}"
