"""Is a published value reproduced? Computed from our values and the published record alone.

Let ``d`` be the mean of ours less the published value, signed so that positive is better. Its variance is a sum of

- ours: ``s^2 / n``, with ``s`` our sample standard deviation over ``n`` seeds;
- the published value's: ``s_p^2 / n_p`` for a mean with its deviation; that of a population is turned into a sample's
  by ``sqrt(n_p / (n_p - 1))``, and one of unknown kind is taken as a sample's. A mean without a deviation
  over ``n_p`` seeds is taken to spread as ours do: ``s^2 / n_p``. Where it is said to be a mean, and ``n_p`` is not
  known, the term is left out: the value counts as exact;
- the test set's, for accuracies: ``p (1 - p) / N``, binomial, with ``p`` the published accuracy and ``N`` samples. It
  is counted once: two models tested on the same samples share a part of their luck, and tested on different ones they
  would have twice this. Where each seed has a split of its own, ``s`` has it in it, and there is no further term. For
  other metrics it is not known and left out.

The verdict is that of two one-sided tests at 5 % (TOST): the 90 % interval of ``d``, from Student's distribution with
the degrees of freedom of Welch and Satterthwaite (a binomial has infinitely many), against the :func:`margin`.

    reproduced    the interval lies within the margin
    exceeds       it lies above 0, and not within the margin
    falls short   it lies below 0, and not within the margin
    undecided     anything else

A published single run, or the best of several, is no mean. It is compared with the interval in which 95 % of single
runs of ours would lie, or of the best of as many: mean + c s, with c from the joint distribution of ``n`` runs and
``k`` further ones, all from one normal distribution. The test set has no term here: our runs were tested on it. A best
of an unknown number counts as one run, and so does a value of which nobody says what it is (quoted, unstated): it may
be one, and what is not known must not make a verdict sharper.

Errors on generated sequences (:data:`GENERATED`) are compared by their logarithms: a mean is a geometric one, and ``d``
the logarithm of a ratio.
"""

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from longwave.results.published import METRICS, Published

REPRODUCED = "reproduced"
EXCEEDS = "exceeds"
SHORT = "falls short"
UNDECIDED = "undecided"
INSIDE = "inside"
OUTSIDE = "outside"
JUDGED = (REPRODUCED, EXCEEDS, SHORT, INSIDE, OUTSIDE, UNDECIDED)

REACHED_EARLY = "reached early"
REDUCED_BUDGET = "reduced budget"
OTHER_PROTOCOL = "other protocol"
TOO_FEW_SEEDS = "too few seeds"
NOT_RUN = "not run"
OUT_OF_REACH = "out of reach"
NOT_FINISHED = "not finished"
NO_NUMBER = "no published number"
# All of them, in the order of a summary.
ORDER = (*JUDGED, REACHED_EARLY, REDUCED_BUDGET, OTHER_PROTOCOL, TOO_FEW_SEEDS, NOT_FINISHED, NOT_RUN, OUT_OF_REACH,
         NO_NUMBER)  # fmt: skip

# A deviation of fewer is too uncertain.
MIN_SEEDS = 3
# Bound of the search for the number of seeds that would decide.
MOST_SEEDS = 1000

# Tasks with generated sequences: no data bound their error, which falls over orders of magnitude.
GENERATED = ("adding", "copying")


def margin(published: Published) -> float:
    """The largest difference from a published value that still reproduces it; of logarithms where :func:`by_ratio`.

    - A factor of 2 for squared errors on generated sequences: papers draw them on logarithmic axes.
    - A quarter of the published error rate for accuracies: a model that makes a quarter more errors is a worse one. At
      least 0.3 points, since tables print tenths and a change of machine or library moves that much; at most 1 point,
      a difference for which papers claim to be better.
    - 5 % of the published value for all other metrics: about one in the second digit that is printed.
    """
    if by_ratio(published.metric, published.task):
        return math.log(2)
    if published.metric == "accuracy":
        return min(max(0.25 * (1 - published.value), 0.003), 0.01)
    return 0.05 * published.value


def by_ratio(metric: str, task: str) -> bool:
    """True if values are compared by their ratio."""
    return metric == "mse" and task in GENERATED


@dataclass(frozen=True)
class Verdict:
    """A verdict and its reasons.

    Args:
        name: one of the names above.
        metric: of the values.
        difference: ours less the published value; positive is better. Of logarithms if ``ratio``.
        standard_error: of the difference; None where nothing is known of it.
        interval: of the difference at 90 %; for *inside* and *outside* that of our runs at 95 %, in the metric.
        margin: as :func:`margin`.
        ratio: whether values are compared by their ratio.
        reason: what differs, for *other protocol*; how much was done, for *reduced budget* and *too few seeds*; how
            many seeds would decide, for *undecided*; whose interval it is, for *inside* and *outside*.
        notes: further remarks.
    """

    name: str
    metric: str | None = None
    difference: float | None = None
    standard_error: float | None = None
    interval: tuple[float, float] | None = None
    margin: float | None = None
    ratio: bool = False
    reason: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.name in (INSIDE, OUTSIDE):
            ends = ", ".join(amount(end, self.metric) for end in self.interval)
            how = "" if self.name == INSIDE else f": {EXCEEDS if self.difference > 0 else SHORT} by {self._size()}"
            return f"{self.name} [{ends}], where 95 % of {self.reason} lie{how}"
        if self.name in (EXCEEDS, SHORT):
            return f"{self.name} by {self._size()}, {self._ends()}"
        name = self.name + (f" ({self.reason})" if self.reason else "")
        if self.difference is None:
            return name
        said = f"{name}: {self._signed(self.difference, '+')}{' times' if self.ratio else self._unit()}"
        if self.interval is None:
            return said
        bound = "a factor of 2" if self.ratio else f"± {amount(self.margin, self.metric)}"
        return f"{said}, {self._ends()} {'' if self.name == REPRODUCED else 'not '}within {bound}"

    def _unit(self) -> str:
        return " points" if self.metric == "accuracy" else ""

    def _signed(self, value: float, sign: str = "") -> str:
        # A ratio is that of ours to the published one: less is better.
        return f"{exp(-value):.3g}" if self.ratio else amount(value, self.metric, sign)

    def _size(self) -> str:
        size = abs(self.difference)
        return f"a factor of {exp(size):.3g}" if self.ratio else amount(size, self.metric) + self._unit()

    def _ends(self) -> str:
        ends = reversed(self.interval) if self.ratio else self.interval
        return f"[{', '.join(self._signed(end) for end in ends)}]"


def judge(
    ours: Sequence[float], published: Published | None, budget: float | None = None, differs: Sequence[str] = ()
) -> Verdict:
    """Compares our values with a published one.

    Args:
        ours: the metric on the test set, one value per seed; of finished runs only.
        published: the value they aim at, or None.
        budget: the share of the published budget that they had; None if that is the whole budget, or unknown.
        differs: settings in which they differ from the published protocol.
    """
    if not ours:
        return Verdict(NOT_RUN)
    if published is None or published.value is None:
        return Verdict(NO_NUMBER)
    if differs:
        return Verdict(OTHER_PROTOCOL, published.metric, reason=", ".join(differs))
    n, ratio = len(ours), by_ratio(published.metric, published.task)
    values, target = ours, published.value
    if ratio:
        *values, target = map(log, (*ours, target))
    mean = statistics.fmean(values)
    difference = mean - target if METRICS[published.metric] else target - mean
    found = {"metric": published.metric, "difference": difference, "ratio": ratio}
    if budget is not None and budget > 1:
        return Verdict(OTHER_PROTOCOL, published.metric, reason=f"{budget:.3g} times the steps")
    if budget is not None and budget < 1:
        # Whoever falls short before the end has shown nothing.
        name = REACHED_EARLY if difference >= 0 else REDUCED_BUDGET
        return Verdict(name, **found, reason=f"{100 * budget:.3g} % of the steps", notes=_notes(ours, published))
    notes = _notes(ours, published)
    if n < MIN_SEEDS:
        return Verdict(TOO_FEW_SEEDS, **found, reason=f"{n} of {MIN_SEEDS}", notes=notes)
    found["margin"] = bound = margin(published)
    spread = statistics.stdev(values)
    if published.kind != "mean":
        if not spread:
            return Verdict(UNDECIDED, **found, reason=f"{n} seeds that do not differ", notes=notes)
        k = (published.n or 1) if published.kind == "best" else 1
        low, high = (mean + c * spread for c in _range_of_best(n, k, METRICS[published.metric]))
        name = INSIDE if low <= target <= high else OUTSIDE
        if (high - low) / 2 > bound:
            notes = ("an interval wider than the margin: with seeds that vary so much, little is outside", *notes)
        return Verdict(
            name, **found, standard_error=spread * math.sqrt(1 + 1 / n), notes=notes,
            interval=(exp(low), exp(high)) if ratio else (low, high),
            reason="single runs" if k == 1 else f"the best of {k} runs",
        )  # fmt: skip
    error, radius = _error(spread, n, published)
    name, reason = _decided(difference, radius, bound), ""
    if name == UNDECIDED:
        needed = _seeds_needed(difference, spread, n, published, bound)
        reason = f"{n} seeds; " + (f"about {needed} would decide" if needed else f"{MOST_SEEDS:,} would not decide")
        _, left = _error(0.0, n, published)
        if not ratio and _decided(difference, left, bound) == UNDECIDED:
            size = f"± {amount(left, published.metric)}" + (" points" if published.metric == "accuracy" else "")
            notes = (*notes, f"any number of seeds leaves {size}: the test set is small, or the published runs are few")
    interval = (difference - radius, difference + radius)
    return Verdict(name, **found, standard_error=error, interval=interval, reason=reason, notes=notes)


def _decided(difference: float, radius: float, bound: float) -> str:
    # Rounding must not turn 5 % of a value into a little more.
    if abs(difference) + radius <= bound * (1 + 1e-9):
        return REPRODUCED
    return EXCEEDS if difference > radius else SHORT if difference < -radius else UNDECIDED


def _seeds_needed(difference: float, spread: float, n: int, published: Published, bound: float) -> int | None:
    """The least number of seeds that decides, were difference and deviation to stay as they are."""

    def decides(k: int) -> bool:
        return _decided(difference, _error(spread, k, published)[1], bound) != UNDECIDED

    # No bisection: with few published runs, more seeds leave fewer degrees of freedom, and the interval grows again.
    return next((k for k in range(n + 1, MOST_SEEDS + 1) if decides(k)), None)


def _error(spread: float, n: int, published: Published) -> tuple[float, float]:
    """Standard error of the difference, and half the length of its 90 % interval."""
    terms = _variances(spread, n, published)
    error = math.sqrt(sum(variance for variance, _ in terms))
    return error, _student(terms) * error


def _variances(spread: float, n: int, published: Published) -> list[tuple[float, float]]:
    """The terms of the variance of the difference, each with its degrees of freedom; those that are known."""
    terms, ours, n_p, theirs = [], 1 / n, published.n, published.deviation
    if n_p is not None:
        if theirs is None:
            ours += 1 / n_p
        else:
            if published.deviation_kind == "population":
                theirs *= math.sqrt(n_p / (n_p - 1))
            if by_ratio(published.metric, published.task):
                theirs /= max(published.value, sys.float_info.min)
            terms.append((theirs**2 / n_p, n_p - 1))
    terms.append((spread**2 * ours, n - 1))
    if published.metric == "accuracy" and published.test_samples is not None:
        p = published.value
        terms.append((p * (1 - p) / published.test_samples, math.inf))
    return terms


def _student(terms: list[tuple[float, float]]) -> float:
    """The one-sided 5 % point for a sum of variances (Welch and Satterthwaite)."""
    # Imported here, since most commands judge nothing.
    from scipy.special import stdtrit

    denominator = sum(v**2 / freedom for v, freedom in terms)
    freedom = sum(v for v, _ in terms) ** 2 / denominator if denominator else math.inf
    # Rounded down: a wider interval. At infinity, where stdtrit is not defined, it is the normal's.
    return float(stdtrit(math.floor(min(freedom, 1e9) + 1e-9), 0.95))


def _range_of_best(n: int, k: int, higher_is_better: bool) -> tuple[float, float]:
    """The c between which (the best of k further runs - mean) / s of n runs lies in 95 of 100 cases."""
    from scipy.special import stdtrit

    if k == 1:
        c = float(stdtrit(n - 1, 0.975)) * math.sqrt(1 + 1 / n)
        return -c, c
    low, high = (_quantile_of_highest(n, k, share) for share in (0.025, 0.975))
    return (low, high) if higher_is_better else (-high, -low)


def _quantile_of_highest(n: int, k: int, share: float) -> float:
    """The c below which (the highest of k further runs - mean) / s of n runs lies in ``share`` of all cases.

    Given mean and s of the n runs, the highest of k is below mean + c s with probability Phi(...)^k; the mean over both
    is taken at the middles of 500 parts of equal probability.
    """
    import numpy as np
    from scipy.special import chdtri, ndtr, ndtri

    middles = (np.arange(500) + 0.5) / 500
    mean = ndtri(middles) / math.sqrt(n)
    s = np.sqrt(chdtri(n - 1, middles) / (n - 1))
    low, high = -100.0, 100.0
    while high - low > 1e-6:
        c = (low + high) / 2
        below = float((ndtr(mean[:, None] + c * s) ** k).mean()) < share
        low, high = (c, high) if below else (low, c)
    return low


def _notes(ours: Sequence[float], published: Published) -> tuple[str, ...]:
    if published.kind == "single":
        return ("the published value is one run",)
    if published.kind == "best":
        unit = " %" if published.metric == "accuracy" else ""
        best = (max if METRICS[published.metric] else min)(ours)
        what = "a best one" if published.n == 1 else f"the best of {published.n or 'an unknown number of'} runs"
        return (f"the published value is {what}; our best is {amount(best, published.metric)}{unit}",)
    if published.kind != "mean":
        return ("whether the published value is one run or a mean is not known; it counts as one run",)
    if published.n is None:
        return ("how many runs are behind the published mean is not known; its own error is left out",)
    return ()


def log(error: float) -> float:
    """The logarithm, also of an error of 0: that of the smallest number there is."""
    return math.log(max(error, sys.float_info.min))


def exp(logarithm: float) -> float:
    """The number itself, or the largest there is."""
    return math.exp(min(logarithm, math.log(sys.float_info.max)))


def amount(value: float, metric: str, sign: str = "") -> str:
    """Accuracies in hundredths."""
    return f"{100 * value:{sign}.2f}" if metric == "accuracy" else f"{value:{sign}.3g}"
