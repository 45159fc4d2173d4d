"""Noise-padded CIFAR-10 (Chang et al., ICLR 2019): an image is read row by row, then comes noise up to step 1000."""

import hashlib
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets import CIFAR10

from longwave.tasks.base import ArrayTask
from longwave.tasks.data import Source, fetch, unpack
from longwave.tasks.randomness import generator
from longwave.tasks.splits import hold_out, index_hash

SOURCES = {
    "ncifar10": (
        Source(
            path="downloads/cifar-10-python.tar.gz",
            urls=("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
            md5="c58f30108f718f92721af3b95e74349a",
            size=170_498_071,
        ),
    )
}

# Name and md5 of the five files of 10,000 training images and of the file of test images.
TRAIN, TEST = CIFAR10.train_list, CIFAR10.test_list


@dataclass
class Config:
    """Classify an image of CIFAR-10 from its 32 rows, long after they have gone by.

    Args:
        noise: what follows the rows. ``constant``: one block of standard-normal noise, drawn once a run and the same
            for every sample, in training and test, as in the code of coRNN, UnICORNN and LEM. ``fresh``: noise of its
            own for every sample, anew in every epoch; a harder task.
        validation: how many of the 50,000 training images are held out: 3,000 in coRNN, 2,000 in UnICORNN and LEM.
    """

    name: str = "ncifar10"
    noise: str = "constant"
    validation: int = 3000

    def __post_init__(self):
        if self.noise not in ("constant", "fresh"):
            raise ValueError(f"noise={self.noise}: must be one of constant, fresh")
        if not 1 <= self.validation < 50000:
            raise ValueError(f"validation={self.validation}: must be from 1 to 49999")

    def build(self, seed: int, data_root: Path) -> "NoisyCIFAR10":
        return NoisyCIFAR10(self, seed, data_root)


class NoisyCIFAR10(ArrayTask):
    """CIFAR-10 as a sequence (1000, B, 96); cross-entropy on the ten classes, accuracy as the metric.

    Step t < 32 holds row t in [0, 1]: its 32 values of red, then of green, then of blue. The other 968 steps are noise.
    """

    inputs, outputs = 96, 10
    objective, metric = "cross_entropy", "accuracy"
    higher_is_better = True
    baseline = {"accuracy": 0.1}

    # 1000 samples would be 384 MB, before any model.
    evaluation_batch = 200
    T = 1000

    def __init__(self, config: Config, seed: int, data_root: Path):
        images, labels, self.files = read(data_root)
        rows = images.view(-1, 3, 32, 32).transpose(1, 2).reshape(-1, 32, 96)
        splits = hold_out(50000, config.validation, seed) | {"test": torch.arange(50000, 60000)}
        super().__init__(rows, labels, splits, seed)
        self.noise = None
        if config.noise == "constant":
            self.noise = torch.randn(self.T - 32, 1, 96, generator=generator(seed, "noise"))
        held_out = index_hash(splits["validation"])
        self.split_id = f"ncifar10/noise={config.noise}/validation={config.validation}/{held_out}"

    def prepare(self, samples: Tensor) -> Tensor:
        return samples.transpose(0, 1).to(torch.float32).div(255)

    def batch(self, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        rows, target = super().batch(step, batch_size)
        return self._padded(rows, "noise train", step), target

    def evaluation(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        for index, (rows, target) in enumerate(super().evaluation(split)):
            yield self._padded(rows, f"noise {split}", index), target

    def _padded(self, rows: Tensor, purpose: str, counter: int) -> Tensor:
        shape = self.T - 32, rows.shape[1], 96
        if self.noise is None:
            noise = torch.randn(shape, generator=generator(self.seed, purpose, counter))
        else:
            noise = self.noise.expand(shape)
        return torch.cat([rows, noise])

    def scores(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {
            "cross_entropy": F.cross_entropy(output, target, reduction="none"),
            "accuracy": (output.argmax(-1) == target).float(),
        }


def read(root: Path) -> tuple[Tensor, Tensor, tuple[tuple[str, str], ...]]:
    """Images (60000, 3072) as bytes, the training images first, their labels, and (name, sha256) of each file.

    Raises:
        OSError: offline, or a file that is not CIFAR-10's; the message says what to put where.
    """
    folder = root / CIFAR10.base_folder
    if not all((folder / name).exists() for name, _ in TRAIN + TEST):
        unpack(fetch(SOURCES["ncifar10"][0], root), [name for name, _ in TRAIN + TEST], folder)
    images, labels, files = [], [], []
    for name, expected in TRAIN + TEST:
        content = (folder / name).read_bytes()
        found = hashlib.md5(content).hexdigest()
        # Before anything of it is unpickled.
        if found != expected:
            raise OSError(f"{folder / name} has md5 {found}, not {expected}: delete it and run again to get it anew")
        batch = pickle.loads(content, encoding="bytes")
        images.append(np.asarray(batch[b"data"]))
        labels += batch[b"labels"]
        files.append((name, hashlib.sha256(content).hexdigest()))
    return torch.from_numpy(np.concatenate(images)), torch.tensor(labels), tuple(files)
