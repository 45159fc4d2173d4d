"""Sweeps run what is missing, once, whatever happens to them; searches find, prune and go on."""

import functools
import io
import json
import random
import re
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console

from longwave import CONF, PACKAGE, sweep
from longwave.results import records, tables
from longwave.sweeps import search, trials
from longwave.sweeps.command import Sweep, arguments
from longwave.sweeps.plan import SECONDS_BESIDE, Estimate, Planned, Row, Table, expand, merge, seeds_of
from longwave.sweeps.search import Range, Search
from longwave.sweeps.show import show_plan, show_table
from longwave.sweeps.watch import Watch
from longwave.training import loop, progress
from longwave.training.config import choices, compose_object, compose_run
from longwave.training.errors import UserError
from longwave.training.overrides import MOST_RUNS
from longwave.training.run import folder_of
from tests.results.cases import make_record, parsed, rows_of
from tests.test_multirun import LAUNCHERS, installed

TINY = (
    "task.T=8", "task.test_samples=20", "model.hidden=3", "training.batch_size=2", "training.steps=6",
    "training.evaluate_every=3", "training.target=null", "tracking=none", "threads=1",
)  # fmt: skip


@pytest.fixture
def sweep_here(tmp_path, monkeypatch):
    """Sweeps in this process: ``sweep_here(Sweep(...))`` gives the exit code."""
    monkeypatch.setattr(progress, "plain", True)

    def call(wanted: Sweep, output: Path = tmp_path / "outputs") -> int:
        wanted.overrides = [*wanted.overrides, f"output={output}"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            if wanted.table is None:
                return trials.search("test", wanted, sweep.job, [])
            return sweep.sweep_table("test", wanted, [])

    return call


def records_in(output: Path) -> dict[str, dict]:
    paths = sorted((output / "runs").glob("*/record.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def starts(output: Path) -> dict[str, int]:
    """How often each run was begun or resumed."""
    logs = (output / "runs").glob("*/log.txt")
    return {path.parent.name: path.read_text().count(" parameters, ") for path in logs}


@functools.cache
def runs_of(name: str) -> list[Planned]:
    return expand(name, compose_object("sweep", [f"table={name}"]).table, None)


@pytest.mark.parametrize("name", choices("table"))
def test_every_table_composes(name):
    table = compose_object("sweep", [f"table={name}"]).table
    runs = runs_of(name)
    seeds = sum(len(seeds_of(table.seeds if row.seeds is None else row.seeds)) for row in table.rows)
    assert len(runs) == len(table.lengths or [1]) * seeds
    # Of a recipe each, not of a model and a task that have none.
    assert all(row.recipe in choices("recipe") for row in table.rows)


def models_of(name: str) -> set[str]:
    return {run.config.model.name for run in runs_of(name)}


def test_a_table_without_its_schema_is_named():
    with pytest.raises(UserError, match=r"^conf/table/mine\.yaml: must begin with defaults: \[/schema/table@_here_\]$"):
        expand("mine", {"rows": [{"recipe": "lem/har2"}]}, None)


def test_the_example_of_a_table_in_the_docs():
    page = (PACKAGE / "docs" / "sweeps.md").read_text()
    found = yaml.safe_load(re.search(r"```yaml\n(defaults: \[/schema/table.*?)```", page, re.DOTALL)[1])
    assert found.pop("defaults") == ["/schema/table@_here_"]
    table = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Table), found))
    assert [run.config.model.name for run in expand("mine", table, None)] == ["lem"] * 3 + ["gru"] * 3


def test_the_tables_of_all_models_have_the_same():
    assert models_of("adding_500") == models_of("har2")
    settings = {(r.config.task.T, r.config.training.steps, r.config.training.target) for r in runs_of("adding_500")}
    assert settings == {(500, 5000, 0.001)}


def test_expansion():
    rows = [Row(recipe="cornn/adding", overrides=["model.hidden=5"]), Row(model="lstm", task="adding")]
    table = Table(rows=rows, overrides=["model.hidden=4", "training.steps=9"], lengths=[10, 20])
    runs = expand("test", table, [3, 0], ["training.steps=7"])
    found = [(r.config.model.name, r.config.task.T, r.config.seed, r.config.model.hidden) for r in runs]
    assert found == [(m, T, s, h) for m, h in (("cornn", 5), ("lstm", 4)) for T in (10, 20) for s in (3, 0)]
    assert {run.config.training.steps for run in runs} == {7}
    # What a run is called is what its command line makes.
    assert all(folder_of(compose_run(run.overrides)[0]) == run.folder for run in runs)
    # A length of the command line's wins over the table's, in the rows' titles too.
    runs = expand("test", table, 1, ["task.T=7"])
    titles = [("cornn/adding model.hidden=5", 7), ("lstm/adding", 7)]
    assert [(run.title, run.config.task.T) for run in runs] == titles
    # Two rows that are the same run are one.
    assert len(expand("test", Table(rows=[rows[0], rows[0]]), 2)) == 2


def test_a_row_may_have_seeds_of_its_own():
    table = Table(
        rows=[Row(recipe="cornn/adding"), Row(recipe="lstm/adding", seeds=[5])], overrides=["training.steps=9"]
    )

    def found(seeds):
        return [(run.config.model.name, run.config.seed) for run in expand("test", table, seeds)]

    assert found(None) == [("cornn", 0), ("cornn", 1), ("cornn", 2), ("lstm", 5)]
    assert found(1) == [("cornn", 0), ("lstm", 0)]
    table.rows[1].seeds = 0
    with pytest.raises(UserError, match=r"^table=test, row 2 \(lstm/adding\): seeds=0: must be a number of seeds"):
        found(None)


def test_the_table_of_the_longest_adding_problem():
    """Every model once with growing lengths and three seeds, once without and one seed, the same steps for all."""
    runs = runs_of("adding_5000")
    grown, plain = ([r for r in runs if (r.config.curriculum.name != "none") == wanted] for wanted in (True, False))
    for part, seeds in ((grown, [0, 1, 2]), (plain, [0])):
        assert sorted((r.config.model.name, r.config.seed) for r in part) == [
            (model, seed) for model in sorted(models_of("adding_500")) for seed in seeds
        ]
    assert {(r.config.task.T, r.config.training.target) for r in runs} == {(5000, 0.01)}
    own = [r for r in grown if r.config.model.name == "cornn"]
    assert {r.config.training.steps for r in runs if r not in own} == {5000}
    # The headline's own run.
    assert own[0].folder == folder_of(compose_run(["model=cornn", "task=adding", "task.T=5000"])[0])


def test_seeds_and_merging():
    assert (seeds_of(3), seeds_of([4, 0, 4])) == ([0, 1, 2], [4, 0])
    assert merge(["a=1", "b.c=[1,2]"], ["a=2", "d=x"]) == ["b.c=[1,2]", "a=2", "d=x"]
    # A choice of a group takes all keys of it, to Hydra, only where none of them is given; not those of its own list.
    earlier = ["optimizer.lr=1", "training.steps=9", "training.batch_size=2", "model.dt=1"]
    later = ["debug=fast", "optimizer.lr=2", "optimizer=sgd"]
    assert merge(earlier, later) == ["training.batch_size=2", "model.dt=1", *later]
    # No name of a file can be as long.
    assert merge(["output=" + "x" * 1000]) == ["output=" + "x" * 1000]
    for wrong in (0, -1, [], [-1], "x", 1.5, True, None):
        with pytest.raises(UserError, match=r"^seeds=.*: must be a number of seeds"):
            seeds_of(wrong)


def test_too_many_runs_are_refused_at_once(monkeypatch, capsys):
    monkeypatch.setattr("longwave.sweeps.plan.compose_run", lambda _: pytest.fail("it composed"))
    rows = [Row(recipe="cornn/adding"), Row(recipe="lstm/adding")]
    for seeds in (10**9, MOST_RUNS + 1):
        message = f"seeds={seeds}: at most {MOST_RUNS} runs can be started at once"
        with pytest.raises(UserError, match=f"^{message}$"):
            expand("test", Table(rows=rows), seeds)
        with pytest.raises(UserError, match=rf"^table=test, row 2 \(lstm/adding\): {message}$"):
            expand("test", Table(rows=[rows[0], Row(recipe="lstm/adding", seeds=seeds)]), None)
    with pytest.raises(
        UserError, match=f"^table=test: 4000 runs; at most {MOST_RUNS} can be started at once; use fewer"
    ):
        expand("test", Table(rows=rows, lengths=[10, 20]), 1000)
    # As many as are allowed are counted before the first is composed.
    with pytest.raises(pytest.fail.Exception):
        expand("test", Table(rows=rows), 500)
    assert capsys.readouterr().err == "checking 1000 runs\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("table=nothing", r"^table=nothing: no such choice; there are adding_200, "),
        ("search=nothing", r"^search=nothing: no such choice; there are cornn_adding$"),
        ("", r"^table=null: choose one table=adding_200, .*search=cornn_adding"),
        ("table=har2 search=cornn_adding", r"^search: cannot go with a table; choose one of them$"),
        ("table=har2 dryrun=true", r"^dryrun: no such key \(did you mean dry_run\?\); there are dry_run, .*, model, "),
        ("table=har2 seeds=0,1", r"^seeds=0,1: several values.*seeds=\[0,1\]"),
        ("table=har2 dry_run=perhaps", r"^dry_run=perhaps: must be true or false"),
        ("search=cornn_adding trials=0", r"^trials=0: must be at least 1"),
        ("table=har2 trials=5", r"^trials=5: is a setting of a search, not of a table$"),
        ("table=har2 parallel=2", r"^parallel=2: is a setting of a search, not of a table$"),
        ("search=cornn_adding seeds=2", r"^seeds=2: is a setting of a table"),
        ("-m table=har2", r"^--multirun: .*omit it"),
        ("table=har2 threads", r"^cannot read 'threads': write key=value"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(line, message):
    with pytest.raises(UserError, match=message) as error:
        arguments(line.split())
    assert "\n" not in str(error.value)


def test_other_keys_are_for_the_runs():
    given = ["table=har2", "threads=1", "hydra/launcher=joblib", "task.permutation='a b'", "seeds=[0,2]"]
    found, asked, table = arguments(given)
    assert (asked.seeds, table) == ([0, 2], "har2")
    assert found[:3] == ["table=har2", "hydra/launcher=joblib", "seeds=[0,2]"]
    assert compose_object("sweep", [found[0], found[3]]).overrides == ["threads=1", "task.permutation='a b'"]


@pytest.mark.parametrize(
    ("table", "overrides", "message"),
    [
        (Table(), (), r"^table=test: has no rows$"),
        (Table(rows=[Row(recipe="cornn/x")]), (), r"^table=test, row 1 \(cornn/x\): recipe=cornn/x: no such choice"),
        (Table(rows=[Row(model="gru")]), (), r"row 1 \(gru/None\): needs a recipe, or a model and a task$"),
        (Table(rows=[Row(recipe="gru/adding", task="adding")]), (), r"chooses model and task itself"),
        (Table(rows=[Row(model="gru", task="x")]), (), r"row 1 \(gru/x\): task=x: no such choice"),
        (Table(rows=[Row(recipe="gru/adding")]), ("model.hiden=3",), r"row 1 \(gru/adding\): model.hiden: no such key"),
        (Table(rows=[Row(recipe="gru/adding")]), ("seed=3",), r"^seed=3: is no setting of a sweep; write seeds=N$"),
        (Table(rows=[Row(recipe="gru/adding")]), ("fresh=true",), r"^fresh=true: is no setting of a sweep$"),
    ],
)
def test_a_wrong_row_is_named(table, overrides, message):
    with pytest.raises(UserError, match=message):
        expand("test", table, 1, overrides)


def test_a_whole_group_wins_over_the_keys_of_a_table():
    table = compose_object("sweep", ["table=adding_500"]).table
    (run, *_) = expand("test", table, 1, ["debug=fast"])
    assert (run.config.training.steps, run.config.training.target) == (4, None)
    assert run.config.task.T == 500


def test_output_that_cannot_be_written(sweep_here, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^output=.*file/sub: cannot make .*\(Not a directory\)$"):
        sweep_here(Sweep(table=Table(rows=ROWS), seeds=1, overrides=list(TINY)), tmp_path / "file" / "sub")


@pytest.mark.parametrize("width", [60, 80, 100, 140, 300])
def test_the_table_fits_the_terminal(width, tmp_path, monkeypatch):
    """Whole words in whole columns, and what has no room is named."""
    changed = {"training.steps": 5000, "training.target": 0.001}
    made = [
        make_record("lem", "adding", seed, recipe="lem/adding", T=500, value=0.0023 + seed / 1000, changed=changed)
        for seed in range(3)
    ]
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr("longwave.sweeps.show.console", console)
    monkeypatch.setattr("longwave.sweeps.show.records.read_run", parsed)
    show_table([SimpleNamespace(state=lambda: "finished", folder=record) for record in made])
    lines = out.getvalue().splitlines()
    (table,) = tables.tables([row for row in rows_of(made) if row.runs])
    told = [line for line in lines if line.startswith("too narrow for ")]
    left_out = told[0].removeprefix("too narrow for ").partition(";")[0].split(", ") if told else []
    assert bool(told) == (width < 140)
    said = ("too narrow for ", "lem/adding: ")
    assert all(len(line) <= width for line in lines if not line.startswith(said))
    words = " ".join(lines).split()
    for name, text in zip(table.header, table.cells[0], strict=True):
        assert (name in left_out) or set(text.split()) <= set(words)
    assert not {"recipe", "ours (n)", "verdict"} & set(left_out)


@pytest.mark.parametrize("width", [60, 300])
def test_the_rows_are_compared(width, monkeypatch):
    made = [
        make_record(model, "adding", seed, recipe=f"{model}/adding", T=500, value=value + seed / 1000)
        for model, value in (("lem", 0.002), ("cornn", 0.1))
        for seed in range(3)
    ]
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr("longwave.sweeps.show.console", console)
    monkeypatch.setattr("longwave.sweeps.show.records.read_run", parsed)
    show_table([SimpleNamespace(state=lambda: "finished", folder=record) for record in made])
    _, _, compared = out.getvalue().partition("Compared")
    lines = [line.split() for line in compared.splitlines() if "/adding" in line]
    assert [line[:2] for line in lines] == [["lem/adding", "1"], ["cornn/adding", "2"]]
    assert width < 300 or lines[1][2:5] == ["35", "[14.8,", "83.1]"]


def test_one_run_is_one(monkeypatch):
    said = []
    monkeypatch.setattr("longwave.sweeps.show.say", said.append)
    run = SimpleNamespace(name="a", title="b", state=lambda: "missing")
    unknown, known = SimpleNamespace(seconds=lambda _: None), SimpleNamespace(seconds=lambda _: 5.0)
    show_plan([run], unknown)
    show_plan([run], known)
    mixed = iter([5.0, None])
    show_plan([run, run], SimpleNamespace(seconds=lambda _: next(mixed)))
    assert [text.partition(";")[0] for text in said] == [
        "0 of 1 run is finished", "0 of 1 run is finished", "0 of 2 runs are finished",
    ]  # fmt: skip
    assert said[2].endswith(", plus 1 run with no earlier run to estimate from")


def test_a_gpu_a_job(tmp_path, monkeypatch):
    """Not by the number of the job: the first two GPUs are taken, the third is given back, and then is free."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"gpu{index}"))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(sweep.tempfile, "gettempdir", lambda: str(tmp_path))
    with sweep.own_gpu(7), sweep.own_gpu(7):
        # The fourth finds none, and takes its turn.
        with sweep.own_gpu(7), sweep.own_gpu(7):
            pass
        with sweep.own_gpu(0), pytest.raises(RuntimeError), sweep.own_gpu(1):
            raise RuntimeError
    with sweep.own_gpu(5):
        pass
    assert chosen == [0, 1, 2, 1, 2, 1, 0]


def test_the_locks_of_gpus_are_in_a_folder_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = sweep.lock_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sweep.lock_folder() == folder
    folder.chmod(0o770)
    with pytest.raises(
        UserError, match=r"^[^\n]*longwave-\d+: may be written by others \(mode 770\); remove it, or set TM"
    ):
        sweep.lock_folder()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(UserError, match=r": is a link; "):
        sweep.lock_folder()
    folder.unlink()
    folder.write_text("")
    with pytest.raises(UserError, match=r": cannot be made \(File exists\); "):
        sweep.lock_folder()


def test_one_gpu_or_none_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: pytest.fail("it was set"))
    for count in (0, 1):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        with sweep.own_gpu(3):
            pass


def test_an_odd_record_is_none(tmp_path):
    """Neither is a run taken for finished by it, nor a time estimated."""
    planned = expand("test", Table(rows=[Row(recipe="gru/adding")]), 1, (f"output={tmp_path}",))[0]
    planned.folder.mkdir(parents=True)
    made = make_record("gru", "adding", recipe="gru/adding", T=500)
    odd = [5, "x", [], {}, {"status": "finished"}, made | {"model": None}, made | {"wall_seconds": "1"}]
    odd += [made | {"config": made["config"] | {"model": sizes}} for sizes in ({"hidden": -1}, {"hidden": "128"})]
    for record in odd:
        (planned.folder / "record.json").write_text(json.dumps(record))
        estimate = Estimate(tmp_path)
        assert not any(known.name == made["name"] for known in estimate.earlier)
        if not isinstance(record, dict) or len(record) < 2:
            assert planned.state() == "missing"
    (planned.folder / "record.json").write_text(json.dumps(made))
    assert any(known.name == made["name"] for known in Estimate(tmp_path).earlier)


ROWS = [
    Row(recipe="cornn/adding"),
    Row(recipe="cornn/adding", overrides=["optimizer=sgd", "optimizer.lr=1000", "training.clip_norm=null"]),
    Row(recipe="lstm/adding"),
]


def test_one_failure_does_not_stop_the_others_and_what_is_finished_is_left_out(sweep_here, tmp_path, capsys):
    output = tmp_path / "outputs"
    for sessions in (1, 2):
        assert sweep_here(Sweep(table=Table(rows=ROWS), seeds=1, overrides=list(TINY))) == 1
        shown = capsys.readouterr().out
        assert shown.count("failed: cornn-adding-seed0-") <= 2
        assert "Diverged: the" in shown
        assert "adding, T = 8: mse" in shown
        found = {(r["model"], r["status"]): r["sessions"] for r in records_in(output).values()}
        # What failed is tried again, what is finished is not.
        assert found == {("cornn", "finished"): 1, ("cornn", "failed"): sessions, ("lstm", "finished"): 1}
    assert sorted(starts(output).values()) == [1, 1, 2]


def test_no_job_is_composed_more_often_than_needed(sweep_here, compositions):
    assert sweep_here(Sweep(table=Table(rows=ROWS[::2]), seeds=5, overrides=list(TINY))) == 0
    # The launcher's of each job and its own; one of each row, and of each recipe as it is.
    assert len(compositions) == 10 + 1 + 2 + 2


def test_dry_run(sweep_here, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("longwave.sweeps.plan.records.FOLDER", tmp_path / "none")
    assert sweep_here(Sweep(table=Table(rows=ROWS[:1]), seeds=1, overrides=list(TINY))) == 0
    capsys.readouterr()
    wanted = Sweep(table=Table(rows=ROWS[::2]), seeds=2, overrides=list(TINY), dry_run=True)
    before = starts(tmp_path / "outputs")
    assert sweep_here(wanted) == 0
    lines = capsys.readouterr().out.splitlines()
    states = [line.split()[2:] for line in lines if "-seed" in line]
    assert states[0] == ["finished"]
    assert [state[0] for state in states[1:]] == ["missing"] * 3
    # The other seed of the same model tells how long it takes, and a start is counted; nothing tells of the LSTM.
    assert states[1][-1] == "s"
    assert float(states[1][-2]) >= SECONDS_BESIDE
    assert lines[-1].startswith("1 of 4 runs are finished; one after another, the rest takes about ")
    assert lines[-1].endswith(", less where runs end early, plus 2 runs with no earlier run to estimate from")
    assert starts(tmp_path / "outputs") == before


def test_the_estimate_is_of_the_nearest_run(tmp_path, monkeypatch):
    monkeypatch.setattr("longwave.sweeps.plan.records.FOLDER", tmp_path)

    def earlier(name, T, seconds, batch=50, **training):
        config = {
            "task": {"T": T},
            "model": {"hidden": 128},
            "training": {"batch_size": batch, "epochs": None, "steps": 100} | training,
        }
        record = make_record("cornn", "adding", steps=100, config=config, wall_seconds=seconds)
        (tmp_path / f"{name}.json").write_text(json.dumps(record))

    earlier("far", 100, 1.0)
    earlier("near", 500, 10.0)
    (tmp_path / "broken.json").write_text("{")
    run = expand("test", Table(rows=ROWS[:1], overrides=["task.T=1000", "training.steps=50"]), 1)[0]
    run.folder = tmp_path / "none"
    # 50 steps of a tenth of a second, each of twice the length.
    assert Estimate(tmp_path / "outputs").seconds(run, started=True) == pytest.approx(50 * 0.1 * 2)
    assert Estimate(tmp_path / "outputs").seconds(run) == pytest.approx(50 * 0.1 * 2 + SECONDS_BESIDE)
    run.folder.mkdir()
    half = make_record("cornn", "adding", status="interrupted", wall_seconds=30.0)
    half["budget"] |= {"steps": 50, "steps_done": 10}
    (run.folder / "record.json").write_text(json.dumps(half))
    assert Estimate(tmp_path / "outputs").seconds(run, started=True) == pytest.approx(40 * 3)
    other = expand("test", Table(rows=ROWS[2:]), 1)[0]
    assert Estimate(tmp_path / "outputs").seconds(other) is None


def test_a_sweep_estimates_by_what_it_has_finished(tmp_path, monkeypatch):
    monkeypatch.setattr("longwave.sweeps.plan.records.FOLDER", tmp_path / "none")
    runs = expand("test", Table(rows=ROWS[:1], overrides=["training.steps=50"]), 2)
    for run in runs:
        run.folder = tmp_path / run.name
        run.folder.mkdir()
    estimate = Estimate(tmp_path)
    with Watch(runs, estimate, {}):
        assert estimate.seconds(runs[1]) is None
        config = runs[0].config.as_dict()
        record = make_record("cornn", "adding", steps=50, config=config, wall_seconds=25.0)
        (runs[0].folder / "record.json").write_text(json.dumps(record))
    assert estimate.seconds(runs[1], started=True) == pytest.approx(25)


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_sweep_measures_what_runs_take_beside_their_steps(at_once, tmp_path, monkeypatch):
    """Every run takes 2 s to start, 3 s of steps and 1 s to end; a failed one and a resumed one as well."""
    monkeypatch.setattr("longwave.sweeps.plan.records.FOLDER", tmp_path / "none")
    runs = expand("test", Table(rows=ROWS[:1], overrides=["training.steps=50"]), 12)
    states, clock = {}, 0.0
    monkeypatch.setattr(Planned, "state", lambda run: states.get(run.name, "missing"))
    monkeypatch.setattr("longwave.sweeps.watch.time.monotonic", lambda: clock)

    def write(run: Planned, status: str, seconds: float):
        run.folder.mkdir(parents=True, exist_ok=True)
        record = make_record("cornn", "adding", status=status, steps=50, wall_seconds=seconds)
        record |= {"config": run.config.as_dict(), "written": f"{status} at {clock}"}
        if status == "failed":
            record["error"] = "UserError: it failed"
        (run.folder / "record.json").write_text(json.dumps(record))

    for run in runs:
        run.folder = tmp_path / run.name
    # Trained for an hour in another sweep.
    write(runs[1], "interrupted", 3600.0)
    watch = Watch(runs, Estimate(tmp_path / "outputs"), {})
    watch._entered = clock
    for first in range(0, 9, at_once):
        batch = runs[first : first + at_once]
        clock += 2
        states |= {run.name: "running" for run in batch}
        watch._look()
        clock += 4
        for run in batch:
            failed = run is runs[0]
            states[run.name] = "failed" if failed else "finished"
            write(run, states[run.name], 3603.0 if run is runs[1] else 3.0)
        watch._look()
        assert watch.estimate.beside == pytest.approx(3)
    # In the middle of a long run, the time of its steps is not taken for that of its start.
    clock += 2
    states |= {run.name: "running" for run in runs[9 : 9 + at_once]}
    watch._look()
    clock += 1000
    watch._look()
    assert watch.estimate.beside == pytest.approx(3, abs=0.5)


def test_the_estimate_of_tiny_runs_counts_their_start(sweep_here, tmp_path, monkeypatch, capsys):
    """What it says after the runs are done, of as many more, is what they took; their steps alone are far less."""
    monkeypatch.setattr("longwave.sweeps.plan.records.FOLDER", tmp_path / "none")
    watched = []
    monkeypatch.setattr(sweep, "Watch", lambda *args: watched.append(Watch(*args)) or watched[0])
    began = time.monotonic()
    assert sweep_here(Sweep(table=Table(rows=ROWS[:1]), seeds=6, overrides=list(TINY))) == 0
    took = time.monotonic() - began
    (watch,) = watched
    said = sum(watch.estimate.seconds(run) for run in watch.runs)
    assert took / 2 < said < took * 1.5


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [name for name in LAUNCHERS if name != "basic"])
def test_launchers(launcher, sweep_process):
    overrides, module = LAUNCHERS[launcher]
    if not installed(module):
        pytest.skip(f"{module} is not installed: pip install -e .[{launcher.split('_')[0]}]")
    done = sweep_process.run("table=cornn_adding", "seeds=1", *TINY, *overrides)
    assert done.returncode == 0, done.stdout
    found = records_in(sweep_process.output)
    assert [(r["model"], r["status"]) for r in found.values()] == [
        (model, "finished") for model in ("cornn", "exprnn", "lstm", "rnn")
    ]
    assert "4/4 done, 0 failed" in done.stdout
    assert "Traceback" not in done.stdout
    assert "adding, T = 8: mse" in done.stdout


LONGER = (*TINY, "training.steps=300", "training.evaluate_every=50", "training.checkpoint_seconds=0.05")


def outcome(output: Path) -> list[list[str]]:
    """The table of all runs, less what a clock says."""
    found = [records.read_run(folder) for folder in sorted((output / "runs").iterdir())]
    (table,) = tables.tables([row for row in tables.rows(found) if row.runs])
    timed = table.header.index("time a run")
    return [cells[:timed] + cells[timed + 1 :] for cells in table.cells]


@pytest.mark.slow
def test_killed_again_and_again_the_table_is_the_same(sweep_process, sweep_here, tmp_path):
    rng = random.Random(0)
    command = ("table=cornn_adding", "seeds=2", *merge(LONGER))
    for kill in range(1, 4):
        process = sweep_process.start(*command)
        deadline = time.monotonic() + 100
        while process.poll() is None and time.monotonic() < deadline:
            if sum(record["status"] == "finished" for record in records_in(sweep_process.output).values()) >= kill:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        assert process.poll() is None, process.stdout.read()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = sweep_process.run(*command)
    assert done.returncode == 0, done.stdout
    whole = tmp_path / "whole"
    table = compose_object("sweep", ["table=cornn_adding"]).table
    assert sweep_here(Sweep(table=table, seeds=2, overrides=merge(LONGER)), whole) == 0
    assert outcome(sweep_process.output) == outcome(whole)
    assert len(records_in(whole)) == 8


@pytest.mark.slow
def test_two_at_once_run_nothing_twice(sweep_process):
    command = ("table=cornn_adding", "seeds=2", *merge(LONGER))
    processes = [sweep_process.start(*command) for _ in range(2)]
    shown = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], shown
    assert all("8/8 done, 0 failed" in text for text in shown)
    assert list(starts(sweep_process.output).values()) == [1] * 8
    found = records_in(sweep_process.output).values()
    assert {(record["status"], record["sessions"]) for record in found} == {("finished", 1)}


SEARCH = Search(
    overrides=["model=cornn", "task=adding", *TINY],
    space={"optimizer.lr": Range(low=1e-3, high=1e-1, log=True), "model.hidden": Range(low=2, high=5, whole=True)},
    trials=3,
)


def study_in(output: Path):
    return search.open_study(output / "searches" / "test.log", "test", SEARCH)


def test_a_search_goes_on_where_it_was_interrupted(sweep_here, tmp_path, monkeypatch, capsys):
    output = tmp_path / "outputs"
    train_step, count = loop.Trainer.train_step, 0

    def dying(trainer):
        nonlocal count
        count += 1
        # In the middle of the second trial.
        if count == 10:
            raise KeyboardInterrupt
        train_step(trainer)

    with monkeypatch.context() as m:
        m.setattr("longwave.training.loop.Trainer.train_step", dying)
        with pytest.raises(KeyboardInterrupt):
            sweep_here(Sweep(search=SEARCH))
    states = [trial.state.name for trial in study_in(output).trials]
    assert states == ["COMPLETE", "RUNNING"]
    capsys.readouterr()
    assert sweep_here(Sweep(search=SEARCH)) == 0
    shown = capsys.readouterr().out
    assert "1 trial was interrupted, and will be resumed" in shown
    trials = study_in(output).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials[2].params == trials[1].params
    assert trials[2].user_attrs["run"] == trials[1].user_attrs["run"]
    found = records_in(output)
    assert len(found) == 3
    assert found[trials[1].user_attrs["run"]]["sessions"] == 2
    best = min(trials, key=lambda trial: trial.value if trial.value is not None else 9)
    command = next(line for line in shown.splitlines() if line.startswith("the best: python train.py "))
    config, _ = compose_run(command.removeprefix("the best: python train.py ").split())
    assert folder_of(config).name == best.user_attrs["run"]
    # Enough trials: nothing more is done.
    assert sweep_here(Sweep(search=SEARCH)) == 0
    assert len(study_in(output).trials) == 4


def test_a_search_prunes(sweep_here, tmp_path):
    import optuna

    output = tmp_path / "outputs"
    wanted = Search(SEARCH.overrides, SEARCH.space, trials=12, startup=10)
    study = search.open_study(output / "searches" / "test.log", "test", wanted)
    space = search.distributions(wanted)
    for lr in range(10):
        # Far better than anything that six steps can reach.
        params = {"optimizer.lr": 0.01 + lr / 1000, "model.hidden": 3}
        made = optuna.trial.create_trial(
            params=params, distributions=space, value=0.0, intermediate_values={3: 0.0, 6: 0.0}, user_attrs={"run": "-"}
        )
        study.add_trial(made)
    assert sweep_here(Sweep(search=wanted)) == 0
    states = [trial.state.name for trial in study_in(output).trials[10:]]
    assert states == ["PRUNED", "PRUNED"]
    for record in records_in(output).values():
        assert (record["status"], record["budget"]["steps_done"]) == ("interrupted", 3)
        assert record["error"].startswith("Pruned: pruned at step 3")


def test_a_search_that_cannot_be_is_refused(sweep_here, tmp_path):
    wrong = Search(SEARCH.overrides, SEARCH.space, direction="maximize", trials=1)
    assert sweep_here(Sweep(search=wrong), tmp_path / "a") == 1
    sweep_here(Sweep(search=Search(SEARCH.overrides, SEARCH.space, trials=1)), tmp_path / "b")
    with pytest.raises(UserError, match=r"^direction=maximize: .* was made for minimize$"):
        sweep_here(Sweep(search=wrong), tmp_path / "b")
    with pytest.raises(UserError, match=r"^optimizer.lr=1: is no setting of search=test$"):
        sweep_here(Sweep(search=SEARCH, overrides=["optimizer.lr=1"]))
    with pytest.raises(UserError, match=r"^search=test: model.hiden: no such key"):
        sweep_here(Sweep(search=Search(SEARCH.overrides, {"model.hiden": Range(1, 2)})))
    # A study without trials is anybody's.
    for T in (9, 8):
        wanted = Search([*SEARCH.overrides, f"task.T={T}"], SEARCH.space)
        config = compose_run([*wanted.overrides, "optimizer.lr=0.01"])[0]
        path = tmp_path / "empty.log"
        search.hold_to(search.open_study(path, "test", wanted), path, wanted, config)
    # Trials of another length are not to be compared with, nor those of another space.
    longer = Search(["model=cornn", "task=adding", *TINY, "task.T=9"], SEARCH.space)
    with pytest.raises(UserError, match=r"b/searches/test.log is of another search: task.T was 8 and is 9; choose"):
        sweep_here(Sweep(search=longer), tmp_path / "b")
    fewer = Search(SEARCH.overrides, {"model.hidden": SEARCH.space["model.hidden"]})
    with pytest.raises(UserError, match=r"is of another search: optimizer.lr was searched and is "):
        sweep_here(Sweep(search=fewer), tmp_path / "b")
    other = Search(SEARCH.overrides, SEARCH.space | {"model.hidden": Range(choices=[2, 3])})
    with pytest.raises(UserError, match=r"test.log has another space for model.hidden: "):
        sweep_here(Sweep(search=other), tmp_path / "b")
    wider = Search(SEARCH.overrides, SEARCH.space | {"model.hidden": Range(2, 9, whole=True)}, trials=1)
    assert sweep_here(Sweep(search=wider, overrides=["device=cpu"]), tmp_path / "b") == 0
    for kwargs in ({"low": 1.0}, {"low": 2.0, "high": 1.0}, {"low": 0.0, "high": 1.0, "log": True}):
        with pytest.raises(ValueError, match=r"^(choices|low)="):
            Range(**kwargs)


@pytest.mark.parametrize("name", choices("search"))
def test_every_search_composes(name):
    found = compose_object("sweep", [f"search={name}"]).search
    for end in ("low", "high"):
        params = {key: getattr(values, end) for key, values in found.space.items()}
        compose_run([*found.overrides, *search.overrides_of(params)])


@pytest.mark.parametrize("name", ["cornn_adding"])
def test_sweeps_of_wandb_have_overrides_of_train(name, tmp_path):
    path = CONF / "wandb" / f"{name}.yaml"
    found = yaml.safe_load(path.read_text())
    assert found["program"] == "train.py"
    assert "${args_no_hyphens}" in found["command"]
    for end in ("min", "max"):
        values = {key: value.get("value", value.get(end)) for key, value in found["parameters"].items()}
        config, _ = compose_run([f"{key}={value}" for key, value in values.items()])
    task = config.task.build(0, tmp_path)
    assert found["metric"]["name"] == f"{task.monitor}/{task.metric}"
    assert (found["metric"]["goal"] == "maximize") == task.higher_is_better
    if path.stem in choices("search"):
        # The same search, twice.
        other = compose_object("sweep", [f"search={path.stem}"]).search
        ranges = {key: (value["min"], value["max"]) for key, value in found["parameters"].items() if "min" in value}
        assert ranges == {key: (values.low, values.high) for key, values in other.space.items()}


def test_help_lists_the_tables(sweep_process):
    done = subprocess.run(sweep_process.arguments("--help"), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0
    assert ", ".join(choices("table")) in done.stdout
