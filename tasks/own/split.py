"""Training, validation and test set of a user's own data."""

import numpy as np
import torch

from longwave.schema import counted
from longwave.tasks.randomness import generator
from longwave.tasks.splits import by_seed

PARTS = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


def held_out(
    indices: np.ndarray, fraction: float, seed: int, labels: np.ndarray | None, groups: np.ndarray | None, purpose: str
) -> tuple[np.ndarray, np.ndarray]:
    """(held out, rest) of some samples.

    Args:
        fraction: of the samples, or as near to it as whole groups come.
        labels: of all samples; the same fraction of each class is held out, up to rounding.
        groups: of all samples; none is on both sides.
        purpose: of the random numbers, where there are groups.
    """
    count = round(fraction * len(indices))
    if fraction and not count:
        count = 1
    if groups is None:
        held, rest = by_seed(indices, [count], seed, labels)
        return held, rest
    names = np.unique(groups[indices])
    taken = np.zeros(0, groups.dtype)
    size = 0
    for position in torch.randperm(len(names), generator=generator(seed, purpose)).tolist():
        more = int((groups[indices] == names[position]).sum())
        last = len(taken) == len(names) - 1
        if not last and count and (not size or abs(size + more - count) < abs(size - count)):
            taken, size = np.append(taken, names[position]), size + more
    held = np.isin(groups[indices], taken)
    return indices[held], indices[~held]


def folds(
    indices: np.ndarray, number: int, seed: int, labels: np.ndarray | None, groups: np.ndarray | None
) -> list[np.ndarray]:
    """The samples in ``number`` parts, as equal as classes or whole groups allow; arguments as in :func:`held_out`.

    Raises:
        ValueError: for fewer samples or groups than folds.
    """
    if groups is None:
        if len(indices) < number:
            raise ValueError(f"{counted(len(indices), 'sample')}, fewer than folds")
        order = indices[torch.randperm(len(indices), generator=generator(seed, "folds")).numpy()]
        if labels is not None:
            order = order[np.argsort(labels[order], kind="stable")]
        return [order[fold::number] for fold in range(number)]
    names, sizes = np.unique(groups[indices], return_counts=True)
    if len(names) < number:
        raise ValueError(f"{counted(len(names), 'group')}, fewer than folds")
    order = torch.randperm(len(names), generator=generator(seed, "folds")).numpy()
    # The largest first, each into the smallest fold.
    fold_of, filled = {}, [0] * number
    for position in order[np.argsort(-sizes[order], kind="stable")]:
        fold = int(np.argmin(filled))
        fold_of[names[position]] = fold
        filled[fold] += int(sizes[position])
    owner = np.array([fold_of[group] for group in groups[indices]])
    return [indices[owner == fold] for fold in range(number)]
