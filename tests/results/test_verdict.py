"""Cases computed by hand, and the error rate by simulation."""

import ast
import inspect
import math

import numpy as np
import pytest

from longwave.results import verdict
from longwave.results.published import Published
from longwave.results.verdict import judge


def published(value, kind="mean", metric="accuracy", **more) -> Published:
    return Published(
        model="m", task="t", metric=metric, value=value, kind=kind, protocol="p", source="s", **more
    )  # fmt: skip


def around(mean: float, spread: float) -> list[float]:
    """Three values with this mean and this sample standard deviation."""
    return [mean - spread, mean, mean + spread]


def test_not_run_and_no_number():
    assert str(judge([], published(0.9))) == "not run"
    assert str(judge([], None)) == "not run"
    assert str(judge([0.9], None)) == "no published number"
    assert str(judge([0.01], published(None, "curve", "mse"))) == "no published number"


def test_two_means_with_deviations():
    target = published(0.9, deviation=0.03, deviation_kind="sample", n=3)
    # sqrt(0.02^2 / 3 + 0.03^2 / 3)
    error = math.sqrt(0.0013 / 3)
    same = judge(around(0.90, 0.02), target)
    assert (same.name, same.difference) == ("reproduced", pytest.approx(0, abs=1e-12))
    assert same.standard_error == pytest.approx(error)
    assert str(judge(around(0.91, 0.02), target)) == "reproduced: +1.00 ± 2.08 points"
    # 0.2 / 0.020817
    assert str(judge(around(0.70, 0.02), target)) == "short by 20.00 points (9.6 standard errors)"
    assert str(judge(around(0.97, 0.02), target)) == "exceeds: +7.00 ± 2.08 points"


def test_the_threshold_is_students_with_welchs_degrees_of_freedom():
    target = published(0.9, deviation=0.03, deviation_kind="sample", n=3)
    # v1 = 0.0004 / 3, v2 = 0.0009 / 3: (v1 + v2)^2 / (v1^2 / 2 + v2^2 / 2) = 2 * 13^2 / (4^2 + 9^2) = 3.48, hence 3.
    threshold = 2.353 * math.sqrt(0.0013 / 3)
    assert judge(around(0.9 - 0.999 * threshold, 0.02), target).name == "reproduced"
    assert judge(around(0.9 - 1.001 * threshold, 0.02), target).name == "short"
    assert judge(around(0.9 + 0.999 * threshold, 0.02), target).name == "reproduced"
    assert judge(around(0.9 + 1.001 * threshold, 0.02), target).name == "exceeds"
    # With 5,000 test samples the binomial 0.9 * 0.1 / 5000 adds variance and degrees of freedom.
    v = 0.0013 / 3 + 0.9 * 0.1 / 5000
    assert v**2 / ((0.0004 / 3) ** 2 / 2 + (0.0009 / 3) ** 2 / 2) == pytest.approx(3.78, abs=0.01)
    # Where the binomial is all there is, the normal's.
    exact = published(0.9, "quoted", test_samples=10000)
    assert judge([0.9 - 1.64 * 0.003] * 3, exact).name == "reproduced"
    assert judge([0.9 - 1.65 * 0.003] * 3, exact).name == "short"


def test_the_test_set_is_binomial():
    found = judge([0.97] * 3, published(0.973, "quoted", test_samples=10000))
    # sqrt(0.973 * 0.027 / 10000)
    assert found.standard_error == pytest.approx(0.00162083, rel=1e-5)
    assert str(found) == "short by 0.30 points (1.9 standard errors)"
    # 39 samples, as in EigenWorms: sqrt(0.903 * 0.097 / 39) = 0.0474, so that 4 points mean nothing.
    found = judge([0.8632] * 3, published(0.903, test_samples=39))
    assert (found.name, round(found.standard_error, 4)) == ("reproduced", 0.0474)


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
        ("quoted", {}, 1 / 3),
        ("unstated", {}, 1 / 3),
    ],
)
def test_a_value_without_deviation_is_taken_to_spread_as_ours_do(kind, more, factor):
    found = judge(around(1.5, 0.2), published(1.4, kind, "rmse", **more))
    assert found.standard_error == pytest.approx(0.2 * math.sqrt(factor))


def test_less_is_better_for_errors():
    target = published(1.06, metric="rmse", n=3, deviation=0.03)
    assert str(judge(around(1.36, 0.03), target)) == "short by 0.3 (12.2 standard errors)"
    assert judge(around(0.76, 0.03), target).name == "exceeds"
    assert judge(around(0.76, 0.03), target).difference == pytest.approx(0.3)


def test_too_few_seeds():
    target = published(0.9, test_samples=10000)
    assert str(judge([0.95], target)) == "too few seeds (1 of 3): +5.00 ± 0.30 points"
    assert judge([0.95, 0.96], target).name == "too few seeds"
    assert judge([0.95, 0.96, 0.97], target).name == "exceeds"
    # Nothing is known of the error.
    assert str(judge([1.2], published(1.0, "quoted", "rmse"))) == "too few seeds (1 of 3): -0.2"
    # One value of ours spreads as theirs: 0.03^2 (1 + 1 / 4).
    known = judge([0.9], published(0.9, deviation=0.03, n=4))
    assert known.standard_error == pytest.approx(0.03 * math.sqrt(1.25))


def test_reduced_budget():
    target = published(0.9, test_samples=10000)
    assert str(judge([0.85] * 3, target, budget=0.1)) == "reduced budget (10 % of the steps): -5.00 ± 0.30 points"
    assert judge([0.85], target, budget=0.1).name == "reduced budget"
    assert judge([0.85] * 3, target, budget=1.0).name == "short"
    # What arrives early has arrived.
    early = judge([0.9] * 3, target, budget=0.5)
    assert (early.name, early.notes[0]) == ("reproduced", "on 50 % of the steps")
    assert judge([0.91], target, budget=0.5).name == "too few seeds"


def test_other_protocol_comes_before_any_number():
    found = judge([0.9] * 3, published(0.9), 0.5, ["task.permutation=exprnn", "model.hidden=64"])
    assert str(found) == "other protocol (task.permutation=exprnn, model.hidden=64)"
    assert found.difference is None


def test_what_is_said_of_a_best_run():
    found = judge([0.83, 0.86, 0.85], published(0.949, "best", n=1, test_samples=39))
    assert found.notes == ("the published value is a best one; our best is 86.00 %",)
    found = judge([1.2, 1.1, 1.3], published(1.0, "best", "rmse"))
    assert found.notes == ("the published value is a best one; our best is 1.1",)
    assert "one run" in judge([0.8] * 3, published(0.9, "single", n=1)).notes[0]
    assert "not known" in judge([0.8] * 3, published(0.9, "quoted")).notes[0]
    assert judge([0.8] * 3, published(0.9, n=3)).notes == ()


def test_no_spread_at_all():
    target = published(1.5, "quoted", "rmse")
    assert str(judge([1.5] * 3, target)) == "reproduced: +0"
    assert str(judge([1.75] * 3, target)) == "short by 0.25"
    assert judge([1.25] * 3, target).name == "exceeds"


def test_a_true_value_is_called_short_in_about_one_of_twenty():
    rng = np.random.default_rng(0)
    short = 0
    for _ in range(2000):
        ours, theirs = rng.normal(2.0, 0.1, 4), rng.normal(2.0, 0.1, 5)
        target = published(theirs.mean(), metric="rmse", deviation=theirs.std(), deviation_kind="population", n=5)
        short += judge(ours.tolist(), target).name == "short"
    assert 0.03 < short / 2000 < 0.065


def test_nothing_is_read_or_written():
    tree = ast.parse(inspect.getsource(verdict))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    allowed = {"math", "statistics", "collections.abc", "dataclasses", "scipy.special", "longwave.results.published"}
    assert imported == allowed
