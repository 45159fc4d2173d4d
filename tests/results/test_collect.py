import itertools
import json
import shlex
import shutil

import pytest

from longwave import home, train
from longwave.results import collect, records
from longwave.training.config import compose_run
from longwave.training.errors import Diverged, UserError
from longwave.training.record import Git
from tests.results.cases import make_record, parsed

SMALL = (
    "task.T=6", "model.hidden=3", "training.batch_size=2", "task.test_samples=10", "training.steps=6",
    "training.evaluate_every=2", "training.log_every=1", "training.target=null",
)  # fmt: skip


# Damage that is good JSON all the same: of a record, and as a line more of a history.
PARTS = {
    "empty config": {"config": {}},
    "number for training": {"config": {"model": {}, "task": {}, "training": 5}},
    "size": {"config": {"model": {"hidden": "3"}, "task": {}, "training": {}}},
    "empty git": {"git": {}},
    "git": {"git": "c0ffee"},
    "no scores": {"metrics": {}},
    "nan": {"metrics": {"test": {"mse": float("nan")}}},
    "no time": {"wall_seconds": None},
    "recipe": {"recipe": 3},
    "published": {"published": "cornn/adding"},
    "steps": {"budget": {"steps": 6, "steps_done": 6, "steps_in_recipe": "60000"}},
    "memory": {"peak_memory_bytes": "much"},
}
LINES = {
    "number": "5",
    "no step": '{"train/mse": 1.0}',
    "null": '{"step": 7, "train/mse": null}',
    "nan line": '{"step": 7, "train/mse": NaN}',
    "text": '{"step": 7, "epoch": "1", "train/mse": 1.0}',
}

CLEAN = {"commit": "c" * 40, "dirty": False}


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Runs here are of a commit, whatever the state of the tree."""
    monkeypatch.setattr("longwave.training.environment.git", lambda: Git(**CLEAN))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run that was trained once."""
    config, recipe = compose_run([*SMALL, "tracking=none", f"output={tmp_path_factory.mktemp('once')}"])
    train.train(config, recipe, "python train.py " + shlex.join(SMALL))
    (folder,) = (home() / config.output / "runs").iterdir()
    alter(folder, git=CLEAN)
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "outputs" / "runs" / trained.name)


@pytest.fixture
def into(tmp_path):
    return tmp_path / "records"


def alter(folder, **changes):
    path = folder / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_finished_run_is_copied_once(folder, into):
    objective = json.loads((folder / "record.json").read_text())["objective"]["value"]
    lines = collect.collect(folder.parent, into)
    assert lines == [
        f"collected {folder.name}",
        "1 collected, 0 updated, 0 unchanged, 0 refused, 0 damaged",
    ]
    record = records.read(into / f"{folder.name}.json")
    assert record.metrics["test"]["mse"] == objective
    assert record.git.commit == "c" * 40
    assert record.curves["train/mse"].step == [1, 2, 3, 4, 5, 6]
    assert record.curves["test/mse"].step == [2, 4, 6]
    assert record.curves["test/mse"].value[-1] == pytest.approx(objective, rel=1e-4)
    assert set(record.curves) == {"train/mse", "train/grad_norm", "test/mse"}
    assert record.steps_per_epoch is None
    assert "forced" not in record
    assert collect.collect(folder.parent, into)[-1].startswith("0 collected, 0 updated, 1 unchanged")
    alter(folder, wall_seconds=1.5)
    assert collect.collect(folder.parent, into)[0] == f"updated {folder.name}"
    assert records.read(into / f"{folder.name}.json").wall_seconds == 1.5


def test_nothing_of_the_machine_is_kept(fit_here, into, tmp_path):
    _, folder = fit_here(*SMALL, f"data.root={tmp_path}", "tracking.notes=secret")
    command = [
        "python", "train.py", *SMALL, f"output={tmp_path}", f"data.root={tmp_path}", "tracking=wandb",
        "+tracking.entity=me", "~tracking.tags", "seed=0", "model.dt=0.5",
    ]  # fmt: skip
    alter(folder, command=shlex.join(command))
    collect.collect(folder.parent, into)
    record = records.read(into / f"{folder.name}.json")
    assert shlex.split(record.command) == ["python", "train.py", *SMALL, "seed=0", "model.dt=0.5"]
    assert not {"data", "output", "tracking"} & record.config.keys()
    text = (into / f"{folder.name}.json").read_text()
    assert str(tmp_path) not in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"git": {"commit": "c", "dirty": True}}, "from a dirty tree"),
        ({"git": None}, "of an unknown commit"),
        ({"status": "failed", "error": "ZeroDivisionError: a bug"}, "failed (ZeroDivisionError: a bug)"),
        ({"status": "interrupted"}, "interrupted"),
    ],
)
def test_refused_unless_forced(folder, into, change, reason):
    alter(folder, **change)
    lines = collect.collect(folder.parent, into, publish=True)
    assert lines == [
        f"refused {folder.name}: {reason}",
        "0 collected, 0 updated, 0 unchanged, 1 refused, 0 damaged",
    ]
    assert list(into.iterdir()) == []
    forced = collect.collect(folder.parent, into, force=True, publish=True)
    assert forced[0] == f"collected {folder.name}: forced ({reason})"
    assert records.read(into / f"{folder.name}.json").forced == [reason]


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("training.overfit=true", "trained on one batch"),
        ("training.limit_evaluation=1", "tested on a part of the test set"),
    ],
)
def test_what_is_no_result_is_refused(fit_here, into, override, reason):
    _, folder = fit_here(*SMALL, "training.steps=2", override)
    assert collect.collect(folder.parent, into, publish=True)[0] == f"refused {folder.name}: {reason}"
    # For oneself, anything that is finished.
    assert collect.collect(folder.parent, into)[0] == f"collected {folder.name}"
    assert not records.read(into / f"{folder.name}.json").forced


def test_only_publishing_touches_the_checkout(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, "FOLDER", tmp_path / "committed")
    alter(folder, git={"commit": "c", "dirty": True})
    output = folder.parent.parent
    collect.main(["--output", str(output)])
    assert capsys.readouterr().out.startswith(f"collected {folder.name}\n")
    assert [path.stem for path in (output / "records").iterdir()] == [folder.name]
    assert not records.FOLDER.exists()
    collect.main(["--output", str(output), "--publish"])
    assert capsys.readouterr().out.startswith(f"refused {folder.name}: from a dirty tree\n")
    # The same folder by its name.
    collect.main(["--output", str(output), "--into", str(records.FOLDER)])
    assert capsys.readouterr().out.startswith(f"refused {folder.name}: from a dirty tree\n")
    alter(folder, git=CLEAN)
    collect.main(["--output", str(output), "--publish"])
    assert [path.stem for path in records.FOLDER.iterdir()] == [folder.name]


def test_a_run_that_diverged_is_a_result(fit_here, into, tmp_path):
    with pytest.raises(Diverged, match=r"^the norm of the gradient is inf at step 2"):
        fit_here(*SMALL, "model=indrnn", "task.T=60", "optimizer.lr=1000")
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert collect.collect(folder.parent, into, publish=True)[0] == f"collected {folder.name}"
    record = records.read(into / f"{folder.name}.json")
    assert (record.diverged, record.failed_step, record.metrics, record.forced) == (True, 2, {}, [])
    alter(folder, git={"commit": "c", "dirty": True})
    assert collect.collect(folder.parent, into, publish=True)[0] == f"refused {folder.name}: from a dirty tree"


def test_force_does_not_replace_what_needed_none(folder, into):
    collect.collect(folder.parent, into)
    good = (into / f"{folder.name}.json").read_bytes()
    alter(folder, status="failed")
    assert "the record that is there needed no force" in collect.collect(folder.parent, into, force=True)[0]
    assert (into / f"{folder.name}.json").read_bytes() == good


def test_force_replaces_what_is_damaged(folder, into):
    alter(folder, status="failed")
    target = into / f"{folder.name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text("{")
    assert collect.collect(folder.parent, into, force=True)[0].startswith(f"updated {folder.name}: forced (failed")
    assert records.read(target).status == "failed"


def test_a_damaged_run_is_named_and_passed_over(folder, into):
    kinds = ("record", "history", "no history", "keys", "list", *PARTS, *LINES)
    broken = {kind: shutil.copytree(folder, folder.parent / f"broken {kind}") for kind in kinds}
    (broken["record"] / "record.json").write_text('{"status": "fini')
    (broken["history"] / "history.jsonl").write_text("{}\n[1, \n")
    (broken["no history"] / "history.jsonl").unlink()
    record = json.loads((broken["keys"] / "record.json").read_text())
    (broken["keys"] / "record.json").write_text(json.dumps({**record, "metrics": None}))
    (broken["list"] / "record.json").write_text("[]")
    for kind, part in PARTS.items():
        (broken[kind] / "record.json").write_text(json.dumps(record | part))
    for kind, line in LINES.items():
        with open(broken[kind] / "history.jsonl", "a") as out:
            out.write(f"{line}\n")
    lines = collect.collect(folder.parent, into)
    assert lines[-1] == f"1 collected, 0 updated, 0 unchanged, 0 refused, {len(kinds)} damaged"
    assert collect.collect(folder.parent, into, force=True)[-1].endswith(f"{len(kinds)} damaged")
    for damaged in broken.values():
        assert any(line.startswith(f"damaged {damaged.name}: ") for line in lines)
    assert any("metrics: Input should be an object" in line for line in lines)
    assert [path.stem for path in into.iterdir()] == [folder.name]


def test_a_line_cut_off_by_a_kill(folder, into):
    with open(folder / "history.jsonl", "a") as out:
        out.write('{"step": 7, "train/ms')
    assert collect.collect(folder.parent, into)[0] == f"collected {folder.name}"


def test_a_run_that_has_only_been_started_is_not_damaged(folder, into):
    begun = folder.parent / "cornn-adding-seed1-0123456789"
    begun.mkdir()
    (begun / "log.txt").write_text("")
    lines = collect.collect(folder.parent, into)
    assert f"refused {begun.name}: it has not begun to train" in lines
    assert lines[-1].startswith("1 collected, 0 updated, 0 unchanged, 1 refused, 0 damaged")


def test_runs_by_the_beginning_of_their_names(folder, into):
    shutil.copytree(folder, folder.parent / "cornn-adding-seed1-0123456789")
    collect.collect(folder.parent, into, ("cornn-adding-seed0",))
    assert [path.stem for path in into.iterdir()] == [folder.name]
    with pytest.raises(UserError, match=r"lem: no run in .* begins with that"):
        collect.collect(folder.parent, into, ("lem",))


def test_no_runs_at_all(tmp_path, into, capsys):
    with pytest.raises(UserError, match="there are no runs; name another folder with --output"):
        collect.collect(tmp_path / "runs", into)
    with pytest.raises(SystemExit) as stopped:
        collect.main(["--output", str(tmp_path)])
    assert stopped.value.code == 1
    assert "error: " in capsys.readouterr().err


def test_curves_are_thinned_evenly_and_keep_their_ends():
    history = [{"step": i, "seconds": 0.1, "lr": 0.1, "a": i / 3} for i in range(1, 5001)]
    history[99]["b"] = 1.0
    found = records.curves(history)
    assert set(found) == {"a", "b"}
    steps = found["a"]["step"]
    assert (len(steps), steps[0], steps[-1]) == (records.POINTS, 1, 5000)
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert set(gaps) <= {25, 26}
    assert all(v == pytest.approx(s / 3, rel=1e-4) for s, v in zip(steps, found["a"]["value"], strict=True))
    assert found["b"] == {"step": [100], "value": [1.0]}
    assert records.curves([]) == {}


def test_epochs(fit_here, into, fake_mnist, monkeypatch):
    monkeypatch.setenv("LONGWAVE_DATA", str(fake_mnist))
    monkeypatch.setattr("longwave.tasks.base.ArrayTask.evaluation_batch", 20)
    _, folder = fit_here("model=cornn", "task=smnist", "debug=fast", "model.hidden=2", "training.batch_size=64")
    collect.collect(folder.parent, into, force=True)
    record = records.read(into / f"{folder.name}.json")
    assert record.steps_per_epoch == -(-57000 // 64)
    assert record.curves["validation/accuracy"].step


def test_a_record_that_is_none(tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text("{}")
    (tmp_path / "c.json").write_bytes(b"\xff\xfe")
    (tmp_path / "copy.json").write_text(json.dumps(make_record()))
    (tmp_path / "notes.txt").write_text("")
    found, damaged = records.load(tmp_path)
    assert found == []
    assert [line.split()[0] for line in damaged] == ["a.json", "b.json", "c.json", "copy.json"]
    assert damaged[3].endswith("its name is cornn-psmnist-seed0-0123456789")
    assert "status: Field required" in damaged[1]
    assert records.load(tmp_path / "nowhere") == ([], [])


def test_groups_differ_in_the_seed_only(folder, into):
    collect.collect(folder.parent, into)
    (found,) = records.load(into)[0]
    one = found.dump()
    other_seed = one | {"seed": 1, "config": one["config"] | {"seed": 1, "device": "cuda", "threads": 7}}
    later = one["config"]["training"] | {"checkpoint_seconds": 5}
    third_seed = one | {"seed": 2, "config": one["config"] | {"seed": 2, "training": later}}
    other_model = one | {"config": one["config"] | {"model": one["config"]["model"] | {"dt": 0.5}}}
    failed = one | {"seed": 3, "status": "failed"}
    found = records.groups(map(parsed, [third_seed, failed, other_model, other_seed, one]))
    assert sorted([run.seed for run in group.runs] for group in found) == [[0], [0, 1, 2]]
    assert sorted(len(group.unfinished) for group in found) == [0, 1]
