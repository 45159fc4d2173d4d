import errno
import json
import os
import re
import shutil
import sys
import time

import pytest
import torch

from longwave.train import command_of
from longwave.training.errors import UserError
from longwave.training.run import is_locked
from tests import stand_ins

SMALL = (
    "task=adding", "task.T=6", "model.hidden=3", "training.batch_size=2", "task.test_samples=10", "training.steps=4",
    "training.target=null",
)  # fmt: skip


def test_the_same_command_reports_a_finished_run(train_process, fit_here, caplog):
    first = train_process.run(*SMALL, "tracking=none")
    assert first.returncode == 0, first.stdout
    # No terminal, no bar.
    assert "\x1b" not in first.stdout
    assert "\r" not in first.stdout
    assert any("step 4/4" in line and "mse" in line and "steps/s" in line for line in first.stdout.splitlines())
    (folder,) = train_process.runs()
    written = (folder / "record.json").stat().st_mtime_ns
    caplog.set_level("INFO")
    fit_here(*SMALL, output=train_process.output)
    assert "is finished already; fresh=true runs it again" in caplog.text
    result = [line for line in first.stdout.splitlines() if line.startswith(("test", "record"))]
    assert len(result) == 3
    assert all(line in "\n".join(caplog.messages) for line in result)
    assert (folder / "record.json").stat().st_mtime_ns == written


def test_two_processes_on_one_run(train_process, fit_here, monkeypatch, caplog):
    arguments = (*SMALL, "training.steps=100000", "training.checkpoint_seconds=0", "tracking=none")
    first = train_process.start(*arguments)
    while not train_process.runs() or not (train_process.runs()[0] / "checkpoint.pt").exists():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.05)
    # The second is this one.
    with pytest.raises(UserError, match="another process is training this run") as error:
        fit_here(*arguments, output=train_process.output)
    assert str(train_process.runs()[0]) in str(error.value)
    assert "\n" not in str(error.value)
    assert first.poll() is None
    first.kill()
    first.communicate()
    # The lock does not outlive the process.
    caplog.set_level("INFO")
    monkeypatch.setattr("longwave.training.loop.Trainer.train_step", lambda _: sys.exit())
    with pytest.raises(SystemExit):
        fit_here(*arguments, output=train_process.output)
    assert "resuming at step" in caplog.text


@pytest.mark.parametrize("left", ["[]", "{", "{}", '{"status": "finished"}'])
def test_a_record_that_is_none_is_written_anew(left, fit_here, caplog):
    _, folder = fit_here(*SMALL)
    whole = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(left)
    fit_here(*SMALL)
    again = json.loads((folder / "record.json").read_text())
    assert "record.json cannot be read (" in caplog.text
    assert again["metrics"] == whole["metrics"]
    assert again["status"] == "finished"


def test_output_that_cannot_be_written(fit_here, tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(UserError, match=r"output=.*file/sub: cannot write to .*Not a directory"):
        fit_here(*SMALL, output=in_the_way / "sub")


def test_a_read_only_folder(fit_here, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(UserError, match=r"output=.*: cannot write to .*Read-only file system"):
        fit_here(*SMALL)


def test_a_disk_that_fills_keeps_the_last_checkpoint(fit_here, tmp_path, monkeypatch):
    arguments = (*SMALL, "training.checkpoint_seconds=0", "training.log_every=1")
    replace = os.replace

    def full_from_step_3(source, target):
        if str(target).endswith("checkpoint.pt.new") and torch.load(source)["state"]["step"] >= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as m:
        m.setattr(os, "replace", full_from_step_3)
        with pytest.raises(UserError, match=r"checkpoint\.pt\.new: No space left on device"):
            fit_here(*arguments)
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert record["status"] == "failed"
    assert "No space left" in record["error"]
    assert torch.load(folder / "checkpoint.pt")["state"]["step"] == 2
    objective, folder = fit_here(*arguments)
    with_space, _ = fit_here(*arguments, output=tmp_path / "elsewhere")
    assert objective == with_space


def test_a_truncated_checkpoint_gives_way_to_an_older_one(fit_here, tmp_path, caplog):
    objective, folder = fit_here(*SMALL, "training.checkpoint_seconds=0")
    (folder / "record.json").unlink()
    path = folder / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    again, _ = fit_here(*SMALL, "training.checkpoint_seconds=0")
    assert again == objective
    assert "checkpoint.pt is damaged" in caplog.text
    assert "resuming at step 3" in caplog.text


def test_a_bug_leaves_a_record_with_its_traceback(fit_here, tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("longwave.training.loop.evaluate", broken)
    with pytest.raises(ZeroDivisionError):
        fit_here(*SMALL)
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert (record["status"], record["error"]) == ("failed", "ZeroDivisionError: a bug")
    assert "in broken" in record["traceback"]


def test_a_damaged_record_is_written_anew(fit_here, caplog):
    objective, folder = fit_here(*SMALL)
    (folder / "record.json").write_text("{")
    again, _ = fit_here(*SMALL)
    assert again == objective
    assert "record.json cannot be read" in caplog.text
    assert json.loads((folder / "record.json").read_text())["status"] == "finished"


def test_fresh_keeps_what_was_there_and_is_not_part_of_the_command(fit_here):
    fit_here(*SMALL)
    _, folder = fit_here(*SMALL, "fresh=true")
    (aside,) = folder.glob("before-*")
    old, new = (json.loads((f / "record.json").read_text()) for f in (aside, folder))
    assert old["metrics"] == new["metrics"]
    assert (old["sessions"], new["sessions"]) == (1, 1)
    assert command_of(["task.T=6", "fresh=true"]) == "python train.py task.T=6"


HAR = (
    "task=har2", "model=lstm", "model.hidden=2", "training.batch_size=4", "training.steps=3", "training.epochs=null",
    "training.checkpoint_seconds=0",
)  # fmt: skip
SIGNAL = "test/Inertial Signals/body_acc_x_test.txt"


@pytest.fixture
def own_har(fake_har, tmp_path):
    """A data root, and a function that changes one number in it and gives the sums of the file before and after."""
    root = shutil.copytree(fake_har, tmp_path / "data")

    def change():
        path = root / "UCI HAR Dataset" / SIGNAL
        before = stand_ins.sha256(path)
        path.write_bytes(path.read_bytes().replace(b"4", b"5", 1))
        return before, stand_ins.sha256(path)

    return root, change


def refused(sums):
    before, now = (f"sha256 {found}" for found in sums)
    reason = f"{SIGNAL} is not what this run was trained on: it was {before}, and is now {now}; "
    return pytest.raises(UserError, match=re.escape(reason) + ".*fresh=true")


def test_a_finished_run_on_data_that_have_changed_is_not_reported(own_har, fit_here, caplog):
    root, change = own_har
    arguments = (*HAR, f"data.root={root}")
    objective, folder = fit_here(*arguments)
    assert fit_here(*arguments)[0] == objective
    sums = change()
    written = (folder / "record.json").read_bytes()
    for _ in range(2):
        with refused(sums):
            fit_here(*arguments)
    assert (folder / "record.json").read_bytes() == written
    fit_here(*arguments, "fresh=true")
    files = json.loads((folder / "record.json").read_text())["data"]["files"]
    assert {"file": SIGNAL, "sha256": sums[1]} in files
    # What is not there cannot be compared, and is not downloaded for it.
    shutil.rmtree(root)
    caplog.clear()
    fit_here(*arguments)
    assert "are not compared" in caplog.text
    assert "is finished already" in caplog.text


def test_a_run_does_not_resume_on_data_that_have_changed(own_har, fit_here, monkeypatch):
    root, change = own_har
    arguments = (*HAR, f"data.root={root}")
    with monkeypatch.context() as m:
        m.setattr("longwave.training.loop.Trainer._test", lambda *_: sys.exit())
        with pytest.raises(SystemExit):
            fit_here(*arguments)
    sums = change()
    for _ in range(2):
        with refused(sums):
            fit_here(*arguments)
    fit_here(*arguments, "fresh=true")


def test_a_checkpoint_without_checksums_is_accepted(own_har, fit_here):
    root, change = own_har
    _, folder = fit_here(*HAR, f"data.root={root}")
    (folder / "record.json").unlink()
    saved = torch.load(folder / "checkpoint.pt")
    assert saved.pop("files")
    torch.save(saved, folder / "checkpoint.pt")
    change()
    fit_here(*HAR, f"data.root={root}")


def test_data_that_are_not_what_their_note_says(fit_here, fake_mnist_files, monkeypatch, tmp_path):
    root, sums = fake_mnist_files
    monkeypatch.setattr("longwave.tasks.mnist.SHA256", sums)
    arguments = (
        "task=smnist", "model=lstm", "model.hidden=1", "training.steps=1", "training.epochs=null",
        "training.limit_evaluation=1", f"data.root={root}",
    )  # fmt: skip
    fit_here(*arguments)
    monkeypatch.setattr("longwave.tasks.mnist.SHA256", dict.fromkeys(sums, "0" * 64))
    with pytest.raises(UserError, match=rf"the data of this run have changed: .*sha256 is \w{{64}}, not {'0' * 64}"):
        fit_here(*arguments)


LEFT = ["checkpoint.pt", "checkpoint.pt.new", "checkpoint.previous.pt", "record.json", "history.jsonl", "config.yaml"]


@pytest.mark.parametrize("name", [*LEFT, *(f"{name}.tmp" for name in LEFT), "log.txt", "lock"])
def test_a_folder_where_a_file_should_be(name, fit_here, tmp_path, caplog):
    """The run does without, or one line names the file."""
    arguments = (*SMALL, "training.checkpoint_seconds=0")
    _, folder = fit_here(*arguments)
    (folder / "record.json").unlink()
    (folder / name).unlink(missing_ok=True)
    (folder / name / "something").mkdir(parents=True)
    assert not is_locked(folder)
    found = ""
    try:
        fit_here(*arguments)
    except UserError as error:
        found = str(error)
    if found:
        assert re.search(re.escape(str(folder / name)) + "[: ]", found)
        assert "\n" not in found
    else:
        assert json.loads((folder / "record.json").read_text())["status"] == "finished"
    assert "Traceback" not in caplog.text


def test_a_disk_that_is_full_for_the_log(fit_here, caplog, capsys):
    """/dev/full refuses every write, and once more what is flushed when it is closed."""
    objective, folder = fit_here(*SMALL)
    for path in folder.iterdir():
        path.unlink()
    (folder / "log.txt").symlink_to("/dev/full")
    assert fit_here(*SMALL)[0] == objective
    assert caplog.text.count("log.txt: [Errno 28] No space left on device") == 1
    assert "Traceback" not in capsys.readouterr().err


def test_the_record_of_another_run_is_not_taken_for_this_one(fit_here, caplog):
    objective, folder = fit_here(*SMALL)
    _, other = fit_here(*SMALL, "seed=1")
    shutil.copy(other / "record.json", folder)
    assert fit_here(*SMALL)[0] == objective
    assert f"record.json cannot be read (it belongs to {other.name})" in caplog.text


@pytest.mark.parametrize("step", [5, -1])
def test_a_checkpoint_beyond_the_budget(step, fit_here):
    _, folder = fit_here(*SMALL)
    (folder / "record.json").unlink()
    saved = torch.load(folder / "checkpoint.pt")
    saved["state"]["step"] = step
    torch.save(saved, folder / "checkpoint.pt")
    with pytest.raises(
        UserError, match=rf"^checkpoint does not fit .*at step {step}, and the budget is 4 .*fresh=true"
    ):
        fit_here(*SMALL)
