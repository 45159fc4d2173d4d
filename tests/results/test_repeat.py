import json
import signal
import sys

import pytest

from longwave.results import collect, records, repeat
from longwave.training.errors import Diverged, UserError
from longwave.training.record import Git

SMALL = (
    "task.T=6", "model.hidden=3", "training.batch_size=2", "task.test_samples=10", "training.steps=2",
    "training.target=null", "model=cornn", "task=adding", "threads=1",
)  # fmt: skip


@pytest.fixture
def record(fit_here, tmp_path):
    _, folder = fit_here(*SMALL)
    path = folder / "record.json"
    kept = json.loads(path.read_text()) | {"command": "python train.py " + " ".join(SMALL)}
    path.write_text(json.dumps(kept))
    collect.collect(folder.parent, tmp_path / "records", force=True)
    return tmp_path / "records" / f"{folder.name}.json"


def test_a_record_repeats(record, tmp_path, capfd):
    repeat.main([str(record), f"output={tmp_path}/again", "tracking=none"])
    out = capfd.readouterr().out
    (folder,) = (tmp_path / "again" / "runs").iterdir()
    assert folder.name == record.stem
    mse = records.read(record).metrics["test"]["mse"]
    assert f"test mse: {mse:.6g} then, {mse:.6g} now, the same" in out
    assert "commit" not in out


def test_what_differs_is_said(record):
    then = records.read(record)
    now = records.read(record)
    now.metrics["test"]["mse"] = 0.5
    now.packages["torch"] = "9.9"
    # The commit of the run, which may have been made before the present one was checked out.
    then.git, now.git = Git(commit="a" * 40, dirty=False), Git(commit="b" * 40, dirty=False)
    lines = list(repeat.compare(then, now))
    assert lines[0] == "commit: aaaaaaaaaa then, bbbbbbbbbb now"
    assert f"torch: {then.packages['torch']} then, 9.9 now" in lines
    assert lines[-1] == f"test mse: {then.metrics['test']['mse']:.6g} then, 0.5 now"
    del now.metrics["test"]
    assert list(repeat.compare(then, now))[-1] == f"test mse: {then.metrics['test']['mse']:.6g} then, not there now"


def test_a_run_that_diverged(fit_here, tmp_path, capfd, monkeypatch):
    command = (*SMALL, "model=indrnn", "task.T=60", "optimizer.lr=1000")
    with pytest.raises(Diverged):
        fit_here(*command)
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    kept = json.loads((folder / "record.json").read_text()) | {"command": "python train.py " + " ".join(command)}
    (folder / "record.json").write_text(json.dumps(kept))
    collect.collect(folder.parent, tmp_path / "records")
    arguments = [str(tmp_path / "records" / f"{folder.name}.json"), f"output={tmp_path}/again", "tracking=none"]
    repeat.main(arguments)
    assert "diverged: at step 2 then, at step 2 now\n" in capfd.readouterr().out
    # Now that there is a record of it, a run that fails before it trains has not diverged again.
    monkeypatch.setattr(repeat, "_run", lambda _: 1)
    with pytest.raises(SystemExit):
        repeat.main(arguments)
    assert capfd.readouterr().err.endswith("error: the run ended with exit code 1\n")


def test_a_command_that_now_means_another_run(record, monkeypatch, capsys):
    kept = json.loads(record.read_text())
    kept["config"]["optimizer"]["lr"] = 0.5
    kept["config"]["model"]["gone"] = True
    record.write_text(json.dumps(kept))
    monkeypatch.setattr(repeat, "_run", lambda _: pytest.fail("it ran"))
    with pytest.raises(SystemExit) as stopped:
        repeat.main([str(record)])
    assert stopped.value.code == 1
    message = capsys.readouterr().err
    assert "now means another run" in message
    assert "model.gone was True and is not there, optimizer.lr was 0.5 and is 0.02" in message
    assert "--anyway" in message


def test_overrides_that_cannot_change_the_numbers_are_welcome(record, monkeypatch):
    asked = []

    def run(command):
        asked.append(command)
        return 3

    monkeypatch.setattr(repeat, "_run", run)
    with pytest.raises(UserError, match="the run ended with exit code 3"):
        repeat.repeat(records.read(record), ["device=cpu", "data.root=x"])
    assert asked[0][-3:] == ["output=outputs/repeats", "device=cpu", "data.root=x"]
    with pytest.raises(
        UserError, match=r"^optimizer\.lr=0\.5: makes another run: optimizer\.lr was 0\.02 and is 0\.5\."
    ):
        repeat.repeat(records.read(record), ["optimizer.lr=0.5"])


def test_by_name(record, monkeypatch, tmp_path):
    monkeypatch.setattr(records, "FOLDER", record.parent)
    assert repeat.find(record.stem) == repeat.find(str(record)) == repeat.find(record.name)
    with pytest.raises(ValueError, match="nobody: it cannot be read"):
        repeat.find("nobody")


# The run asks this process to end, as a terminal or a scheduler does.
RUN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
os.kill(os.getppid(), signal.{})
{}
"""


@pytest.mark.parametrize(
    ("name", "then", "code"), [("SIGINT", "sys.exit(130)", 130), ("SIGTERM", "time.sleep(60)", 143)]
)
def test_a_run_saves_before_this_process_ends(name, then, code):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert repeat._run([sys.executable, "-c", RUN.format(name, then)]) == code
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
