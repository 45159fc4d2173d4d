"""BIDMC: respiratory rate, heart rate or oxygen saturation of patients, from 32 s of PPG and ECG at 125 Hz."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from longwave.schema import Annotated, Gt, Lt, OneOf
from longwave.tasks import series
from longwave.tasks.checks import DataError
from longwave.tasks.eigenworms import nrde
from longwave.tasks.series import SeriesConfig, SeriesTask
from longwave.tasks.splits import by_seed, train_test
from longwave.tasks.uea import seventy_fifteen_fifteen

LICENCE = "as its record on Zenodo says; the recordings are PhysioNet's"
# The records that the papers used, then the newer ones.
RECORDS = {"RR": (4001463, 18485020), "HR": (4001456, 18485047), "SpO2": (4001464, 18484650)}
TARGETS = {f"bidmc_{target.lower()}": target for target in RECORDS}
SOURCES = {
    name: series.on_zenodo(f"BIDMC32{target}", *RECORDS[target], licence=LICENCE) for name, target in TARGETS.items()
}

LEM = (5565, 1192, 1192)  # train, test, validation


@dataclass
class Config(SeriesConfig):
    """Predict breaths per minute (``bidmc_rr``), beats per minute (``bidmc_hr``) or percent (``bidmc_spo2``).

    The 7,949 windows of 4,000 steps are of few patients and overlap: every protocol but ``official`` splits them at
    random, so that test windows have neighbours in the training set, and gives much lower errors.

    Args:
        protocol: ``nrde`` (jambo6/neuralRDEs): 5563/1193/1193 by scikit-learn from numpy's seed 0; z-score of every
            channel by the training series. ``lem`` (tk-rusch/LEM): 5565/1192/1192 by torch's random_split from seed
            123456. ``unicornn``: 70/15/15 by the seed of the run; the paper's is not known. ``s4``: 5564/1192/1193 by
            scikit-learn with random_state 0, then 1. ``official``: the archive's training and test sets, reported to be
            of different patients; ``validation`` of the training windows are held out by the seed. Only ``nrde``
            normalises.
        validation: fraction that ``official`` holds out at random, of patients that are also in the training set.
        loss: ``mse``, or ``batch_rmse``: sqrt(MSE + 1e-6) of each batch, as in nrde's training.
        metric: ``rmse``, or ``batch_rmse``: its mean over batches of 512 as in nrde's test, a little below the RMSE.
        time: adds the time in [0, 1] as the first channel (a log-signature has its own).
    """

    name: str = "bidmc_rr"
    protocol: Annotated[str, OneOf("nrde", "lem", "unicornn", "s4", "official")] = "nrde"
    validation: Annotated[float, Gt(0), Lt(1)] = 0.15
    loss: Annotated[str, OneOf("mse", "batch_rmse")] = "mse"
    metric: Annotated[str, OneOf("rmse", "batch_rmse")] = "rmse"
    time: bool = False

    def build(self, seed: int, data_root: Path) -> SeriesTask:
        data = series.load(data_root, f"BIDMC32{TARGETS[self.name]}", SOURCES[self.name], ())
        splits = split(self, len(data.values), data.train, seed)
        protocol, normalise = f"{self.name}/{self.protocol}", self.protocol == "nrde"
        return SeriesTask(data, splits, protocol, seed, normalise, self.time, self.loss, self.metric)


def split(config: Config, total: int, official: int, seed: int) -> dict[str, np.ndarray]:
    """Indices of train, validation and test into TRAIN followed by TEST; the first ``official`` are TRAIN."""
    everything = np.arange(total)
    if config.protocol == "nrde":
        return nrde(total)
    if config.protocol == "unicornn":
        return seventy_fifteen_fifteen(total, seed)
    if config.protocol == "s4":
        train, rest = train_test(everything, 0.3, np.random.RandomState(0))
        validation, test = train_test(rest, 0.5, np.random.RandomState(1))
    elif config.protocol == "lem":
        if total != sum(LEM):
            name = f"BIDMC32{TARGETS[config.name]}"
            raise DataError(name, None, f"{total} series, and task.protocol=lem splits {sum(LEM)}")
        train, rest = _random_split(everything, LEM[0])
        test, validation = _random_split(rest, LEM[1])
    else:
        held = round(config.validation * official)
        validation, train = by_seed(everything[:official], [held], seed)
        test = everything[official:]
    return {"train": train, "validation": validation, "test": test}


def _random_split(indices: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """torch.utils.data.random_split with the seed of LEM's code."""
    order = indices[torch.randperm(len(indices), generator=torch.Generator().manual_seed(123456)).numpy()]
    return order[:count], order[count:]
