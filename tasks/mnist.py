"""Sequential and permuted MNIST: an image is read pixel by pixel, 784 steps of one value."""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longwave.files import replacing
from longwave.schema import Annotated, Ge, Le, OneOf
from longwave.tasks.base import ArrayTask, TaskConfig, class_scores
from longwave.tasks.data import Source, fetch, locked, verify
from longwave.tasks.splits import hold_out, index_hash

# Each paper's permutation: its generator, the seed, and the first 16 digits of the sha256 of the 784 indices as
# little-endian int64. UnICORNN and LEM name the seed of expRNN, but draw from another generator.
PERMUTATIONS = {
    "cornn": ("torch", 12008, "f4113bc8ae789021"),
    "unicornn": ("torch", 5544, "88c77bc3e243c77b"),
    "lem": ("torch", 5544, "88c77bc3e243c77b"),
    "exprnn": ("numpy", 92916, "96240fe27409981c"),
    "scornn": ("numpy", 92916, "96240fe27409981c"),
    "nnrnn": ("numpy", 1234, "12a7f1b0d6e7008a"),
}

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
SOURCES = {
    "mnist": tuple(
        Source(f"MNIST/raw/{name}.gz", tuple(f"{mirror}{name}.gz" for mirror in MIRRORS), md5=md5)
        for name, md5 in (
            ("train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            ("train-labels-idx1-ubyte", "d53e105ee54ea40749a09fcbcd1e9432"),
            ("t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3"),
            ("t10k-labels-idx1-ubyte", "ec29112dd5afa0611ce80d1b7f02629c"),
        )
    )
}


# How many of the 60,000 training images each paper holds out.
PROTOCOLS = {
    # UnICORNN's and LEM's are the same.
    "cornn": 3000,
    "nnrnn": 10_000,
    # Sunnydreamrain/IndRNN_pytorch: pixelMNIST/, with 95 % of the images to train on.
    "indrnn": 3000,
    # Lezcano/expRNN: the best of the test accuracies after each epoch is reported.
    "exprnn": 0,
}

# Checksums of the unpacked files.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass
class Config(TaskConfig):
    """Classify a digit from its 784 pixels, row by row (``smnist``) or permuted (``psmnist``).

    Args:
        permutation: paper whose fixed permutation of the pixels is used; null is row by row.
        protocol: paper whose normalisation and split are used. ``cornn`` (also UnICORNN and LEM): pixels in [0, 1],
            3,000 of the 60,000 training images held out. ``nnrnn``: the same with 10,000. ``indrnn``: pixels in
            [-1, 1), 3,000. ``exprnn``: pixels in [0, 1], no validation set; weights are selected by the test set.
        validation: number of training images that are held out; null is the protocol's.
    """

    name: str = "smnist"
    permutation: Annotated[str | None, OneOf(*PERMUTATIONS, None)] = None
    protocol: Annotated[str, OneOf(*PROTOCOLS)] = "cornn"
    validation: Annotated[int | None, Ge(0), Le(59_999)] = None

    def __post_init__(self):
        super().__post_init__()
        if self.name == "smnist" and self.permutation is not None:
            raise ValueError(f"permutation={self.permutation}: smnist is not permuted; use task=psmnist")
        if self.name == "psmnist" and self.permutation is None:
            raise ValueError(f"permutation=null: must be one of {', '.join(PERMUTATIONS)}; or use task=smnist")

    def build(self, seed: int, data_root: Path) -> "SequentialMNIST":
        return SequentialMNIST(self, seed, data_root)

    @property
    def stepwise(self) -> bool:
        return self.permutation is None

    def prepare(self, sample: Any, statistics: dict[str, Any], start: int = 0) -> Tensor:
        """784 pixels from 0 to 255, in any shape and row by row; without a permutation any number of them."""
        pixels = torch.as_tensor(sample).flatten()
        if self.permutation is not None:
            if len(pixels) != 784:
                raise ValueError(f"must have 784 pixels, got {len(pixels)}")
            pixels = pixels[permutation(self.permutation)]
        return scaled(pixels, self.protocol).unsqueeze(1)


class SequentialMNIST(ArrayTask):
    """MNIST as a sequence (784, B, 1); cross-entropy on the ten digits, accuracy as the metric.

    The validation images are drawn from the 60,000 training images by the seed; the test set is the official 10,000.
    Without a validation set, the test set is evaluated during training, and in expRNN's protocol may select the
    weights.
    """

    inputs, outputs = 1, 10
    objective, metric = "cross_entropy", "accuracy"
    higher_is_better = True
    baseline = {"accuracy": 0.1135}
    scores = staticmethod(class_scores)

    def __init__(self, config: Config, seed: int, data_root: Path):
        pixels, labels = read(data_root)
        self.files = tuple(SHA256.items())
        order = "rows"
        if config.permutation is not None:
            # Three times as fast as by torch.
            pixels = torch.from_numpy(pixels.numpy().take(permutation(config.permutation).numpy(), axis=1))
            order = config.permutation
        self.protocol = config.protocol
        held_out = PROTOCOLS[config.protocol] if config.validation is None else config.validation
        splits = hold_out(60000, held_out, seed) | {"test": torch.arange(60000, 70000)}
        super().__init__(pixels, labels, splits, seed)
        if held_out == 0:
            self.monitor, self.selects_on_test = "test", config.protocol == "exprnn"
        whose = "" if config.protocol == "cornn" else f"/{config.protocol}"
        self.split_id = f"{config.name}/{order}{whose}/validation={held_out}/{index_hash(splits['validation'])}"

    def prepare(self, samples: Tensor) -> Tensor:
        return scaled(samples.T, self.protocol).unsqueeze(-1)


def scaled(pixels: Tensor, protocol: str) -> Tensor:
    x = pixels.to(torch.float32)
    return (x / 256 - 0.5) * 2 if protocol == "indrnn" else x / 255


def permutation(name: str) -> Tensor:
    """A paper's permutation, 784 indices: ``permuted[t] = image[permutation[t]]``.

    Raises:
        RuntimeError: if this version of the library draws other numbers than the paper's.
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


def read(root: Path) -> tuple[Tensor, Tensor]:
    """Pixels (70000, 784) as bytes and labels (70000,), the training images first; downloaded unless they are there.

    Raises:
        DataError: offline, or a wrong checksum.
    """
    raw = root / "MNIST" / "raw"
    for source in SOURCES["mnist"]:
        unpacked = (root / source.path).with_suffix("")
        if not unpacked.exists():
            with locked(unpacked, f"unpacks {unpacked.name}"), replacing(unpacked) as out:
                out.write(gzip.decompress(fetch(source, root).read_bytes()))
    for name, expected in SHA256.items():
        verify(raw / name, "sha256", expected)
    # Behind headers of 16 and 8 bytes.
    train, train_labels, test, test_labels = (
        torch.from_numpy(np.fromfile(raw / name, np.uint8, offset=16 if "images" in name else 8)) for name in SHA256
    )
    return torch.cat([train, test]).view(-1, 784), torch.cat([train_labels, test_labels]).long()
