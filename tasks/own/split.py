"""Training, validation and test set of a user's own data."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from longwave.schema import counted, one_line
from longwave.tasks.checks import DataError
from longwave.tasks.own.samples import Samples
from longwave.tasks.randomness import generator
from longwave.tasks.splits import by_seed

if TYPE_CHECKING:
    from longwave.tasks.files import Config

PARTS = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
_PURPOSE = {"train": "train on", "validation": "select by", "test": "test on"}


def split(config: "Config", found: Samples, seed: int) -> tuple[dict[str, np.ndarray], str]:
    """Indices of the samples by split, and how they were split.

    Raises:
        DataError: where the file does not have what the split needs, or has too few samples.
    """
    file = found.file
    everything = np.arange(len(found))
    classes = None if found.classes is None or found.per_step else found.targets
    groups = None if found.groups is None else np.array(found.groups)
    natural = "group" if groups is not None else "random" if classes is None else "stratified"
    how = config.split
    if how == "auto":
        how = "file" if found.split is not None and config.folds is None else natural
    within = natural if how == "file" else how
    if how == "group" and groups is None:
        raise DataError(file, None, "task.split=group: has no groups; name their column by task.group_column")
    if how == "stratified" and classes is None:
        raise DataError(file, None, "task.split=stratified: needs one class a sample; use random")
    if how == "file" and found.split is None:
        raise DataError(file, None, "task.split=file: has no split; name its column by task.split_column")
    labels, groups = classes if within == "stratified" else None, groups if within == "group" else None
    name = how
    if how == "file":
        splits = _of_file(found)
        if "train" not in splits or "test" not in splits:
            raise DataError(file, None, f"its split has no {'train' if 'train' not in splits else 'test'} samples")
        rest, test = splits["train"], splits["test"]
        validation = splits.get("validation")
    else:
        validation = None
        if config.folds is not None:
            try:
                parts = folds(everything, config.folds, seed, labels, groups)
            except ValueError as error:
                raise DataError(file, None, f"task.folds={config.folds}: {error}") from error
            test = parts[config.fold]
            rest = np.sort(np.concatenate([part for index, part in enumerate(parts) if index != config.fold]))
            name = f"{how}/fold={config.fold}/{config.folds}"
        else:
            test, rest = held_out(everything, config.test, seed, labels, groups, "test groups")
    if validation is None and config.validation:
        validation, rest = held_out(rest, config.validation, seed, labels, groups, "validation groups")
    found_splits = {"train": rest, "validation": validation, "test": test}
    splits = {
        key: part for key, part in found_splits.items() if part is not None and (len(part) or key != "validation")
    }
    for key, part in splits.items():
        if not len(part):
            raise DataError(file, None, f"{counted(len(found), 'sample')}, too few: none is left to {_PURPOSE[key]}")
    if config.validation and "validation" not in splits:
        raise DataError(file, None, f"{counted(len(found), 'sample')}, too few: none is left to select by")
    return splits, name


def _of_file(found: Samples) -> dict[str, np.ndarray]:
    for index, text in enumerate(found.split):
        if text.strip().lower() not in PARTS:
            raise DataError(*found.place(index, None, "split"), f"{one_line(text)!r} is not train, validation or test")
    names = np.array([PARTS[text.strip().lower()] for text in found.split])
    return {part: np.flatnonzero(names == part) for part in dict.fromkeys(PARTS.values()) if (names == part).any()}


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
