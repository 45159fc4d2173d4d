import pytest
from scipy.stats import ttest_ind

from longwave.results.compare import compare
from longwave.results.tables import as_latex, as_markdown, tables
from tests.results.cases import make_record, rows_of

HIGH, LOW, WIDE = [0.97, 0.971, 0.972], [0.90, 0.902, 0.903], [0.93, 0.99, 0.80]


def test_the_interval_is_that_of_scipy():
    first, second = compare([LOW, HIGH], higher_is_better=True)
    assert (first.index, second.index, first.interval) == (1, 0, None)
    test = ttest_ind(HIGH, LOW, equal_var=False)
    assert second.interval == pytest.approx(test.confidence_interval(0.95))
    assert second.behind == pytest.approx(0.971 - 2.705 / 3)
    assert [(one.first, one.last) for one in (first, second)] == [(1, 1), (2, 2)]


def test_less_is_better():
    first, second = compare([HIGH, LOW], higher_is_better=False)
    assert first.index == 1
    assert second.behind == pytest.approx(0.0693, abs=1e-4)


def test_what_is_not_told_apart_shares_ranks():
    found = {one.index: (one.first, one.last) for one in compare([HIGH, WIDE, LOW], higher_is_better=True)}
    # The wide one may be anywhere.
    assert found == {0: (1, 2), 1: (1, 3), 2: (2, 3)}


def test_the_ranking_allows_for_the_number_of_pairs():
    a, b = [0.970, 0.972, 0.974], [0.964, 0.966, 0.968]
    p = ttest_ind(a, b, equal_var=False).pvalue
    assert 0.05 / 3 < p < 0.05
    assert compare([a, b], True)[0].last == 1
    # With a third that is told apart from neither.
    found = {one.index: one for one in compare([a, b, [0.9, 0.97, 1.0]], True)}
    assert (found[0].first, found[0].last) == (1, 3)
    # The interval is of its pair alone.
    assert found[1].interval[0] > 0


def test_holm_takes_the_pairs_one_after_another():
    a, b, c = [0.970, 0.972, 0.974], [0.9645, 0.9665, 0.9685], [0.50, 0.502, 0.504]
    p = ttest_ind(a, b, equal_var=False).pvalue
    assert 0.05 / 3 < p < 0.05
    # The two surer pairs leave the third a test of its own.
    assert [(one.first, one.last) for one in compare([a, b, c], True)] == [(1, 1), (2, 2), (3, 3)]


def test_what_a_target_ended_is_not_behind():
    first, second = compare([LOW, HIGH], False, ended=[False, True])
    assert (first.index, second.index) == (0, 1)
    assert second.interval is None
    assert (second.first, first.last) == (1, 2)
    # It may be ahead.
    first, second = compare([LOW, HIGH], False, ended=[True, False])
    assert (first.last, second.first) == (1, 2)


def test_no_deviation():
    found = compare([[0.9, 0.9], [0.8, 0.8]], True)
    assert [(one.first, one.last, one.interval) for one in found] == [(1, 2, None)] * 2


def seeds(model, values, **more):
    recipe = more.pop("recipe", f"{model}/psmnist")
    return [make_record(model, seed=seed, value=value, recipe=recipe, **more) for seed, value in enumerate(values)]


def compared(made):
    found = [table for table in tables(rows_of(made)) if any(row.runs for row in table.rows)]
    (table,) = found
    rows = {cells[0]: dict(zip(one.header, cells, strict=True)) for one in table.compared for cells in one.cells}
    return rows, table


def test_the_models_of_a_table():
    tried = seeds("lem", [0.95], changed={"optimizer.lr": 0.1})
    tried[0]["config"]["optimizer"] = {"lr": 0.1}
    own = seeds("lstm", LOW, recipe=None, command="python train.py model=lstm task=psmnist model.hidden=256 seed=0")
    cells, table = compared([*seeds("cornn", HIGH), *seeds("lem", WIDE), *tried, *own])
    assert list(cells) == ["cornn/psmnist", "lem/psmnist", "lstm (no recipe)"]
    assert [row["rank"] for row in cells.values()] == ["1 to 2", "1 to 3", "2 to 3"]
    assert cells["cornn/psmnist"]["behind the first [95 %]"] == ""
    assert cells["lstm (no recipe)"]["behind the first [95 %]"] == "6.93 [6.62, 7.25]"
    assert [row["tuning"] for row in cells.values()] == [
        "the recipe's", "the recipe's; one of 2 settings that were run", "the defaults except model.hidden=256",
    ]  # fmt: skip
    (one,) = table.compared
    assert (one.title, one.notes) == ("Compared", ["1 row with one seed is not compared."])
    assert "Compared:" in as_markdown([table])
    assert as_latex([table]).count(r"\begin{table}") == 2


def test_a_ranking_that_says_nothing_says_so():
    cells, table = compared([*seeds("cornn", WIDE), *seeds("lem", WIDE[::-1]), *seeds("lstm", [0.9, 0.95])])
    assert {row["rank"] for row in cells.values()} == {"1 to 3"}
    assert table.compared[0].notes == ["No two of these differ significantly."]


def test_one_row_is_not_compared():
    assert compared([*seeds("cornn", HIGH), *seeds("lem", [0.9])])[0] == {}


def test_other_protocols_are_compared_apart():
    """Two rows of another split, two of another selection; the fifth has nobody beside it."""
    made = []
    for model, split, selection in (
        ("cornn", "a", "best"), ("lem", "a", "best"), ("gru", "b", "last"), ("lstm", "b", "last"), ("rnn", "b", "best"),
    ):  # fmt: skip
        for record in seeds(model, HIGH):
            record["config"]["task"]["validation"] = split
            record["config"]["training"]["selection"] = selection
            made.append(record)
    _, table = compared(made)
    assert {one.title: [cells[0] for cells in one.cells] for one in table.compared} == {
        "Compared: task.validation=a, training.selection=best": ["cornn/psmnist", "lem/psmnist"],
        "Compared: task.validation=b, training.selection=last": ["gru/psmnist", "lstm/psmnist"],
    }


def test_errors_on_generated_sequences_are_compared_by_ratio():
    """A run that learnt nothing does not hide that the others are ten times better: 0.1 / sqrt(0.001 * 0.1)."""
    made = [*seeds("cornn", [0.001, 0.1], task="adding", recipe="cornn/adding"),
            *seeds("lem", [0.1, 0.1], task="adding", recipe="lem/adding")]  # fmt: skip
    cells, _ = compared(made)
    assert cells["lem/adding"]["times the first [95 %]"].startswith("10 [")
    made[0]["metrics"]["test"]["mse"] = 0.0
    made[0]["objective"]["value"] = 0.0
    cells, _ = compared(made)
    assert cells["lem/adding"]["times the first [95 %]"].endswith(", 1.8e+308]")


def test_ended_by_its_target():
    made = [*seeds("cornn", [0.001, 0.002], task="adding", recipe="cornn/adding"),
            *seeds("lem", [0.008, 0.009], task="adding", recipe="lem/adding", stopped="target")]  # fmt: skip
    cells, _ = compared(made)
    assert cells["lem/adding"]["times the first [95 %]"] == "ended by its target"
    # One that the budget ended would not have improved further.
    made[-1]["stopped"] = "budget"
    cells, _ = compared(made)
    assert cells["lem/adding"]["times the first [95 %]"].startswith("6 [")
