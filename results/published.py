"""The papers' numbers: ``results/published/<paper>.yaml`` holds records by name, one per cell."""

import dataclasses
import functools
import math
import typing
from dataclasses import dataclass
from pathlib import Path

import yaml

from longwave.schema import Annotated, Ge, OneOf, Section

FOLDER = Path(__file__).parent / "published"

# Values quoted from memory, not read in a source. They have no key that a recipe could name.
UNVERIFIED = "unverified"

# Every metric, and whether more of it is better.
METRICS = {
    "accuracy": True,
    "mse": False,
    "rmse": False,
    # The mean of the RMSEs of batches.
    "batch_rmse": False,
    "mae": False,
    "r2": True,
    "balanced_accuracy": True,
    "macro_f1": True,
    "auroc": True,
    "log_loss": False,
    "cross_entropy": False,
    "bpc": False,
    "perplexity": False,
    "milliseconds": False,
}

KINDS = ("mean", "best", "single", "quoted", "unstated", "curve")
DEVIATIONS = ("sample", "population")
COSTS = ("hours", "seconds_per_1000_steps", "memory_mb")


@dataclass(frozen=True, kw_only=True)
class Published(Section):
    """One published value.

    Args:
        model: as in ``models/``, where it is there.
        task: as in ``tasks/``, where it is there; a data set of the UEA and UCR archives by its own name.
        size: of the model: units, units x layers, ...
        metric: one of ``METRICS``. Accuracies are fractions.
        value: of the metric on the test set; null where a paper shows a curve only.
        kind: mean (over seeds), best (of several runs, or of the epochs of one by their test score), single (one run),
            quoted (by another text than its source, which does not say which), unstated (the source does not say
            which), curve (no number).
        deviation: the standard deviation of a run, as published; null where there is none.
        deviation_kind: sample (divided by n - 1), population (by n), or null where that is not known.
        n: number of runs (seeds); null where that is not known.
        test_samples: size of the test set that all runs share, where known; null where each seed has its own split:
            then the deviation over the seeds is that of their test sets, too.
        protocol: split, permutation, normalisation, and which epoch is tested, as far as known.
        open: settings that the source does not state, where a recipe had to choose them; null for none.
        test: the test set that it is of, by its name in ``metrics`` of a record; another than ``test`` is a part of it.
        parameters: number of trained parameters, where known.
        cost: of one run: hours, seconds_per_1000_steps, memory_mb.
        trajectory: epoch to metric on the validation split, read from the log that was published with the code; of a
            curve, as it is quoted.
        source: where the value was read.
    """

    model: str
    task: str
    metric: Annotated[str, OneOf(*METRICS)]
    value: float | None
    kind: Annotated[str, OneOf(*KINDS)]
    protocol: str
    source: str
    size: str | int | None = None
    deviation: float | None = None
    deviation_kind: Annotated[str | None, OneOf(None, *DEVIATIONS)] = None
    n: Annotated[int | None, Ge(1)] = None
    open: str | None = None
    test: str = "test"
    test_samples: Annotated[int | None, Ge(1)] = None
    parameters: Annotated[int | None, Ge(1)] = None
    cost: dict | None = None
    trajectory: dict | None = None

    def __post_init__(self):
        for key, allowed in _TYPES.items():
            value = getattr(self, key)
            if not isinstance(value, allowed) or isinstance(value, bool):
                names = " or ".join("null" if t is type(None) else t.__name__ for t in allowed)
                raise ValueError(f"{key}={value}: must be {names}")
        for key in ("value", "deviation"):
            number = getattr(self, key)
            if number is not None and not (math.isfinite(number) and number >= 0):
                raise ValueError(f"{key}={number}: must be finite and not negative")
        super().__post_init__()
        if (self.value is None) != (self.kind == "curve"):
            raise ValueError(f"value={self.value}: a curve has no value, and nothing else is without")
        if self.metric == "accuracy" and self.value is not None and not 0 < self.value <= 1:
            raise ValueError(f"value={self.value}: an accuracy is a fraction")
        if self.deviation_kind is not None and self.deviation is None:
            raise ValueError(f"deviation_kind={self.deviation_kind}: there is no deviation")
        if self.deviation is not None and (self.kind != "mean" or self.n == 1):
            raise ValueError(f"deviation={self.deviation}: only a mean over several runs has one")
        if unknown := set(self.cost or ()) - set(COSTS):
            raise ValueError(f"cost={unknown.pop()}: must be one of {', '.join(COSTS)}")
        if not all(isinstance(epoch, int) for epoch in self.trajectory or ()):
            raise ValueError(f"trajectory={self.trajectory}: must be by epoch, a whole number")


def _allowed(hint) -> tuple[type, ...]:
    allowed = typing.get_args(hint) or (hint,)
    # A whole number is a good float.
    return (*allowed, int) if float in allowed else allowed


_TYPES = {key: _allowed(hint) for key, hint in typing.get_type_hints(Published).items()}


def papers() -> list[str]:
    """The papers that have a file."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != UNVERIFIED)


def load(paper: str) -> dict[str, Published]:
    """All records of one paper by cell; none where there is no such file. ``unverified`` has those quoted from memory.

    ValueError for a record with an unknown key, without one that it must have, or with a wrong value.
    """
    path = FOLDER / f"{paper}.yaml"
    return _records(path, path.read_text(encoding="utf-8")) if path.exists() else {}


def by_key() -> dict[str, Published]:
    """All records of all papers, by ``<paper>/<cell>``."""
    return {f"{paper}/{cell}": record for paper in papers() for cell, record in load(paper).items()}


def lookup(key: str | None) -> dict | None:
    """The record of :func:`get` as a run keeps it: with its key, without what is unknown; None for None."""
    if key is None:
        return None
    found = dataclasses.asdict(get(key))
    return {"key": key, **{name: value for name, value in found.items() if value is not None or name == "value"}}


def get(key: str) -> Published:
    """The record ``<paper>/<cell>``; ValueError, which names those that there are, where there is none of this key."""
    paper, _, cell = key.partition("/")
    cells = load(paper) if paper in papers() else {}
    if cell not in cells:
        known = [f"{paper}/{c}" for c in cells] or [f"{p}/..." for p in papers()]
        raise ValueError(
            f"published={key}: no such published value; published=null aims at none, and there are {', '.join(known)}"
        )
    return cells[cell]


@functools.cache
def parse(text: str) -> dict:
    """YAML, quickly; what is given back is shared, not to be changed."""
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


@functools.cache
def _records(path: Path, text: str) -> dict[str, Published]:
    declared = {field.name: field for field in dataclasses.fields(Published)}
    found = {}
    for cell, fields in parse(text).items():
        # An underscore marks what several records share.
        if cell[0] == "_":
            continue
        try:
            if unknown := [key for key in fields if key not in declared]:
                raise ValueError(f"{unknown[0]}: no such key; there are {', '.join(declared)}")
            for key, field in declared.items():
                if field.default is dataclasses.MISSING and key not in fields:
                    raise ValueError(f"{key} is missing")
            found[cell] = Published(**fields)
        except ValueError as error:
            raise ValueError(f"{path.stem}/{cell} in {path.parent.name}/{path.name}: {error}") from error
    return found
