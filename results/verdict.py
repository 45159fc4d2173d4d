"""Is a published value reproduced? Computed from our values and the published record alone.

Let ``d`` be the mean of ours less the published value, signed so that positive is better. Its variance is a sum of

- ours: ``s^2 / n``, with ``s`` our sample standard deviation over ``n`` seeds;
- the published value's: ``s_p^2 / n_p`` for a mean with its deviation; that of a population is turned into a sample's
  by ``sqrt(n_p / (n_p - 1))``, and one that is not said to be either is taken as a sample's. A mean without a deviation
  over ``n_p`` seeds, and one run (single, best: ``n_p = 1``), are taken to spread as ours do: ``s^2 / n_p``. Where
  ``n_p`` is not known (quoted, unstated, ...) the term is left out, which errs towards *short*;
- the test set's, for accuracies: ``p (1 - p) / N``, binomial, with ``p`` the published accuracy and ``N`` samples. It
  is counted once: two models tested on the same samples share a part of their luck, and tested on different ones they
  would have twice this. Where each seed has a test set of its own, the deviations contain it already, and counting it
  again errs towards *reproduced*. For other metrics it is not known and left out.

``d`` is compared with ``t`` standard errors, ``t`` being the one-sided 5 % point of Student's distribution with the
degrees of freedom of Welch and Satterthwaite (a binomial has infinitely many). Below ``-t`` it is *short*, above ``t``
it *exceeds*, between them it is *reproduced*: indistinguishable.
The best of several runs is no mean; ours is compared with it as with one run, and our best is named beside it.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from longwave.results.published import METRICS, Published

REPRODUCED = "reproduced"
EXCEEDS = "exceeds"
SHORT = "short"
REDUCED_BUDGET = "reduced budget"
OTHER_PROTOCOL = "other protocol"
TOO_FEW_SEEDS = "too few seeds"
NOT_RUN = "not run"
NOT_FINISHED = "not finished"
NO_NUMBER = "no published number"

# A deviation of fewer says next to nothing.
MIN_SEEDS = 3


@dataclass(frozen=True)
class Verdict:
    """A verdict and its reasons.

    Args:
        name: one of the names above.
        metric: of the values.
        difference: ours less the published value; positive is better.
        standard_error: of the difference; None where nothing is known of it.
        reason: what differs, for *other protocol*; how much was done, for *reduced budget* and *too few seeds*.
        notes: what a reader should know besides.
    """

    name: str
    metric: str | None = None
    difference: float | None = None
    standard_error: float | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        name = self.name + (f" ({self.reason})" if self.reason else "")
        if self.difference is None:
            return name
        unit = " points" if self.metric == "accuracy" else ""
        if self.name == SHORT:
            errors = f" ({-self.difference / self.standard_error:.1f} standard errors)" if self.standard_error else ""
            return f"short by {amount(-self.difference, self.metric)}{unit}{errors}"
        error = f" ± {amount(self.standard_error, self.metric)}" if self.standard_error else ""
        return f"{name}: {amount(self.difference, self.metric, '+')}{error}{unit}"


def judge(
    ours: Sequence[float], published: Published | None, budget: float | None = None, differs: Sequence[str] = ()
) -> Verdict:
    """Compares our values with a published one.

    Args:
        ours: the metric on the test set, a value a seed; of finished runs only.
        published: what they aim at, or None.
        budget: the share of the published budget that they had; None where it is that budget, or not known.
        differs: what they do not have of the published protocol.
    """
    if not ours:
        return Verdict(NOT_RUN)
    if published is None or published.value is None:
        return Verdict(NO_NUMBER)
    if differs:
        return Verdict(OTHER_PROTOCOL, published.metric, reason=", ".join(differs))
    mean = statistics.fmean(ours)
    difference = mean - published.value if METRICS[published.metric] else published.value - mean
    terms = _variances(ours, published)
    error = math.sqrt(sum(v for v, _ in terms)) if terms else None
    threshold = _student(terms) * error if terms else 0.0
    found = {"metric": published.metric, "difference": difference, "standard_error": error}
    notes = _notes(ours, published)
    reduced = budget is not None and budget < 1
    share = f"{100 * budget:.3g} % of the steps" if reduced else ""
    if budget is not None and budget > 1:
        notes = (f"on {budget:.3g} times the steps", *notes)
    # Whoever falls short before the end has shown nothing; whoever arrives has shown it with less.
    if reduced and (difference < -threshold or (len(ours) < MIN_SEEDS and difference < 0)):
        return Verdict(REDUCED_BUDGET, **found, reason=share, notes=notes)
    if reduced:
        notes = (f"on {share}", *notes)
    if len(ours) < MIN_SEEDS:
        return Verdict(TOO_FEW_SEEDS, **found, reason=f"{len(ours)} of {MIN_SEEDS}", notes=notes)
    name = SHORT if difference < -threshold else EXCEEDS if difference > threshold else REPRODUCED
    return Verdict(name, **found, notes=notes)


def _variances(ours: Sequence[float], published: Published) -> list[tuple[float, float]]:
    """The terms of the variance of the difference, each with its degrees of freedom; those that are known."""
    n, n_p = len(ours), published.n
    terms = []
    theirs = published.deviation
    if theirs is not None and published.deviation_kind == "population" and n_p is not None:
        theirs *= math.sqrt(n_p / (n_p - 1))
    # One value of ours spreads as theirs do, where that is known.
    s, freedom = (statistics.stdev(ours), n - 1) if n > 1 else (theirs, (n_p or 0) - 1)
    # The published value's share where its own deviation is not known.
    borrowed = 0.0
    if published.kind in ("single", "best"):
        borrowed = 1.0
    elif published.kind == "mean" and n_p is not None:
        if theirs is None:
            borrowed = 1 / n_p
        else:
            terms.append((theirs**2 / n_p, n_p - 1))
    if s is not None and freedom > 0:
        terms.append((s**2 * (1 / n + borrowed), freedom))
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
    # Rounded down, which errs towards *reproduced*. At infinity, where stdtrit is not defined, it is the normal's.
    return float(stdtrit(math.floor(min(freedom, 1e9) + 1e-9), 0.95))


def _notes(ours: Sequence[float], published: Published) -> tuple[str, ...]:
    if published.kind == "single":
        return ("the published value is one run, taken to spread as ours do",)
    if published.kind == "best":
        unit = " %" if published.metric == "accuracy" else ""
        best = (max if METRICS[published.metric] else min)(ours)
        return (f"the published value is a best one; our best is {amount(best, published.metric)}{unit}",)
    if published.n is None:
        return ("how many runs are behind the published value is not known; its own error is left out",)
    return ()


def amount(value: float, metric: str, sign: str = "") -> str:
    """Accuracies in hundredths."""
    return f"{100 * value:{sign}.2f}" if metric == "accuracy" else f"{value:{sign}.3g}"
