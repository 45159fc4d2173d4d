"""EigenWorms (UEA archive): 259 worms, 17,984 steps of 6 channels, 5 classes; each paper splits them in its own way."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longwave.schema import LATER, Annotated, OneOf
from longwave.tasks import series
from longwave.tasks.series import SeriesConfig, SeriesTask
from longwave.tasks.splits import train_test
from longwave.tasks.uea import seventy_fifteen_fifteen

log = logging.getLogger("longwave")

SOURCES = {"eigenworms": series.zipped("EigenWorms")}
FALLBACKS = {"eigenworms": series.on_zenodo("EigenWorms", 11206196)}


@dataclass
class Config(SeriesConfig):
    """Classify a worm (wild type or one of four mutants) by how it moves.

    The archive's training and test sets are joined and split again. 23 of the 259 series are exact copies of others, so
    a test series may have a copy in the training set; the record counts them.

    Args:
        protocol: ``nrde`` (jambo6/neuralRDEs): 181/39/39 by scikit-learn from numpy's seed 0; z-score of every channel
            by the training series. ``lem`` (tk-rusch/LEM): 181/39/39 by scikit-learn with random_state 1234. ``dedup``
            (LinOSS, Log-NCDE): 236 series without the copies, 165/35/36 by the seed of the run; theirs is drawn by jax
            from seeds 2345, 3456, ...: the sizes are equal, the series are not. Only ``nrde`` normalises.
        stratified: whether validation and test set have the same fraction of each class; in no paper.
        time: adds the time in [0, 1] as the first channel (an option of LinOSS; a log-signature has its own).
        clock: the time of step n of L: ``ends``, n / (L - 1), or ``steps``, n / L (LinOSS, Log-NCDE).
        drop_last: whether the incomplete batch at the end of an epoch is dropped (LinOSS, Log-NCDE).
    """

    name: str = "eigenworms"
    protocol: Annotated[str, OneOf("nrde", "lem", "dedup")] = "nrde"
    stratified: bool = False
    time: bool = False
    clock: Annotated[str, OneOf("ends", "steps"), LATER] = "ends"
    drop_last: Annotated[bool, LATER] = False

    def build(self, seed: int, data_root: Path) -> SeriesTask:
        data = series.load(data_root, "EigenWorms", SOURCES["eigenworms"], FALLBACKS["eigenworms"])
        labels = data.targets.numpy() if self.stratified else None
        total = len(data.values)
        if self.protocol == "nrde":
            splits = nrde(total, labels)
        elif self.protocol == "lem":
            train, rest = train_test(np.arange(total), 0.3, np.random.RandomState(1234), labels)
            validation, test = train_test(rest, 0.5, np.random.RandomState(1234), labels)
            splits = {"train": train, "validation": validation, "test": test}
        else:
            first = np.unique(data.original.numpy())
            kept = seventy_fifteen_fifteen(len(first), seed, None if labels is None else labels[first])
            splits = {part: first[indices] for part, indices in kept.items()}
        protocol = f"eigenworms/{self.protocol}{'/stratified' if self.stratified else ''}"
        task = SeriesTask(
            data, splits, protocol, seed, normalise=self.protocol == "nrde", time=self.time,
            clock=self.clock, drop_last=self.drop_last,
        )  # fmt: skip
        log.info(
            "EigenWorms: %d of %d series are exact copies of others; %d of %d test series have one in the training set",
            task.notes["exact_copies"],
            total,
            task.notes["test_series_with_a_copy_in_train"],
            len(splits["test"]),
        )
        return task


def nrde(total: int, labels: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Split of jambo6/neuralRDEs: a test set of 15 %, then 0.15/0.85 of the rest for validation, by one generator."""
    rng = np.random.RandomState(0)
    rest, test = train_test(np.arange(total), 0.15, rng, labels)
    train, validation = train_test(rest, 0.15 / 0.85, rng, labels)
    return {"train": train, "validation": validation, "test": test}
