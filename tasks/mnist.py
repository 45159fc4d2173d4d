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

from longwave.tasks.base import ArrayTask
from longwave.tasks.data import Source, fetch, write_atomic
from longwave.tasks.splits import hold_out, index_hash

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


@dataclass(frozen=True)
class Protocol:
    """What a paper makes of MNIST.

    Args:
        validation: how many of the 60,000 training images are held out.
        divisor: of the bytes of the pixels.
        centred: whether x becomes (x - 0.5) * 2 after that.
    """

    validation: int
    divisor: int = 255
    centred: bool = False


PROTOCOLS = {
    # UnICORNN's and LEM's are the same.
    "cornn": Protocol(validation=3000),
    "nnrnn": Protocol(validation=10_000),
    # Sunnydreamrain/IndRNN_pytorch: pixelMNIST/, with 95 % of the images to train on.
    "indrnn": Protocol(validation=3000, divisor=256, centred=True),
    # Lezcano/expRNN: the best of the test accuracies after each epoch is reported.
    "exprnn": Protocol(validation=0),
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
    """Classify a digit from its 784 pixels, row by row (``smnist``) or permuted (``psmnist``).

    Args:
        permutation: whose fixed permutation of the pixels; null is row by row.
        protocol: whose normalisation and split. ``cornn`` (also UnICORNN and LEM): pixels in [0, 1], 3,000 of the
            60,000 training images held out. ``nnrnn``: the same with 10,000. ``indrnn``: pixels in [-1, 1), 3,000.
            ``exprnn``: pixels in [0, 1], no validation set; weights are selected by the test set.
        validation: how many training images are held out; null is the protocol's, and 0 is not to hold out any.
    """

    name: str = "smnist"
    permutation: str | None = None
    protocol: str = "cornn"
    validation: int | None = None

    def __post_init__(self):
        if self.name == "smnist" and self.permutation is not None:
            raise ValueError(f"permutation={self.permutation}: smnist is not permuted; use task=psmnist")
        if self.name == "psmnist" and self.permutation not in PERMUTATIONS:
            raise ValueError(f"permutation={self.permutation}: must be one of {', '.join(PERMUTATIONS)}")
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol={self.protocol}: must be one of {', '.join(PROTOCOLS)}")
        if self.validation is not None and not 0 <= self.validation < 60000:
            raise ValueError(f"validation={self.validation}: must be from 0 to 59999")

    def build(self, seed: int, data_root: Path) -> "SequentialMNIST":
        return SequentialMNIST(self, seed, data_root)


class SequentialMNIST(ArrayTask):
    """MNIST as a sequence (784, B, 1); cross-entropy on the ten digits, accuracy as the metric.

    The validation images are drawn from the 60,000 training images by the seed; the test set is the official 10,000.
    Without a validation set, the test set is evaluated while training, and in expRNN's protocol may select the weights.
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
        self.protocol = PROTOCOLS[config.protocol]
        held_out = self.protocol.validation if config.validation is None else config.validation
        splits = hold_out(60000, held_out, seed) | {"test": torch.arange(60000, 70000)}
        super().__init__(pixels, torch.cat([train.targets, test.targets]), splits, seed)
        if held_out == 0:
            self.monitor, self.selects_on_test = "test", config.protocol == "exprnn"
        whose = "" if config.protocol == "cornn" else f"/{config.protocol}"
        self.split_id = f"{config.name}/{order}{whose}/validation={held_out}/{index_hash(splits['validation'])}"

    def prepare(self, samples: Tensor) -> Tensor:
        x = samples.T.to(torch.float32).div(self.protocol.divisor).unsqueeze(-1)
        return (x - 0.5) * 2 if self.protocol.centred else x

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
    found = index_hash(indices)
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
