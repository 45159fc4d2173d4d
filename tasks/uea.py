"""Any data set of the UEA, UCR and Monash archives, by its name."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longwave.schema import LATER, Annotated, Ge, Le, Lt, OneOf, shown
from longwave.tasks import series
from longwave.tasks.checks import DataError
from longwave.tasks.series import SeriesConfig, SeriesTask
from longwave.tasks.splits import by_seed

# Records on Zenodo of the regression sets of the Monash, UEA and UCR archive (2020).
ZENODO = {
    "AppliancesEnergy": 18484626,
    "AustraliaRainfall": 18484479,
    "BIDMC32HR": 18485047,
    "BIDMC32RR": 18485020,
    "BIDMC32SpO2": 18484650,
    "BeijingPM10Quality": 18485104,
    "BeijingPM25Quality": 18484804,
    "BenzeneConcentration": 18484823,
    "Covid3Month": 18484843,
    "FloodModeling1": 18484910,
    "FloodModeling2": 18484871,
    "FloodModeling3": 18484859,
    "HouseholdPowerConsumption1": 18484579,
    "HouseholdPowerConsumption2": 18484955,
    "IEEEPPG": 18484606,
    "LiveFuelMoistureContent": 18484619,
    "NewsHeadlineSentiment": 18485036,
    "NewsTitleSentiment": 18484638,
}
# Sets of the archives that no task reads.
OTHERS = {"PPGDalia": "its channels have two sampling rates"}


@dataclass
class Config(SeriesConfig):
    """Classify the series of an archive's data set, or predict a number from each.

    Args:
        dataset: name in the archive, such as BasicMotions, JapaneseVowels, FordA or Covid3Month.
        protocol: ``official``: the archive's training and test sets; ``validation`` of the training set is held out by
            the seed. ``resplit``: both together, split 70/15/15 by the seed.
        validation: fraction of the official training set that is held out; 0 is none.
        stratified: whether the same fraction of each class is held out.
        normalise: z-score every channel by the training series.
        time: adds the time in [0, 1] as the first channel.
        clock: the time of step n of L: ``ends``, n / (L - 1), or ``steps``, n / L (LinOSS, Log-NCDE).
        drop_last: whether the incomplete batch at the end of an epoch is dropped (LinOSS, Log-NCDE).
        missing: ``refuse`` missing values, or ``interpolate`` them.
        zenodo: number of the record on Zenodo with the two ``.ts`` files, for a set without a zip file on
            timeseriesclassification.com; null is the known one.
    """

    name: str = "uea"
    dataset: str = "BasicMotions"
    protocol: Annotated[str, OneOf("official", "resplit")] = "official"
    validation: Annotated[float, Ge(0), Lt(1)] = 0.15
    stratified: bool = False
    normalise: bool = False
    time: bool = False
    missing: Annotated[str, OneOf("refuse", "interpolate")] = "refuse"
    zenodo: Annotated[int | None, Ge(1), Le(10**9)] = None
    clock: Annotated[str, OneOf("ends", "steps"), LATER] = "ends"
    drop_last: Annotated[bool, LATER] = False

    def __post_init__(self):
        super().__post_init__()
        # It becomes part of paths and addresses.
        if not self.dataset.replace("_", "").replace("-", "").isalnum():
            raise ValueError(f"dataset={shown(self.dataset)}: must be a name of the archives, such as BasicMotions")
        if self.dataset in OTHERS:
            raise ValueError(f"dataset={self.dataset}: cannot be read: {OTHERS[self.dataset]}")

    def build(self, seed: int, data_root: Path) -> SeriesTask:
        data = series.load(data_root, self.dataset, *sources(self.dataset, self.zenodo), missing=self.missing)
        total = len(data.values)
        if self.stratified and data.classes is None:
            raise DataError(self.dataset, None, "has no classes, which task.stratified=true needs")
        labels = data.targets.numpy() if self.stratified else None
        if self.protocol == "official":
            held = round(self.validation * data.train)
            validation, train = by_seed(np.arange(data.train), [held], seed, labels)
            splits = {"train": train, "validation": validation, "test": np.arange(data.train, total)}
        else:
            splits = seventy_fifteen_fifteen(total, seed, labels)
        protocol = f"uea/{self.dataset}/{self.protocol}{'/stratified' if self.stratified else ''}"
        return SeriesTask(
            data, splits, protocol, seed, self.normalise, self.time, clock=self.clock, drop_last=self.drop_last
        )


def sources(name: str, record: int | None):
    """(sources, fallback) of a data set."""
    record = record or ZENODO.get(name)
    if record is None:
        return series.zipped(name), ()
    return series.on_zenodo(name, record), series.zipped(name)


def seventy_fifteen_fifteen(total: int, seed: int, labels: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Training set, validation and test set of 70, 15 and 15 %, by the seed; bounds are rounded down, as LinOSS's."""
    counts = [int(total * 0.7), int(total * 0.85) - int(total * 0.7)]
    return dict(zip(("train", "validation", "test"), by_seed(np.arange(total), counts, seed, labels), strict=True))
