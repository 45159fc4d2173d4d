"""Splits by a permutation, as in the papers' code."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from longwave.tasks.randomness import generator


def train_test(
    indices: np.ndarray, test: float, rng: np.random.RandomState, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's ``train_test_split``: the first ceil(test * n) of a permutation are the test set.

    Args:
        indices: to be split.
        test: fraction.
        rng: drawn from once.
        labels: of all samples; the same fraction of each class is held out, up to rounding (not scikit-learn's
            ``stratify``, which no paper here uses).

    Returns:
        (train, test), in the order of the permutation.
    """
    count = math.ceil(test * len(indices))
    order = indices[rng.permutation(len(indices))]
    return _hold_out(order, count, labels)[::-1]


def by_seed(
    indices: np.ndarray, counts: Sequence[int], seed: int, labels: np.ndarray | None = None
) -> list[np.ndarray]:
    """Parts of the given sizes, and the rest, of a permutation drawn by the seed of the run.

    ``labels`` as in :func:`train_test`.
    """
    rest = indices[torch.randperm(len(indices), generator=generator(seed, "split")).numpy()]
    parts = []
    for count in counts:
        part, rest = _hold_out(rest, count, labels)
        parts.append(part)
    return [*parts, rest]


def _hold_out(order: np.ndarray, count: int, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if labels is None:
        return order[:count], order[count:]
    # Evenly spaced places in the order by class.
    places = ((np.arange(count) + 0.5) * len(order) / max(count, 1)).astype(int)
    held = np.zeros(len(order), bool)
    held[np.argsort(labels[order], kind="stable")[places]] = True
    return order[held], order[~held]


def fingerprint(splits: dict[str, np.ndarray]) -> str:
    """16 digits that identify the validation and test sets, whatever their order."""
    parts = [np.sort(splits[name]).astype("<i8").tobytes() for name in ("validation", "test")]
    return hashlib.sha256(b"/".join(parts)).hexdigest()[:16]


def hold_out(count: int, validation: int, seed: int) -> dict[str, Tensor]:
    """Splits the samples 0 ... count - 1 at random into "train" and "validation"."""
    shuffled = torch.randperm(count, generator=generator(seed, "split"))
    train, held_out = shuffled.split([count - validation, validation])
    return {"train": train, "validation": held_out}


def index_hash(indices: Tensor) -> str:
    """The first 16 digits of the sha256 of indices as little-endian int64."""
    return hashlib.sha256(indices.numpy().astype("<i8").tobytes()).hexdigest()[:16]
