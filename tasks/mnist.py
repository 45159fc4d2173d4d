"""Sequential and permuted MNIST: an image is read pixel by pixel, 784 steps of one value."""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets import MNIST

from tasks.base import ArrayTask
from tasks.data import Source, fetch, write_atomic
from tasks.randomness import generator

# Each paper's permutation: which generator draws it, from which seed, and the first 16 digits of the sha256 of the
# 784 indices as little-endian int64. UnICORNN and LEM name the seed of expRNN, but draw from another generator.
PERMUTATIONS = {
    "cornn": ("torch", 12008, "f4113bc8ae789021"),
    "unicornn": ("torch", 5544, "88c77bc3e243c77b"),
    "lem": ("torch", 5544, "88c77bc3e243c77b"),
    "exprnn": ("numpy", 92916, "96240fe27409981c"),
    "scornn": ("numpy", 92916, "96240fe27409981c"),
    "nnrnn": ("numpy", 1234, "12a7f1b0d6e7008a"),
}

SOURCES = {
    "mnist": tuple(
        Source(f"MNIST/raw/{name}", tuple(mirror + name for mirror in MNIST.mirrors), md5=md5)
        for name, md5 in MNIST.resources
    )
}

# Of the uncompressed files.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass
class Config:
    """Classify a digit from its 784 pixels in [0, 1], row by row (``smnist``) or permuted (``psmnist``).

    Args:
        permutation: whose fixed permutation of the pixels; null is row by row.
        validation: how many of the 60,000 training images are held out (3,000 in coRNN, UnICORNN and LEM).
    """

    name: str = "smnist"
    permutation: str | None = None
    validation: int = 3000

    def __post_init__(self):
        if self.name == "smnist" and self.permutation is not None:
            raise ValueError(f"permutation={self.permutation}: smnist is not permuted; use task=psmnist")
        if self.name == "psmnist" and self.permutation not in PERMUTATIONS:
            raise ValueError(f"permutation={self.permutation}: must be one of {', '.join(PERMUTATIONS)}")
        if not 1 <= self.validation < 60000:
            raise ValueError(f"validation={self.validation}: must be from 1 to 59999")

    def build(self, seed: int, data_root: Path) -> "SequentialMNIST":
        return SequentialMNIST(self, seed, data_root)


class SequentialMNIST(ArrayTask):
    """MNIST as a sequence (784, B, 1); cross-entropy on the ten digits, accuracy as the metric.

    The 60,000 training images are split 57,000 / 3,000 at random by the seed; the test set is the official 10,000.
    """

    inputs, outputs = 1, 10
    objective, metric = "cross_entropy", "accuracy"
    higher_is_better = True
    baseline = {"accuracy": 0.1135}

    def __init__(self, config: Config, seed: int, data_root: Path):
        self.files = read_checked(data_root)
        train, test = (MNIST(data_root, train=part) for part in (True, False))
        pixels = torch.cat([train.data, test.data]).flatten(1)  # (70000, 784), uint8
        order = "rows"
        if config.permutation is not None:
            pixels = pixels[:, permutation(config.permutation)]
            order = config.permutation
        shuffled = torch.randperm(60000, generator=generator(seed, "split"))
        train_part, validation_part = shuffled.split([60000 - config.validation, config.validation])
        splits = {"train": train_part, "validation": validation_part, "test": torch.arange(60000, 70000)}
        super().__init__(pixels, torch.cat([train.targets, test.targets]), splits, seed)
        held_out = hashlib.sha256(validation_part.numpy().astype("<i8").tobytes()).hexdigest()[:16]
        self.split_id = f"{config.name}/{order}/validation={config.validation}/{held_out}"

    def prepare(self, samples: Tensor) -> Tensor:
        return samples.T.to(torch.float32).div(255).unsqueeze(-1)

    def scores(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {
            "cross_entropy": F.cross_entropy(output, target, reduction="none"),
            "accuracy": (output.argmax(-1) == target).float(),
        }


def permutation(name: str) -> Tensor:
    """The 784 indices of a paper's permutation: ``permuted[t] = image[permutation[t]]``.

    Raises:
        RuntimeError: where this version of the library draws other numbers than the paper's did.
    """
    library, seed, expected = PERMUTATIONS[name]
    if library == "torch":
        indices = torch.randperm(784, generator=torch.Generator().manual_seed(seed))
    else:
        indices = torch.from_numpy(np.random.RandomState(seed).permutation(784))
    found = hashlib.sha256(indices.numpy().astype("<i8").tobytes()).hexdigest()[:16]
    if found != expected:
        raise RuntimeError(f"the permutation of {name} has hash {found}, not {expected}: this {library} draws others")
    return indices


def read_checked(root: Path) -> tuple[tuple[str, str], ...]:
    """Downloads MNIST into ``root`` unless it is there, and checks the four files.

    Returns:
        (name, sha256) of each file.

    Raises:
        OSError: offline, or a file that is not MNIST's; the message says what to put where.
    """
    raw = root / "MNIST" / "raw"
    for source in SOURCES["mnist"]:
        unpacked = (root / source.path).with_suffix("")
        if not unpacked.exists():
            write_atomic(unpacked, gzip.decompress(fetch(source, root).read_bytes()))
    for name, expected in SHA256.items():
        found = hashlib.sha256((raw / name).read_bytes()).hexdigest()
        if found != expected:
            raise OSError(f"{raw / name} has sha256 {found}, not {expected}: delete it and run again to download it")
    return tuple(SHA256.items())
