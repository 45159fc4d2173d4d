import csv
import io
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from longwave import CONF
from longwave.results import published, records, tables
from longwave.results.published import Published
from tests.results.cases import make_record, parsed, rows_of

ROOT = Path(__file__).parents[2]


def row_of(found, recipe, **changed):
    rows = [row for row in found if row.recipe == recipe and row.changed == changed]
    # Beside runs that do not aim at it, the recipe's own cell is not run.
    (row,) = [row for row in rows if row.runs] or rows
    return row


def unpadded(page: str) -> str:
    """A page without the spaces that align its columns."""
    return re.sub(" +", " ", page)


def seeds(*values, **more):
    return [make_record(seed=seed, value=value, **more) for seed, value in enumerate(values)]


def test_the_page_is_what_the_records_give():
    """The committed page; python -m results.tables --publish writes it again."""
    ours, damaged = records.load()
    assert damaged == []
    assert tables.PATH.read_text() == tables.as_markdown(tables.tables(rows_of(ours)))
    for record in ours:
        assert not records.refusals(record), record.name
        assert not record.forced, f"{record.name} was collected by force"


def test_without_records_every_aim_is_not_run():
    found = rows_of([])
    aims = {recipe: key for recipe, key in tables.recipe_targets().items() if key is not None}
    assert {row.recipe for row in found} <= set(aims)
    assert {"cornn/psmnist", "cornn/psmnist_128", "lstm/smnist"} <= {row.recipe for row in found}
    # The adding problem has no published number to reach.
    assert "cornn/adding" not in {row.recipe for row in found}
    assert {row.verdict.name for row in found} == {"not run", "out of reach"}
    page = unpadded(tables.as_markdown(tables.tables(found)))
    assert "| cornn/psmnist_128 | 96.6 (quoted) | not run |" in page
    assert "ours (n)" not in page


def test_a_group_is_judged():
    found = rows_of(seeds(0.972, 0.973, 0.975))
    row = row_of(found, "cornn/psmnist")
    assert (row.key, row.values, row.verdict.name) == ("cornn/psmnist_256", [0.972, 0.973, 0.975], "inside")
    assert row.seconds == 3601
    # The other cells of the table are still not run.
    assert row_of(found, "cornn/psmnist_128").verdict.name == "not run"
    page = unpadded(tables.as_markdown(tables.tables(found)))
    line = next(line for line in page.splitlines() if line.startswith("| cornn/psmnist |"))
    # s = 0.0015275: t of two degrees of freedom, 4.3027, times s sqrt(1 / 3 + 1) = 0.0075893
    assert line == (
        "| cornn/psmnist | 97.33 ± 0.15 (3) | 97.3 (single) "
        "| inside [96.57, 98.09], where 95 % of single runs lie | 57,000 | 60 min | 134,154 |"
    )
    assert "## psmnist: accuracy, %" in page
    assert "- cornn/psmnist: the published value is one run." in page
    # 0.7593 points to each side, of a margin of 0.675.
    assert (
        "- cornn/psmnist: an interval wider than the margin: with seeds that vary so much, little is outside." in page
    )


def test_the_page_opens_with_a_summary():
    """Rows and core hours of each verdict: three runs of an hour on two threads each, and one on a GPU."""
    made = seeds(0.972, 0.973, 0.975)
    made += seeds(0.97, recipe="cornn/psmnist_128", published={"key": "cornn/psmnist_128"}, device="cuda (some)")
    made += seeds(0.01, task="adding", recipe="cornn/adding")
    for record in made:
        record["wall_seconds"] = 3600.0
    found = rows_of(made)
    page = unpadded(tables.as_markdown(tables.tables(found))).replace("| |\n", "|\n")
    top = page.partition("\n## ")[2].partition("\n## ")[0]
    assert top.startswith("Summary\n\n| verdict | rows | core hours |")
    unrun, beyond = (sum(row.verdict.name == name for row in found) for name in ("not run", "out of reach"))
    for line in ("judged | 1 | 6.0", "inside | 1 | 6.0", "too few seeds | 1 | 1.0", f"not run | {unrun}",
                 f"out of reach | {beyond}", "no published number | 1 | 2.0",
                 f"in all | {3 + unrun + beyond} | 9.0"):  # fmt: skip
        assert f"\n| {line} |\n" in top, line
    text = tables.in_a_line(found)
    assert text.startswith(f"1 of {2 + unrun + beyond} cells judged, 9.0 core hours: 1 inside, 1 too few seeds, ")


def test_cells_out_of_reach_have_a_table_of_their_own():
    found = tables.tables(rows_of([]))
    assert found[-1].title == "Out of reach"
    assert found[-1].header == ["task", "recipe", "published", "reason", "command"]
    cells = {cells[1]: cells for cells in found[-1].cells}
    assert cells["indrnn/psmnist"] == [
        "psmnist: accuracy", "indrnn/psmnist", "96 (unstated)", "compute: about 96 core hours a run",
        "python train.py model=indrnn task=psmnist",
    ]  # fmt: skip
    assert cells["lem/ncifar10"][3:] == ["data: CIFAR-10", "python train.py model=lem task=ncifar10"]
    assert cells["nrde/bidmc_hr_ncde"][4] == "python train.py recipe=nrde/bidmc_hr_ncde"
    others = [row.recipe for table in found[:-1] for row in table.rows]
    assert not set(cells) & set(others)
    # Whoever runs one has it in the table of its task.
    aim = {"model": "indrnn", "recipe": "indrnn/psmnist", "published": {"key": "indrnn/psmnist"}}
    ran = tables.tables(rows_of(seeds(0.97, 0.97, 0.97, **aim)))
    assert "indrnn/psmnist" in [row.recipe for table in ran[:-1] for row in table.rows if row.task == "psmnist"]
    assert "indrnn/psmnist" not in [row.recipe for row in ran[-1].rows]


def test_what_is_listed_as_out_of_reach_is_there():
    listed = OmegaConf.to_container(OmegaConf.load(tables.REACH))
    aims = {recipe: key for recipe, key in tables.recipe_targets().items() if key is not None}
    assert set(listed["compute"]) <= set(aims)
    assert all(hours > listed["most_core_hours"] for hours in listed["compute"].values())
    assert set(listed["data"]) <= {published.get(key).task for key in aims.values()}


def test_the_other_verdicts():
    quoted = {"recipe": "cornn/psmnist_128", "published": {"key": "cornn/psmnist_128"}}
    for aim in ({}, quoted):
        recipe = aim.get("recipe", "cornn/psmnist")
        assert row_of(rows_of(seeds(0.9, 0.901, 0.9, **aim)), recipe).verdict.name == "outside"
        assert row_of(rows_of(seeds(0.965, 0.97, 0.975, **aim)), recipe).verdict.name == "inside"
    # 87.8 with a deviation of 2.6 over five splits.
    for values, name in (((0.7, 0.7, 0.7), "falls short"), ((0.99, 0.98, 0.99), "exceeds"),
                         ((0.87, 0.88, 0.89), "undecided")):  # fmt: skip
        made = [make_record("linoss", "uea", seed, value, recipe="linoss/uea_scp1",
                            published={"key": "linoss/uea_scp1_im"}) for seed, value in enumerate(values)]  # fmt: skip
        assert row_of(rows_of(made), "linoss/uea_scp1").verdict.name == name
    assert row_of(rows_of(seeds(0.97)), "cornn/psmnist").verdict.name == "too few seeds"
    changed = {"training.epochs": 12}
    reduced = row_of(rows_of(seeds(0.9, 0.9, 0.9, steps=5700, changed=changed)), "cornn/psmnist", **changed)
    assert str(reduced.verdict).startswith("reduced budget (10 % of the steps): -7.30")
    assert row_of(rows_of(seeds(0.01, 0.01, 0.02, model="cornn", task="adding", recipe="cornn/adding")),
                  "cornn/adding").verdict.name == "no published number"  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"task.permutation": "exprnn"}, "task.permutation=exprnn"),
        ({"model.hidden": 64}, "model.hidden=64"),
        ({"training.selection": "last", "optimizer.lr": 0.1}, "training.selection=last, optimizer.lr=0.1"),
        ({"model.dt": 0.05, "training.batch_size": 8}, "model.dt=0.05, training.batch_size=8"),
        ({"scheduler.milestones": [50, 100]}, "scheduler.milestones=[50,100]"),
        ({"training.limit_evaluation": 1}, "training.limit_evaluation=1"),
        ({"transform.depth": 2}, "transform.depth=2"),
    ],
)
def test_what_makes_another_protocol(changed, reason):
    row = row_of(rows_of(seeds(0.97, 0.97, 0.97, changed=changed)), "cornn/psmnist", **changed)
    assert str(row.verdict) == f"other protocol ({reason})"


def test_how_long_it_trains_is_no_protocol():
    """A shorter budget has a verdict of its own."""
    changed = {"training.epochs": 12, "training.target": 0.99, "training.patience": 3}
    row = row_of(rows_of(seeds(0.97, 0.97, 0.975, changed=changed)), "cornn/psmnist", **changed)
    assert row.verdict.name == "inside"


def test_a_run_without_the_recipe_that_aims_at_its_value():
    (row,) = [r for r in rows_of(seeds(0.97, 0.97, 0.97, recipe=None)) if r.values]
    assert str(row.verdict) == "other protocol (no recipe)"
    assert "| cornn (no recipe) |" in unpadded(tables.as_markdown(tables.tables([row])))
    elsewhere = {"key": "cornn/psmnist_128"}
    row = row_of(rows_of(seeds(0.97, 0.97, 0.97, published=elsewhere)), "cornn/psmnist")
    assert str(row.verdict) == "other protocol (recipe cornn/psmnist does not aim at cornn/psmnist_128)"


def test_rows_without_a_recipe_are_told_apart_by_what_was_typed():
    command = "python train.py model=cornn +task=psmnist task.T=9 model.hidden=%d optimizer=sgd threads=2 seed=0"
    made = [make_record(recipe=None, command=command % hidden) for hidden in (64, 128)]
    for record, hidden in zip(made, (64, 128), strict=True):
        record["config"] |= {"model": {"name": "cornn", "hidden": hidden}, "optimizer": {"name": "sgd"}, "threads": 2}
    found = [row.changed for row in rows_of(made) if row.runs]
    assert found == [{"model.hidden": 128, "optimizer": "sgd"}, {"model.hidden": 64, "optimizer": "sgd"}]


def test_what_a_record_holds_cannot_leave_its_cell():
    (table,) = tables.tables([row for row in rows_of(seeds(0.9, changed={"a\nb": "\x1b[2Jc|d"})) if row.runs])
    line = next(line for line in tables.as_markdown([table]).splitlines() if "cornn/psmnist" in line)
    assert r"a\nb=\x1b[2Jc\|d" in line


def test_a_published_value_that_is_gone():
    row = row_of(rows_of(seeds(0.97, 0.97, published={"key": "cornn/gone"})), "cornn/psmnist")
    assert (row.published, row.verdict.name, row.metric) == (None, "no published number", "accuracy")


def test_another_metric_than_was_measured():
    objective = {"key": "test/cross_entropy", "value": 0.5}
    made = seeds(0.5, 0.5, 0.5, metrics={"test": {"cross_entropy": 0.5}}, objective=objective)
    row = row_of(rows_of(made), "cornn/psmnist")
    assert (row.metric, row.values) == ("cross_entropy", [0.5, 0.5, 0.5])
    assert str(row.verdict) == "other protocol (no accuracy measured)"


@pytest.mark.parametrize(
    ("stopped", "changed", "share"),
    [
        ("budget", {}, None),
        ("patience", {}, None),
        ("patience", {"training.patience": 2}, 0.5),
        ("target", {}, 0.5),
    ],
)
def test_the_share_of_the_budget(stopped, changed, share):
    made = make_record(stopped=stopped, changed=changed)
    made["budget"]["steps_done"] = 28500
    assert tables.budget([parsed(made)]) == share
    # Of several, the most that one had.
    assert tables.budget([parsed(made), parsed(make_record(seed=1))]) is None
    made["budget"]["steps"] = 2 * 57000
    assert tables.budget([parsed(made)]) == (share or 2)
    made["budget"]["steps_in_recipe"] = None
    assert tables.budget([parsed(made)]) is None


def test_more_steps_than_the_recipe_has_are_named():
    made = seeds(0.99, 0.991, 0.992)
    for record in made:
        record["budget"]["steps"] *= 4
    row = row_of(rows_of(made), "cornn/psmnist")
    assert str(row.verdict) == "other protocol (4 times the steps)"


def test_what_was_run_otherwise_is_still_not_run():
    """At another length, and with another model, a recipe's own cell is as open as before."""
    made = seeds(0.01, 0.02, 0.01, model="lem", task="adding", recipe="lem/adding", T=500, changed={"task.T": 500},
                 published={"key": "lem/adding"})  # fmt: skip
    found = {row.title: row for row in rows_of(made) if row.recipe == "lem/adding"}
    assert str(found["adding, T = 500"].verdict) == "other protocol (task.T=500)"
    # The value of T = 2000 stands in the table of T = 2000 alone.
    shown = {table.title: table for table in tables.tables(list(found.values()))}
    assert "published" not in shown["adding, T = 500: mse"].header
    assert "published" in shown["adding, T = 2000: mse"].header
    assert found["adding, T = 2000"].verdict.name == "not run"
    own = {"recipe": "cornn/psmnist_128", "published": {"key": "cornn/psmnist_128"}}
    found = rows_of(seeds(0.97, changed={"model.damping": "implicit"}, **own))
    verdicts = sorted(str(row.verdict) for row in found if row.recipe == "cornn/psmnist_128")
    assert verdicts == ["not run", "other protocol (model.damping=implicit)"]


def test_a_data_set_of_the_archives_goes_by_its_own_name():
    made = make_record("linoss", "uea", recipe="linoss/uea_scp1", published={"key": "linoss/uea_scp1_im"})
    made["config"]["task"]["dataset"] = "SelfRegulationSCP1"
    row = row_of(rows_of([made]), "linoss/uea_scp1")
    assert row.task == row.title == row.published.task == "SelfRegulationSCP1"


def test_lengths_have_tables_of_their_own_in_their_order():
    made = [
        record
        for T in (2000, 500, 100)
        for record in seeds(0.01, 0.02, task="adding", recipe="cornn/adding", T=T, changed={"task.T": T})
    ]
    found = tables.tables([row for row in rows_of(made) if row.values])
    assert [table.title for table in found] == [f"adding, T = {T}: mse" for T in (100, 500, 2000)]
    assert "changed" not in found[0].header


def test_a_group_is_what_differs_in_the_seed_only():
    made = seeds(0.97, 0.97, 0.97)
    made[0]["config"] |= {"diagnostics": {"gradients": True}, "threads": 1, "device": "cpu"}
    made[1]["config"]["training"]["checkpoint_seconds"] = 5.0
    assert row_of(rows_of(made), "cornn/psmnist").values == [0.97] * 3
    made[2]["config"]["model"]["hidden"] = 64
    assert sorted(len(row.values) for row in rows_of(made) if row.values) == [1, 2]


def test_what_nobody_has_run_stands_where_it_would():
    found = tables.tables(rows_of(seeds(0.01, task="adding", model="lem", recipe="lem/adding", T=500)))
    titles = [table.title for table in found if table.title.startswith("adding")]
    assert titles == [f"adding, T = {T}: mse" for T in (500, 2000, 5000, 10000)]


def test_steps_until_a_bound():
    made = seeds(0.01, 0.02, 0.01, task="adding", recipe="cornn/adding")
    for record, first in zip(made, (4000, None, 6000), strict=True):
        record["first_passed"]["test/mse"]["0.01"] = first
    (table,) = tables.tables([row for row in rows_of(made) if row.values])
    cells = dict(zip(table.header, table.cells[0], strict=True))
    assert cells["steps until below 0.01"] == "6,000 (2 of 3 did)"
    assert cells["steps until below 0.001"] == "never"
    made[2]["first_passed"]["test/mse"]["0.01"] = None
    (table,) = tables.tables([row for row in rows_of(made) if row.values])
    assert "1 of 3 did" in table.cells[0]


def test_seeds_of_other_data_are_named():
    def data(sha256):
        return {"split_id": "one", "files": [{"file": "a.gz", "sha256": "0" * 64}, {"file": "b.gz", "sha256": sha256}]}

    same, other = (
        [make_record(seed=0, data=data("1" * 64)), make_record(seed=1, data=data(sha256))]
        for sha256 in ("1" * 64, "2" * 64)
    )
    note = "runs not trained on the same data: b.gz"
    assert note not in row_of(rows_of(same), "cornn/psmnist").notes
    assert note in row_of(rows_of(other), "cornn/psmnist").notes


def test_a_published_value_of_a_part_of_the_test_set():
    """That of FitzHugh-Nagumo is of the last 128 samples, and so are ours beside it."""
    aim = {"recipe": "lem/fitzhugh_nagumo", "published": {"key": "lem/fitzhugh_nagumo"}}
    made = [make_record("lem", "fitzhugh_nagumo", seed, **aim) for seed in range(3)]
    for record, value in zip(made, (0.002, 0.003, 0.004), strict=True):
        record["metrics"] = {"test": {"rmse": value + 0.1}, "test_last_128": {"rmse": value}}
        record["objective"] = {"key": "test/rmse", "value": value + 0.1}
    row = row_of(rows_of(made), "lem/fitzhugh_nagumo")
    assert (row.metric, row.values, row.verdict.name) == ("rmse", [0.002, 0.003, 0.004], "inside")
    assert "rmse on test: 0.103 ± 0.001 (3)" in row.notes
    for record in made:
        del record["metrics"]["test_last_128"]
    row = row_of(rows_of(made), "lem/fitzhugh_nagumo")
    assert row.values == pytest.approx([0.102, 0.103, 0.104])
    assert str(row.verdict) == "other protocol (no rmse on test_last_128 measured)"


def test_what_a_source_leaves_open_is_noted():
    aim = {"recipe": "gru/har2_fastgrnn", "published": {"key": "fastgrnn/har2_gru"}}
    note = f"its source does not state {published.get('fastgrnn/har2_gru').open}"
    made = [make_record("gru", "har2", seed, 0.92 + seed / 100, **aim) for seed in range(3)]
    assert note in row_of(rows_of(made), "gru/har2_fastgrnn").notes
    assert note not in row_of(rows_of(made[:1]), "gru/har2_fastgrnn").notes


def test_rows_with_the_same_note_share_it():
    made = [record for model in ("cornn", "lem") for record in seeds(0.97, model=model, recipe=f"{model}/psmnist",
            published={"key": "cornn/psmnist_256" if model == "cornn" else "lem/psmnist"})]  # fmt: skip
    (table,) = tables.tables([row for row in rows_of(made) if row.values])
    assert table.notes == ["cornn/psmnist, lem/psmnist: the published value is one run."]


def test_further_test_sets_are_noted():
    """As of FitzHugh-Nagumo, whose published figure is of a part of the test set."""
    made = seeds(0.97, 0.97, 0.97)
    for record, value, other in zip(made, (0.96, 0.97, 0.98), (0.0, 0.01, 0.02), strict=True):
        record["metrics"] |= {"test_last_128": {"accuracy": value}, "test_noise": {"accuracy": other}}
    notes = row_of(rows_of(made), "cornn/psmnist").notes
    assert "accuracy on test_last_128: 97.00 ± 1.00 (3)" in notes
    assert "accuracy on test_noise: 1.00 ± 1.00 (3)" in notes


def test_what_was_forced_or_failed_is_said():
    made = seeds(0.97, 0.97, 0.97)
    made[0]["forced"] = ["from a dirty tree"]
    failed = make_record(seed=3, status="failed", metrics={}, error="Diverged: ...")
    for key in ("objective", "stopped", "wall_seconds"):
        del failed[key]
    row = row_of(rows_of([*made, failed]), "cornn/psmnist")
    assert row.values == [0.97] * 3
    assert row.notes[-2:] == ["1 run failed", "1 run collected by force (from a dirty tree)"]
    made[1]["git"]["dirty"] = True
    assert "1 run from a dirty tree" in row_of(rows_of(made), "cornn/psmnist").notes
    alone = row_of(rows_of([failed]), "cornn/psmnist")
    assert (alone.values, alone.verdict.name, alone.notes) == ([], "not finished", ["1 run failed"])
    assert "not finished" in tables.as_markdown(tables.tables([alone]))


def test_seeds_that_diverged_are_named():
    lost = [make_record(seed=seed, status="failed", failed_step=1000 + seed, metrics={}) for seed in (3, 4)]
    for record in lost:
        for key in ("objective", "stopped", "wall_seconds"):
            del record[key]
    row = row_of(rows_of([*seeds(0.97, 0.97, 0.97), *lost]), "cornn/psmnist")
    assert row.values == [0.97] * 3
    assert row.notes[-1] == "2 runs diverged, not in the mean: seed 3 at step 1,003, seed 4 at step 1,004"
    alone = row_of(rows_of(lost), "cornn/psmnist")
    assert (alone.values, str(alone.verdict)) == ([], "not finished (diverged)")
    # Without a published value they stand with the others of their task.
    free = [record | {"published": None, "recipe": None} for record in lost]
    assert row_of(rows_of([*seeds(0.97, 0.97), *free]), None).metric == "accuracy"
    assert [row.metric for row in tables.rows(list(map(parsed, free)), open_cells=False)] == ["loss"]
    interrupted = lost[1] | {"status": "interrupted"}
    assert str(row_of(rows_of([lost[0], interrupted]), "cornn/psmnist").verdict) == "not finished"


@pytest.mark.parametrize(
    ("values", "metric", "text"),
    [
        ([0.97], "accuracy", "97.00 (1)"),
        ([0.97, 0.98], "accuracy", "97.50 ± 0.71 (2)"),
        ([0.00123456], "mse", "0.001235 (1)"),
        ([], "mse", ""),
    ],
)
def test_how_ours_is_written(values, metric, text):
    assert tables.ours(tables.Row("t", "m", "t", metric, values=values)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.793, "0.793 s"), (99.0, "99 s"), (114.0, "2 min"), (5880.0, "98 min"), (43384.0, "12 h 03 min")],
)
def test_durations(seconds, text):
    assert tables.duration(seconds) == text


def test_how_published_values_are_written():
    def made(**more):
        fields = {"model": "m", "task": "t", "metric": "accuracy", "value": 0.95, "kind": "mean", "protocol": "p"}
        return tables._published_value(Published(**fields | {"source": "s"} | more))

    assert made(deviation=0.044, n=5) == "95 ± 4.4 (mean of 5)"
    assert made() == "95 (mean)"
    assert made(kind="best", n=1, value=0.949) == "94.9 (best)"
    assert made(metric="rmse", value=2.97, deviation=0.45, n=3) == "2.97 ± 0.45 (mean of 3)"
    assert made(metric="mse", value=None, kind="curve") == ""


def test_csv_has_plain_numbers():
    read = list(csv.DictReader(io.StringIO(tables.as_csv(rows_of(seeds(0.972, 0.973, 0.975))))))
    (ours,) = [line for line in read if line["n"] == "3"]
    assert float(ours["mean"]) == pytest.approx(0.97333, abs=1e-5)
    assert (ours["published"], ours["verdict"], ours["published_kind"]) == ("0.973", "inside", "single")
    other = next(line for line in read if line["recipe"] == "cornn/psmnist_128")
    assert float(ours["low"]) < 0.973 < float(ours["high"])
    assert float(ours["margin"]) == pytest.approx(0.00675)
    assert (other["n"], other["mean"], other["verdict"]) == ("0", "", "not run")


def test_latex_is_escaped_and_whole():
    text = tables.as_latex(tables.tables(rows_of(seeds(0.97, 0.98, 0.97, changed={"model.w_y": 1}))))
    assert "model.w\\_y=1" in text
    assert "±" in text
    assert not re.search(r"(?<!\\)[%_#]", text)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\bottomrule") > 1
    for line in text.splitlines():
        if line.endswith(r"\\"):
            assert "&" in line


def test_commands(save, tmp_path, monkeypatch, capsys):
    folder = save(*seeds(0.97, 0.97, 0.97))
    (folder / "broken.json").write_text('{"status"')
    monkeypatch.setattr(tables, "PATH", tmp_path / "TABLES.md")
    with pytest.raises(SystemExit) as stopped:
        tables.main(["--runs", str(folder), "--check"])
    assert stopped.value.code == 2
    assert "--check and --publish concern TABLES.md alone; omit --runs" in capsys.readouterr().err
    # To the terminal: the page is that of the committed records.
    tables.main(["--runs", str(folder)])
    shown = capsys.readouterr()
    assert "broken.json is left out: Invalid JSON" in shown.err
    assert "| cornn/psmnist | 97.00" in unpadded(shown.out)
    assert not tables.PATH.exists()
    monkeypatch.setattr(records, "FOLDER", folder)
    with pytest.raises(SystemExit) as stopped:
        tables.main(["--check"])
    assert stopped.value.code == 1
    assert "python -m results.tables --publish writes it" in capsys.readouterr().err
    tables.main(["--publish"])
    assert "3 records" in capsys.readouterr().out
    tables.main(["--check"])
    assert "| cornn/psmnist | 97.00" in unpadded(tables.PATH.read_text())
    with pytest.raises(SystemExit) as stopped:
        tables.main(["--runs", str(tmp_path / "tpyo")])
    assert stopped.value.code == 1
    assert "tpyo: no such folder" in capsys.readouterr().err
    assert "| cornn/psmnist | 97.00" in unpadded(tables.PATH.read_text())
    with pytest.raises(SystemExit):
        tables.main(["--check", "--format", "csv"])
    assert "--check and --publish concern TABLES.md alone" in capsys.readouterr().err
    tables.main(["--runs", str(folder), "--format", "csv"])
    assert capsys.readouterr().out.startswith("task,title,model")
    tables.main(["--runs", str(folder), "--format", "latex"])
    assert r"\toprule" in capsys.readouterr().out


def test_the_readme_opens_with_what_the_records_give():
    """Its first table: of each model the error and the steps on the adding problem, and the accuracy on HAR-2.

    A model that was trained on growing lengths as well has two rows.
    """
    found = {table.title: table for table in tables.tables(rows_of(records.load()[0]))}

    def cells(title: str, *names: str) -> dict[str, list[str]]:
        table = found[title]
        at = [table.header.index(name) for name in names]
        shown = zip(table.rows, table.cells, strict=True)
        return {
            row.model + (", growing lengths" if tables.lengths(row) else ""): [c[i] for i in at]
            for row, c in shown
            if row.runs and row.name != f"{row.model}/har2_fastgrnn"
        }

    adding = cells("adding, T = 500: mse", "ours (n)", "steps until below 0.01")
    har2 = cells("har2: accuracy, %", "ours (n)")
    text = (ROOT / "README.md").read_text()
    lines = text[text.index("\n|") + 1 :].partition("\n\n")[0].splitlines()
    shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert shown == [[name, *adding[name], *har2.get(name, [""])] for name in adding]
    rows = OmegaConf.load(CONF / "table" / "adding_500.yaml").rows
    assert {name.partition(",")[0] for name in adding} == {row.recipe.partition("/")[0] for row in rows}


def test_what_is_remembered_is_shown_when_asked_for_only(capsys):
    remembered = "chrono_lstm on ncifar10: 55.9"
    assert "remembered" not in tables.as_markdown(tables.tables(rows_of([])))
    tables.main(["--unverified"])
    out = capsys.readouterr().out
    assert remembered in out
    assert "not read in any source" in out


def test_any_cell_of_a_table_by_one_recipe():
    """The Neural RDE's recipes aim at the cell of the depth and step that are chosen."""

    def run(depth, step, key):
        record = make_record(
            "nrde", "eigenworms", recipe="nrde/eigenworms", value=0.8, published={"key": f"nrde/{key}"}
        )
        record["config"]["transform"] = {"name": "log_signature", "depth": depth, "step": step}
        return record

    found = rows_of([run(2, 4, "eigenworms_depth2_step4"), run(3, 32, "eigenworms_depth3_step32")])
    found = {row.key: row for row in found if row.recipe == "nrde/eigenworms"}
    assert found["nrde/eigenworms_depth2_step4"].changed == {}
    assert found["nrde/eigenworms_depth3_step32"].changed == {"transform.depth": 3, "transform.step": 32}
    assert {row.verdict.name for row in found.values()} == {"too few seeds"}
    # A record that says that it aims at another cell than its settings.
    wrong = rows_of([run(3, 32, "eigenworms_depth2_step4")])
    assert next(row for row in wrong if row.recipe == "nrde/eigenworms").verdict.name == "other protocol"
    # Where nobody has run it, the cell of the recipe as it is.
    assert tables.recipe_targets()["nrde/eigenworms"] == "nrde/eigenworms_depth2_step4"


def test_a_data_set_of_the_archives_has_one_table():
    """Of its own name, and not of the task that reads it."""
    titles = [row.title for row in rows_of([]) if (row.recipe or "").startswith("linoss/uea_scp1")]
    assert titles == ["SelfRegulationSCP1"] * 2


def of_a_fold(fold: int, value: float, folds: int = 3, **more) -> dict:
    task = {"name": "files", "title": "mine", "content": "0123456789abcdef", "folds": folds, "fold": fold} | more
    config = make_record()["config"] | {"task": task}
    command = f"python train.py model=cornn task=files task.path=my.csv task.folds={folds} task.fold={fold}"
    return make_record(task="files", recipe=None, value=value, name=f"f{fold}", config=config, command=command,
                       published=None)  # fmt: skip


def test_a_row_over_folds():
    def made(*records) -> list[tables.Row]:
        return [row for row in rows_of(list(records)) if row.runs]

    (row,) = made(of_a_fold(2, 0.9), of_a_fold(0, 0.8), of_a_fold(1, 0.7))
    assert (row.title, row.values, row.changed) == ("mine (01234567)", [0.8, 0.7, 0.9], {"task.folds": 3})
    assert row.notes[-1] == "folds 0: 80, 1: 70, 2: 90"
    (row,) = made(of_a_fold(2, 0.9), of_a_fold(0, 0.8))
    assert row.notes[-1] == "folds 0: 80, 2: 90; not run: 1"
    # Of other data, another table.
    assert len({row.title for row in made(of_a_fold(0, 0.9), of_a_fold(1, 0.8, content="ff" * 8))}) == 2
