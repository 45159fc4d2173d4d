"""Noise-padded CIFAR-10 (Chang et al., ICLR 2019): an image is read row by row, then comes noise up to step 1000."""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longwave.schema import Annotated, Ge, Le, OneOf
from longwave.tasks.base import ArrayTask, TaskConfig, class_scores
from longwave.tasks.data import Source, digest, fetch, unpack, verify
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

# md5 of the files, of 10,000 images each; the last one has the test images.
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


@dataclass
class Config(TaskConfig):
    """Classify an image of CIFAR-10 from its 32 rows, long after they were read.

    Args:
        noise: the steps after the rows. ``constant``: one block of standard-normal noise, drawn once a run and the same
            for every sample, in training and test, as in the code of coRNN, UnICORNN and LEM. ``fresh``: new noise for
            every sample and epoch; a harder task.
        validation: number of the 50,000 training images that are held out: 3,000 in coRNN, 2,000 in UnICORNN and LEM.
    """

    name: str = "ncifar10"
    noise: Annotated[str, OneOf("constant", "fresh")] = "constant"
    validation: Annotated[int, Ge(1), Le(49_999)] = 3000

    stepwise = False

    def build(self, seed: int, data_root: Path) -> "NoisyCIFAR10":
        return NoisyCIFAR10(self, seed, data_root)

    def prepare(self, sample: Any, statistics: dict[str, Any], start: int = 0) -> Tensor:
        """An image as CIFAR-10 has it: 3,072 values from 0 to 255, (3, 32, 32) in this or another shape.

        Where the noise is fresh, it is that of one sample, drawn by the seed 0.
        """
        image = torch.as_tensor(sample)
        if image.numel() != 3072:
            raise ValueError(f"must have 3072 values, got {image.numel()}")
        noise = statistics.get("noise")
        if noise is None:
            noise = torch.randn(NoisyCIFAR10.T - 32, 96, generator=generator(0, "noise"))
        return torch.cat([by_rows(image).to(torch.float32).div(255)[0], noise])


class NoisyCIFAR10(ArrayTask):
    """CIFAR-10 as a sequence (1000, B, 96); cross-entropy on the ten classes, accuracy as the metric.

    Step t < 32 holds row t in [0, 1]: its 32 values of red, then of green, then of blue. The other 968 steps are noise.
    """

    inputs, outputs = 96, 10
    objective, metric = "cross_entropy", "accuracy"
    higher_is_better = True
    baseline = {"accuracy": 0.1}
    scores = staticmethod(class_scores)

    # 1000 samples would be 384 MB, before any model.
    evaluation_batch = 200
    T = 1000

    def __init__(self, config: Config, seed: int, data_root: Path):
        images, labels, self.files = read(data_root)
        splits = hold_out(50000, config.validation, seed) | {"test": torch.arange(50000, 60000)}
        super().__init__(by_rows(images), labels, splits, seed)
        self.noise = None
        if config.noise == "constant":
            self.noise = torch.randn(self.T - 32, 1, 96, generator=generator(seed, "noise"))
            self.statistics = {"noise": self.noise[:, 0]}
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


def by_rows(images: Tensor) -> Tensor:
    """Images of red, green and blue planes as rows, (N, 32, 96)."""
    return images.reshape(-1, 3, 32, 32).transpose(1, 2).reshape(-1, 32, 96)


def read(root: Path) -> tuple[Tensor, Tensor, tuple[tuple[str, str], ...]]:
    """Images (60000, 3072) as bytes, the training images first; labels (60000,); (name, sha256) of each file.

    Raises:
        DataError: offline, or a wrong checksum.
    """
    folder = root / "cifar-10-batches-py"
    if not all((folder / name).exists() for name in MD5):
        unpack(fetch(SOURCES["ncifar10"][0], root), list(MD5), folder)
    images, labels, files = [], [], []
    for name, expected in MD5.items():
        # Unpickling runs code: only after the check.
        verify(folder / name, "md5", expected)
        batch = pickle.loads((folder / name).read_bytes(), encoding="bytes")
        images.append(np.asarray(batch[b"data"]))
        labels += batch[b"labels"]
        files.append((name, digest(folder / name)))
    return torch.from_numpy(np.concatenate(images)), torch.tensor(labels), tuple(files)
