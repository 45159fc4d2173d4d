"""Which rows of a table differ significantly: differences of their means, with confidence intervals over the seeds.

The interval of a difference is Welch's at 95 %, of that pair alone. The ranking allows for the number of pairs: two
rows differ significantly if Welch's test says so after Holm's correction over all pairs of the table, so that all ranks
of a table hold together at 95 %. A row has the ranks that these pairs leave it: all, if no pair differs significantly.
A row all of whose runs a target ended is never behind another: they might have reached a better value.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Standing:
    """One row among the others.

    Args:
        index: of its values, as they were given.
        first, last: the ranks that it may have, from 1.
        behind: the best row's mean less its own, positive where it is worse; 0 for the best.
        interval: of ``behind``; None for the best, where no deviation is known, and where a target ended the row.
    """

    index: int
    first: int
    last: int
    behind: float
    interval: tuple[float, float] | None


def compare(values: Sequence[Sequence[float]], higher_is_better: bool, ended: Sequence[bool] = ()) -> list[Standing]:
    """The rows, best mean first.

    Args:
        values: of each row, one value per seed; at least two.
        ended: whether a target ended all runs of a row; empty if of none.
    """
    sign = 1 if higher_is_better else -1
    means = [sign * statistics.fmean(row) for row in values]
    order = sorted(range(len(values)), key=lambda index: -means[index])
    tested = {}
    for better, worse in combinations(order, 2):
        found = _welch(values[better], values[worse], means[better] - means[worse])
        if found is not None and not (ended and ended[worse]):
            tested[better, worse] = found
    apart = _holm({pair: p for pair, (p, _) in tested.items()})
    return [
        Standing(
            index,
            first=1 + sum(worse == index for _, worse in apart),
            last=len(order) - sum(better == index for better, _ in apart),
            behind=means[order[0]] - means[index],
            interval=tested[order[0], index][1] if (order[0], index) in tested else None,
        )
        for index in order
    ]


def _welch(a: Sequence[float], b: Sequence[float], gap: float) -> tuple[float, tuple[float, float]] | None:
    """Two-sided p-value and interval of the difference ``gap`` of two means; None where neither sample deviates."""
    # Imported here, since most commands compare nothing.
    from scipy.special import stdtr, stdtrit

    terms = [(statistics.variance(row) / len(row), len(row) - 1) for row in (a, b)]
    variance = sum(term for term, _ in terms)
    if variance == 0:
        return None
    freedom = variance**2 / sum(term**2 / n for term, n in terms)
    error = math.sqrt(variance)
    radius = error * float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
    return 2 * float(stdtr(freedom, -abs(gap) / error)), (gap - radius, gap + radius)


def _holm(p_values: dict[tuple[int, int], float]) -> list[tuple[int, int]]:
    """The pairs that differ significantly."""
    found = sorted(p_values, key=p_values.get)
    for rank, pair in enumerate(found):
        if p_values[pair] > (1 - CONFIDENCE) / (len(found) - rank):
            return found[:rank]
    return found
