"""Cases computed by hand, and the error rates by simulation."""

import ast
import inspect
import math

import numpy as np
import pytest
from scipy.stats import binom

from longwave.results import verdict
from longwave.results.published import Published
from longwave.results.verdict import judge, margin


def published(value, kind="mean", metric="accuracy", **more) -> Published:
    fields = {"model": "m", "task": "t", "protocol": "p", "source": "s"} | more
    return Published(metric=metric, value=value, kind=kind, **fields)


def around(mean: float, spread: float) -> list[float]:
    """Three values with this mean and this sample standard deviation."""
    return [mean - spread, mean, mean + spread]


def test_not_run_and_no_number():
    assert str(judge([], published(0.9))) == "not run"
    assert str(judge([], None)) == "not run"
    assert str(judge([0.9], None)) == "no published number"
    assert str(judge([0.01], published(None, "curve", "mse"))) == "no published number"


@pytest.mark.parametrize(
    ("record", "size"),
    [
        # A quarter of 2.7 %; of 0.6 % and of 12 %, where a bound holds.
        (published(0.973), 0.00675),
        (published(0.994), 0.003),
        (published(0.88), 0.01),
        (published(1.06, metric="rmse"), 0.053),
        (published(1.40, metric="bpc"), 0.07),
        (published(0.064, metric="mse", task="ppg_dalia"), 0.0032),
        (published(5.3e-5, metric="mse", task="adding"), math.log(2)),
    ],
)
def test_the_margin(record, size):
    assert margin(record) == pytest.approx(size)


# Two means: sqrt(0.002^2 / 3 + 0.003^2 / 3) = 0.0020817; v1 = 0.004 / 3 and v2 = 0.009 / 3 have
# (v1 + v2)^2 / (v1^2 / 2 + v2^2 / 2) = 2 * 13^2 / (4^2 + 9^2) = 3.48 degrees of freedom, hence 3 and t = 2.353: the
# interval reaches 0.0048988 to each side. A quarter of 4 % is the margin, 0.01.
TARGET = published(0.96, deviation=0.003, deviation_kind="sample", n=3)
RADIUS = 2.353363 * math.sqrt(0.000013 / 3)


def test_two_means_with_deviations():
    same = judge(around(0.96, 0.002), TARGET)
    assert (same.name, same.difference) == ("reproduced", pytest.approx(0, abs=1e-12))
    assert same.standard_error == pytest.approx(0.0020817, rel=1e-4)
    assert same.interval == pytest.approx((-RADIUS, RADIUS), rel=1e-5)
    assert str(judge(around(0.963, 0.002), TARGET)) == "reproduced: +0.30 points, [-0.19, 0.79] within ± 1.00"
    assert str(judge(around(0.90, 0.002), TARGET)) == "falls short by 6.00 points, [-6.49, -5.51]"
    assert str(judge(around(0.97, 0.002), TARGET)) == "exceeds by 1.00 points, [0.51, 1.49]"
    # Ten times the deviation: 0.96 is not seen to differ, nor seen to be near.
    found = judge(around(0.96, 0.02), published(0.96))
    # 0.02 / sqrt(3) * 2.92
    assert found.interval == pytest.approx((-0.033717, 0.033717), rel=1e-4)
    assert found.name == "undecided"


def test_where_the_names_change():
    """The interval reaches RADIUS = 0.0049 to each side, the margin is 0.01."""
    within = 0.01 - RADIUS
    assert within > RADIUS, "so that what is within the margin may differ from 0"
    for sign, beyond in ((-1, "falls short"), (1, "exceeds")):
        assert judge(around(0.96 + sign * 0.999 * within, 0.002), TARGET).name == "reproduced"
        assert judge(around(0.96 + sign * 1.001 * within, 0.002), TARGET).name == beyond
    # A narrower margin, 0.003: near 0 nothing is decided.
    target = published(0.99, deviation=0.003, deviation_kind="sample", n=3)
    for sign, beyond in ((-1, "falls short"), (1, "exceeds")):
        assert judge(around(0.99 + sign * 0.999 * RADIUS, 0.002), target).name == "undecided"
        assert judge(around(0.99 + sign * 1.001 * RADIUS, 0.002), target).name == beyond


def test_how_many_seeds_would_decide():
    # 0.004 t / sqrt(k) <= 0.003 - 0.0001 for t of k - 1 degrees of freedom: k = 8 has 0.00268, k = 7 has 0.00294.
    found = judge(around(0.9901, 0.004), published(0.99))
    assert str(found) == "undecided (3 seeds; about 8 would decide): +0.01 points, [-0.66, 0.68] not within ± 0.30"
    # That far from 0, a smaller number shows the difference: 0.004 t / sqrt(k) < 0.005, k = 4 has 0.0047.
    assert "about 4 would" in str(judge(around(0.985, 0.004), published(0.99)))
    # The published runs are two: 0.02 t / sqrt(2) of one degree of freedom stays, whatever ours are.
    found = judge(around(0.99, 0.004), published(0.99, deviation=0.02, n=2))
    assert "1,000 would not decide" in str(found)
    assert found.notes == (
        "any number of seeds leaves ± 8.93 points: the test set is small, or the published runs are few",
    )
    # It does not say so where seeds would, were they not that many.
    assert judge(around(0.99, 0.9), published(0.99, n=1)).notes == ()


def test_seeds_that_would_decide_where_more_of_them_would_not():
    target = published(100, metric="rmse", deviation=math.sqrt(3), deviation_kind="sample", n=3)
    reason = judge(around(97.2, 10), target).reason
    needed = int(reason.split("about ")[1].split()[0])
    decided = {}
    for seeds in (needed - 1, needed, 1000):
        values = np.linspace(-1, 1, seeds)
        decided[seeds] = judge(list(97.2 + 10 * values / values.std(ddof=1)), target).name
    assert decided == {needed - 1: "undecided", needed: "exceeds", 1000: "undecided"}


def test_the_test_set_is_binomial():
    found = judge([0.97] * 3, published(0.973, test_samples=10000))
    # sqrt(0.973 * 0.027 / 10000), times the normal's 1.645: 0.0030 - 0.0027 of 0 to 0.0057 of 0.00675.
    assert found.standard_error == pytest.approx(0.00162083, rel=1e-5)
    assert str(found) == "reproduced: -0.30 points, [-0.57, -0.03] within ± 0.68"
    # 39 samples, as in EigenWorms: sqrt(0.903 * 0.097 / 39) = 0.0474, so that nothing is within a point.
    found = judge([0.8632] * 3, published(0.903, test_samples=39))
    assert (found.name, round(found.standard_error, 4)) == ("undecided", 0.0474)
    assert "± 7.80 points: the test set is small" in found.notes[-1]
    # With 5,000 samples the binomial adds variance and degrees of freedom to those of two means.
    v = 0.000013 / 3 + 0.96 * 0.04 / 5000
    assert v**2 / ((0.000004 / 3) ** 2 / 2 + (0.000009 / 3) ** 2 / 2) == pytest.approx(26.8, abs=0.1)
    target = published(0.96, deviation=0.003, n=3, test_samples=5000)
    assert judge(around(0.96, 0.002), target).interval[1] == pytest.approx(1.70562 * math.sqrt(v), rel=1e-5)


def test_a_population_deviation_becomes_a_samples():
    # 0.044^2 * 5 / 4 / 5
    wide = judge(around(0.9, 0.0), published(0.95, deviation=0.044, deviation_kind="population", n=5))
    assert wide.standard_error == pytest.approx(0.044 / 2)
    narrow = judge(around(0.9, 0.0), published(0.95, deviation=0.044, n=5))
    assert narrow.standard_error == pytest.approx(0.044 / math.sqrt(5))
    # Population, but of how many is not known: its own error stays out.
    unknown = judge(around(0.9, 0.03), published(0.95, deviation=0.044, deviation_kind="population"))
    assert unknown.standard_error == pytest.approx(0.03 / math.sqrt(3))


@pytest.mark.parametrize(
    ("kind", "more", "factor"),
    [
        ("mean", {"n": 5}, 1 / 3 + 1 / 5),
        ("mean", {}, 1 / 3),
        ("single", {"n": 1}, 1 / 3 + 1),
        ("best", {"n": 1}, 1 / 3 + 1),
        ("best", {}, 1 / 3 + 1),
        ("quoted", {}, 1 / 3 + 1),
        ("unstated", {}, 1 / 3 + 1),
    ],
)
def test_a_value_without_deviation_is_taken_to_spread_as_ours_do(kind, more, factor):
    found = judge(around(1.5, 0.2), published(1.4, kind, "rmse", **more))
    assert found.standard_error == pytest.approx(0.2 * math.sqrt(factor))


def test_less_is_better_for_errors():
    target = published(1.06, metric="rmse", n=3, deviation=0.03)
    # sqrt(2 * 0.03^2 / 3) t with 4 degrees of freedom: 0.0245 * 2.132
    assert str(judge(around(1.36, 0.03), target)) == "falls short by 0.3, [-0.352, -0.248]"
    assert judge(around(0.76, 0.03), target).name == "exceeds"
    assert judge(around(0.76, 0.03), target).difference == pytest.approx(0.3)


def test_errors_on_generated_sequences_are_compared_by_ratio():
    target = published(5e-5, metric="mse", task="adding")
    # Logarithms 0.1 apart: 0.1 / sqrt(3) * 2.92 = 0.1686, within log 2 = 0.693 up to a factor of e^0.52 = 1.69.
    ours = [5e-5 * math.exp(0.5 + step) for step in (-0.1, 0, 0.1)]
    assert str(judge(ours, target)) == "reproduced: 1.65 times, [1.39, 1.95] within a factor of 2"
    assert str(judge([2 * one for one in ours], target)) == "falls short by a factor of 3.3, [2.79, 3.9]"
    assert str(judge([one / 8 for one in ours], target)) == "exceeds by a factor of 4.85, [0.174, 0.244]"
    wide = [5e-5 * math.exp(step) for step in (-1, 0, 1)]
    assert "undecided (3 seeds; about " in str(judge(wide, target))
    assert "): 1 times, [0.185, 5.4] not within a factor of 2" in str(judge(wide, target))
    # A published run: exp(0.1 * 4.303 * sqrt(4 / 3)) = 1.643 to each side.
    found = judge(ours, published(5e-5, "single", "mse", task="adding"))
    assert str(found) == "outside [5.02e-05, 0.000135], where 95 % of single runs lie: falls short by a factor of 1.65"
    assert judge([0.0] * 3, target).name == "exceeds"
    # A zero among others makes an interval that no number reaches.
    assert judge([0.0, 1.0, 1.0], published(5e-5, "single", "mse", task="adding")).interval[1] > 1e300


def test_a_published_run_is_compared_with_ours():
    # t of two degrees of freedom, 4.3027, times 0.001 sqrt(4 / 3).
    found = judge(around(0.97, 0.001), published(0.9745, "single"))
    assert found.interval == pytest.approx((0.97 - 0.0049683, 0.97 + 0.0049683), rel=1e-4)
    assert str(found) == "inside [96.50, 97.50], where 95 % of single runs lie"
    found = judge(around(0.97, 0.001), published(0.976, "single"))
    assert str(found) == "outside [96.50, 97.50], where 95 % of single runs lie: falls short by 0.60 points"
    found = judge(around(0.97, 0.001), published(0.964, "best", n=1))
    assert str(found) == "outside [96.50, 97.50], where 95 % of single runs lie: exceeds by 0.60 points"
    # Of errors less is better.
    assert judge(around(2.0, 0.01), published(1.9, "single", "rmse")).difference == pytest.approx(-0.1)
    # Nothing is known of the spread of equal values, such as accuracies on few samples.
    found = judge([0.97] * 3, published(0.972, "single"))
    assert str(found) == "undecided (3 seeds that do not differ): -0.20 points"
    # Seeds that vary much have everything inside; the page says so.
    found = judge(around(0.93, 0.02), published(0.97, "single"))
    assert found.name == "inside"
    assert "an interval wider than the margin" in found.notes[0]
    assert "an interval wider" not in str(judge(around(0.97, 0.001), published(0.9745, "single")).notes)


def test_the_best_of_several_runs():
    """Where the lowest of 5 further runs lies, by drawing it."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(200_000, 4)), rng.normal(size=(200_000, 5))
    drawn = (theirs.min(1) - ours.mean(1)) / ours.std(1, ddof=1)
    four = [1.9, 2.1, 1.9, 2.1]
    found = judge(four, published(1.85, "best", "rmse", n=5))
    low, high = ((end - 2.0) / np.std(four, ddof=1) for end in found.interval)
    assert low == pytest.approx(np.quantile(drawn, 0.025), rel=0.02)
    assert high == pytest.approx(np.quantile(drawn, 0.975), abs=0.02)
    assert str(found).startswith("inside [")
    assert str(found).endswith("], where 95 % of the best of 5 runs lie")
    # Of one run it is Student's.
    assert verdict._quantile_of_highest(4, 1, 0.975) == pytest.approx(3.18245 * math.sqrt(1.25), rel=0.01)
    # The best of accuracies is the highest.
    assert verdict._range_of_best(4, 5, True) == pytest.approx((-high, -low))


def test_too_few_seeds():
    target = published(0.9, test_samples=10000)
    assert str(judge([0.95], target)) == "too few seeds (1 of 3): +5.00 points"
    assert str(judge([0.95, 0.96], target)) == "too few seeds (2 of 3): +5.50 points"
    assert judge([0.95, 0.96, 0.97], target).name == "exceeds"
    assert str(judge([0.95], published(0.9, "single"))) == "too few seeds (1 of 3): +5.00 points"
    assert str(judge([1.2], published(1.0, "quoted", "rmse"))) == "too few seeds (1 of 3): -0.2"
    assert str(judge([1e-4], published(5e-5, "single", "mse", task="adding"))) == "too few seeds (1 of 3): 2 times"


def test_reduced_budget():
    target = published(0.9, test_samples=10000)
    assert str(judge([0.85] * 3, target, budget=0.1)) == "reduced budget (10 % of the steps): -5.00 points"
    assert judge([0.85], target, budget=0.1).name == "reduced budget"
    assert judge([0.85] * 3, target, budget=1.0).name == "falls short"
    # What arrives early has arrived; by how much it would have been ahead is not known.
    assert str(judge([0.9, 0.91], target, budget=0.5)) == "reached early (50 % of the steps): +0.50 points"
    assert judge([0.91], target, budget=0.5).name == "reached early"
    assert str(judge([0.9] * 3, target, budget=2.0)) == "other protocol (2 times the steps)"


def test_other_protocol_comes_before_any_number():
    found = judge([0.9] * 3, published(0.9), 0.5, ["task.permutation=exprnn", "model.hidden=64"])
    assert str(found) == "other protocol (task.permutation=exprnn, model.hidden=64)"
    assert found.difference is None


def test_what_is_said_of_a_best_run():
    found = judge([0.83, 0.86, 0.85], published(0.949, "best", n=1, test_samples=39))
    assert found.notes[-1] == "the published value is a best one; our best is 86.00 %"
    found = judge([1.2, 1.1, 1.3], published(1.0, "best", "rmse"))
    assert found.notes[-1] == "the published value is the best of an unknown number of runs; our best is 1.1"
    assert "one run" in judge([0.8] * 3, published(0.9, "single", n=1)).notes[-1]
    for kind in ("quoted", "unstated"):
        found = judge([0.8, 0.81, 0.82], published(0.9, kind))
        assert str(found) == "outside [76.03, 85.97], where 95 % of single runs lie: falls short by 9.00 points"
        assert "it counts as one run" in found.notes[-1]
    assert "not known; its own error is left out" in judge([0.8] * 3, published(0.9)).notes[0]
    assert judge([0.8] * 3, published(0.9, n=3)).notes == ()


def test_no_spread_at_all():
    target = published(1.5, metric="rmse")
    assert str(judge([1.5] * 3, target)) == "reproduced: +0, [0, 0] within ± 0.075"
    # At the margin, whatever rounding makes of 5 %.
    assert judge([1.425] * 3, target).name == judge([1.575] * 3, target).name == "reproduced"
    assert str(judge([1.75] * 3, target)) == "falls short by 0.25, [-0.25, -0.25]"
    assert judge([1.25] * 3, target).name == "exceeds"


# The statements on error rates are of the procedure; a bound on the count allows for drawing 2,000 tables only, so
# that a rate of 5 % itself would exceed it once in a hundred tries.
TABLES = 2000
MOST = int(binom.ppf(0.99, TABLES, 0.05))


def count(name: str, n: int, n_p: int, spread: float, spread_p: float, off: float, record, seed: int = 0) -> int:
    """How many of 2,000 tables say ``name`` where the true mean of ours is ``off`` above the published one."""
    rng = np.random.default_rng([seed, n, n_p])
    found = 0
    for _ in range(TABLES):
        ours, theirs = rng.normal(record.value + off, spread, n), rng.normal(record.value, spread_p, n_p)
        target = published(
            theirs.mean(), metric=record.metric, deviation=theirs.std(), deviation_kind="population", n=n_p
        )
        found += judge(ours.tolist(), target).name == name
    return found


@pytest.mark.parametrize(("n", "n_p"), [(3, 3), (3, 10), (5, 5), (10, 3), (10, 10)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_true_difference_of_the_margin_is_called_reproduced_in_one_of_twenty_at_most(n, n_p, sign):
    rmse = published(2.0, metric="rmse")
    assert count("reproduced", n, n_p, 0.03, 0.03, sign * margin(rmse), rmse) <= MOST
    # Unequal deviations, as Welch's degrees of freedom allow for.
    assert count("reproduced", n, n_p, 0.05, 0.01, sign * margin(rmse), rmse, seed=1) <= MOST


@pytest.mark.parametrize(("n", "n_p"), [(3, 3), (5, 5), (10, 3), (10, 10)])
@pytest.mark.parametrize(("name", "off"), [("falls short", 0.0), ("exceeds", 0.0)])
def test_no_difference_is_called_one_in_one_of_twenty_at_most(n, n_p, name, off):
    rmse = published(2.0, metric="rmse")
    assert count(name, n, n_p, 0.2, 0.2, off, rmse) <= MOST


def test_no_difference_is_called_reproduced_in_four_of_five_where_power_allows():
    """Ten seeds, and a standard error of 0.3 of the margin: sqrt(2 * 0.067^2 / 10) = 0.03 of 0.1."""
    rmse = published(2.0, metric="rmse")
    assert count("reproduced", 10, 10, 0.067, 0.067, 0.0, rmse) >= 0.8 * TABLES
    # Twice that is too much.
    assert count("reproduced", 10, 10, 0.134, 0.134, 0.0, rmse) < 0.8 * TABLES


def test_a_published_run_of_ours_is_inside_in_nineteen_of_twenty():
    rng = np.random.default_rng(0)
    for n in (3, 5, 10):
        outside = 0
        for _ in range(TABLES):
            ours, theirs = rng.normal(2.0, 0.1, n), rng.normal(2.0, 0.1)
            outside += judge(ours.tolist(), published(theirs, "single", "rmse")).name == "outside"
        assert int(binom.ppf(0.005, TABLES, 0.05)) <= outside <= int(binom.ppf(0.995, TABLES, 0.05))


def test_nothing_is_read_or_written():
    tree = ast.parse(inspect.getsource(verdict))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    pure = {"math", "statistics", "sys", "collections.abc", "dataclasses", "numpy", "scipy.special"}
    assert imported == pure | {"longwave.results.published"}
