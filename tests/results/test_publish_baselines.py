import re

import pytest
import wandb

from longwave.results import publish_baselines, published
from longwave.training import tracking
from longwave.training.errors import UserError
from longwave.training.tracking import Tracking
from tests.results.cases import make_record
from tests.training.test_tracking import FakeRun, read

KEY = "cornn/psmnist_256"


def test_only_what_was_read_and_has_a_value():
    found = publish_baselines.baselines()
    assert found[KEY].value == 0.973
    assert len(found) > 50
    # The recipes' data sets of the archives are tasks, too; a mean of several is none.
    assert "linoss/uea_scp1_im" in found
    assert "linoss/uea_average_im" not in found
    assert not any(key.startswith(published.UNVERIFIED) for key in found)
    remembered = {(r.model, r.task, r.value) for r in published.load(published.UNVERIFIED).values()}
    assert ("chrono_lstm", "ncifar10", 0.559) in remembered
    assert not any((r.model, r.task, r.value) == ("chrono_lstm", "ncifar10", 0.559) for r in found.values())
    # Ids are folders' names, and no two are the same.
    ids = {publish_baselines.identity(key, record) for key, record in found.items()}
    assert len(ids) == len(found)


def test_offline_twice(save, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    runs, output = save(make_record(steps=57000)), tmp_path / "outputs"
    arguments = [KEY, "--mode", "offline", "--output", str(output), "--runs", str(runs)]
    publish_baselines.main(arguments)
    out = capsys.readouterr().out
    assert "1 logged, 0 were there already" in out
    assert f"wandb sync {output}/wandb/*-baseline-*" in out
    (folder,) = (output / "wandb").glob("offline-run-*-baseline-*")
    shown = read(folder)
    # A line from the first step to the last of the longest run, where ours are drawn.
    assert shown.history == [{"step": s, "validation/accuracy": 0.973, "test/accuracy": 0.973} for s in (0, 57000)]
    assert (shown.run.project, shown.run.run_group, shown.run.job_type) == ("longwave", "psmnist-published", "baseline")
    assert shown.run.run_id == publish_baselines.identity(KEY, published.get(KEY))
    assert shown.summary["published/value"] == 0.973
    assert shown.config["published"] == KEY
    assert shown.summary["final/test/accuracy"] == 0.973
    publish_baselines.main(arguments)
    assert "0 logged, 1 was there already" in capsys.readouterr().out
    assert len(list((output / "wandb").glob("offline-run-*"))) == 1


def test_a_value_of_a_part_of_the_test_set_stands_beside_ours_on_that_part(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    output = tmp_path / "outputs"
    publish_baselines.main(["lem/fitzhugh_nagumo", "--mode", "offline", "--output", str(output)])
    (folder,) = (output / "wandb").glob("offline-run-*-baseline-*")
    summary = read(folder).summary
    assert summary["final/test_last_128/rmse"] == 0.0023766
    assert "final/test/rmse" not in summary


def test_online_what_is_there_is_left_alone(tmp_path, monkeypatch):
    told, made = [], []

    def init(**arguments):
        told.append(arguments)
        run = FakeRun(logged=0)
        run.resumed = len(told) > 1
        made.append(run)
        return run

    monkeypatch.setattr(wandb, "init", init)
    for _ in range(2):
        lines = publish_baselines.publish(Tracking(mode="online"), tmp_path, (KEY,), tmp_path)
    assert lines == ["0 logged, 1 was there already"]
    assert told[0]["id"] == told[1]["id"]
    assert (told[0]["mode"], told[0]["resume"]) == ("online", "allow")
    assert [entry["step"] for entry in made[0].entries] == [0, 100_000]
    assert made[1].entries == []


def test_who_cannot_be_reached_is_asked_once(tmp_path, monkeypatch, caplog):
    modes = []

    def init(**arguments):
        modes.append(arguments["mode"])
        if arguments["mode"] == "online":
            raise wandb.errors.CommError("no network")
        run = FakeRun(logged=0)
        run.resumed, run.sync_dir = False, "somewhere"
        return run

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(tracking, "_retry_at", 0.0)
    monkeypatch.setattr(wandb, "init", init)
    lines = publish_baselines.publish(Tracking(), tmp_path, ("cornn/psmnist",), tmp_path)
    assert modes == ["online"] + ["offline"] * (len(modes) - 1)
    assert len(modes) > 2
    assert lines[0] == f"{len(modes) - 1} logged, 0 were there already"
    assert "logging offline" in caplog.text


def test_a_key_that_is_none(tmp_path):
    with pytest.raises(UserError, match="nothing/here: no published value's key begins with that"):
        publish_baselines.publish(Tracking(mode="offline"), tmp_path, ("nothing/here",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--runs", "none"), "error: --runs none: no such folder\n"),
        (("--output", "f/x"), r"error: output=.*f/x: "),
    ],
)
def test_a_folder_that_is_not_to_be_had(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LONGWAVE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").write_text("")
    with pytest.raises(SystemExit) as stopped:
        publish_baselines.main([KEY, "--mode", "offline", *arguments])
    assert stopped.value.code == 1
    assert re.match(message, capsys.readouterr().err)


def test_switched_off(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(SystemExit) as stopped:
        publish_baselines.main([KEY, "--output", str(tmp_path)])
    assert stopped.value.code == 1
    assert capsys.readouterr().err == (
        "error: WANDB_MODE=disabled: nothing would be logged; must be online or offline\n"
    )
