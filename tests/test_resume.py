"""Killed at any moment and started again, a run is bit for bit the run that was never killed."""

import fcntl
import json
import os
import random
import select
import signal
import subprocess
import termios
import time

import pytest
import torch

from longwave.training import loop
from longwave.training.config import choices
from longwave.training.entry import in_one_line
from longwave.training.errors import Interrupted
from longwave.training.record import Git

ADDING = (
    "model=cornn", "task=adding", "task.T=20", "model.hidden=8", "training.batch_size=4", "task.test_samples=50",
    "training.steps=400", "training.evaluate_every=20", "training.log_every=7", "training.target=null",
)  # fmt: skip
# 60 steps at each of 5, 10, 15 and the rest at 20.
GROWING = (
    *ADDING, "curriculum=lengths", "curriculum.lengths=[5,10,15]", "curriculum.most_steps=60",
    "curriculum.lr_power=0.5",
)  # fmt: skip
PSMNIST = (
    "model=cornn", "task=psmnist", "model.hidden=4", "training.batch_size=2", "training.steps=150",
    "training.evaluate_every=15", "training.log_every=4", "training.limit_evaluation=1", "scheduler=cosine",
)  # fmt: skip


def outcome(folder):
    """All that must be equal: weights, optimiser, schedule, counters, history and metrics, less what a clock says."""
    saved = torch.load(folder / "checkpoint.pt")
    record = json.loads((folder / "record.json").read_text())
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    del saved["state"]["seconds"]
    assert [{**e} for e in saved["state"]["history"]] == history
    for entry in [*history, *saved["state"]["history"]]:
        del entry["seconds"]
    kept = {key: record[key] for key in ("status", "metrics", "objective", "selected_step", "first_passed")}
    for stage in (*saved["state"]["stages"], *record.get("curriculum", [])):
        del stage["seconds"]
    kept["curriculum"] = record.get("curriculum")
    return {"saved": saved, "history": history, **kept}


def assert_same(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}/{index}")
    else:
        assert a == b, where


def entries(folder) -> int:
    path = folder / "history.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def kill_in_the_middle(train_process, arguments, rng) -> str | None:
    """Starts the run and kills it at a random moment after it has logged something new; gives its output.

    The moment is counted in lines of history rather than in seconds: a quick machine must not get to the end first.
    """
    before = entries(train_process.runs()[0]) if train_process.runs() else 0
    wanted = before + rng.randint(2, 6)
    process = train_process.start(*arguments)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        runs = train_process.runs()
        if runs and (runs[0] / "checkpoint.pt").exists() and entries(runs[0]) >= wanted:
            break
        time.sleep(0.01)
    assert process.poll() is None, process.stdout.read()
    time.sleep(rng.uniform(0, 0.02))
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, "it had already ended: give it more steps"
    return out


# Of four slow tests together.
KILLS = int(os.environ.get("LONGWAVE_KILLS", "20"))


@pytest.mark.parametrize(
    ("arguments", "checkpoint_seconds", "kills"),
    # After every step, and rarely: then the steps since the last checkpoint are run again.
    [
        pytest.param(GROWING, 0, 1, id="curriculum"),
        pytest.param(GROWING, 0, 2, id="curriculum, twice", marks=pytest.mark.slow),
        pytest.param(ADDING, 0, KILLS // 4, id="adding", marks=pytest.mark.slow),
        pytest.param(ADDING, 0.5, KILLS // 4, id="adding, rare checkpoints", marks=pytest.mark.slow),
        pytest.param(GROWING, 0.5, KILLS // 4, id="curriculum, rare checkpoints", marks=pytest.mark.slow),
        pytest.param(PSMNIST, 0, KILLS // 4, id="psmnist", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_is_never_killed(
    arguments, checkpoint_seconds, kills, train_process, fit_here, tmp_path, request, caplog
):
    caplog.set_level("INFO")
    if arguments is PSMNIST:
        arguments = (*arguments, f"data.root={request.getfixturevalue('mnist_root')}")
    # It must not end before the last kill: without a checkpoint at every step it takes more steps between two.
    steps = (400 if checkpoint_seconds else 130) * (1 + kills)
    arguments = (*arguments, f"training.steps={steps}")
    arguments = (*arguments, f"training.checkpoint_seconds={checkpoint_seconds}", "tracking=none")
    rng = random.Random(f"{arguments}")
    for _ in range(kills):
        kill_in_the_middle(train_process, arguments, rng)
        record = json.loads((train_process.runs()[0] / "record.json").read_text())
        assert record["status"] == "interrupted"
    # The last session, in this process, is no other run.
    _, folder = fit_here(*arguments, "threads=1", output=train_process.output)
    assert "resuming at step" in caplog.text
    assert [folder] == train_process.runs()
    killed = outcome(folder)
    assert json.loads((folder / "record.json").read_text())["sessions"] == kills + 1

    _, whole = fit_here(*arguments, "threads=1", output=tmp_path / "whole")
    assert_same(outcome(whole), killed)


SETTINGS = {
    # Seven steps: two at 3, two at 4 and three at 6; and a bound that is never reached.
    "curriculum": (
        "curriculum=lengths", "curriculum.lengths=[3,4]", "curriculum.most_steps=2", "curriculum.lr_power=0.75",
        "training.evaluate_every=1",
    ),
    "curriculum that waits for its bound": (
        "curriculum=lengths", "curriculum.lengths=[3]", "curriculum.bound=100", "curriculum.evaluations=4",
        "training.evaluate_every=1", "scheduler=cosine",
    ),
    "plateau": ("scheduler=plateau", "scheduler.patience=0", "scheduler.factor=0.5"),
    "target": ("scheduler=cosine", "training.target=10", "training.target_evaluations=2"),
    "clipped rmsprop in bf16": (
        "optimizer=rmsprop", "optimizer.momentum=0.9", "training.clip_norm=0.1", "training.precision=bf16",
        "scheduler=step", "scheduler.milestones=[2,5]",
    ),
}  # fmt: skip


def die_and_resume(fit_here, arguments, output, step, monkeypatch):
    train_step = loop.Trainer.train_step

    def dying(trainer):
        if trainer.state.step == step:
            raise KeyboardInterrupt
        train_step(trainer)

    with monkeypatch.context() as m:
        m.setattr("longwave.training.loop.Trainer.train_step", dying)
        with pytest.raises(KeyboardInterrupt):
            fit_here(*arguments, output=output)
    return fit_here(*arguments, output=output)[1]


@pytest.mark.parametrize("settings", SETTINGS)
def test_resuming_after_any_step(settings, fit_here, tmp_path, monkeypatch):
    arguments = (
        "model=lstm", "task.T=6", "model.hidden=3", "training.batch_size=2", "task.test_samples=10", "training.steps=7",
        "training.evaluate_every=3", "training.log_every=2", "training.target=null", "optimizer.lr=0.3",
        "training.checkpoint_seconds=0", *SETTINGS[settings],
    )  # fmt: skip
    whole = outcome(fit_here(*arguments)[1])
    for step in range(1, 6):
        folder = die_and_resume(fit_here, arguments, tmp_path / str(step), step, monkeypatch)
        assert_same(outcome(folder), whole, f"died at step {step}")


# What a model draws or keeps while it trains, beside its weights.
OWN = {
    "exprnn": ["model.mode=dtriv", "model.period=2", "model.projection_period=2"],
    "indrnn": ["model.dropout=0.2", "model.norm=after"],
    "linoss": ["model.state=2", "model.dropout=0.2", "model.block=released"],
    "unicornn": ["model.layers=2", "model.dropout=0.2"],
    "nrde": ["transform.step=2"],
}


@pytest.mark.parametrize("model", choices("model"))
def test_every_model_resumes(model, fit_here, tmp_path, monkeypatch):
    arguments = (
        f"model={model}", "recipe=none", "task.T=12", "model.hidden=4", "training.batch_size=3",
        "task.test_samples=10", "training.steps=7", "training.evaluate_every=3", "training.target=null",
        "optimizer.lr=0.05", "training.checkpoint_seconds=0", *OWN.get(model, []),
    )  # fmt: skip
    whole = outcome(fit_here(*arguments)[1])
    folder = die_and_resume(fit_here, arguments, tmp_path / "killed", 4, monkeypatch)
    assert_same(outcome(folder), whole)


def test_resuming_with_the_best_weights(fit_here, fake_mnist, tmp_path, monkeypatch):
    monkeypatch.setattr("longwave.tasks.base.ArrayTask.evaluation_batch", 20)
    arguments = (
        f"data.root={fake_mnist}", "model=lstm", "task=psmnist", "model.hidden=3", "training.batch_size=2",
        "training.steps=9", "training.evaluate_every=2", "training.log_every=3", "training.limit_evaluation=1",
        "training.selection=best", "training.patience=3", "optimizer.lr=0.3", "training.checkpoint_seconds=0",
    )  # fmt: skip
    whole = outcome(fit_here(*arguments)[1])
    assert "weights" in whole["saved"]["state"]["best"]
    for step in range(1, 6):
        folder = die_and_resume(fit_here, arguments, tmp_path / str(step), step, monkeypatch)
        assert_same(outcome(folder), whole, f"died at step {step}")


@pytest.mark.parametrize("model", ["lstm", "cornn"])
def test_resuming_with_a_carried_state(model, fit_here, fake_ptb, tmp_path, monkeypatch):
    """Within an epoch of 6 chunks, at its end and after it."""
    arguments = (
        f"data.root={fake_ptb}", f"model={model}", "task=ptb_char", "task.T=35", "task.embedding=3", "model.hidden=3",
        "training.batch_size=3", "training.steps=9", "training.evaluate_every=4", "training.log_every=3",
        "optimizer.lr=0.1", "training.checkpoint_seconds=0",
    )  # fmt: skip
    whole = outcome(fit_here(*arguments)[1])
    assert [e["epoch"] for e in whole["history"] if e["step"] == 6] == [1]
    assert len(whole["saved"]["state"]["carried"]) == 2
    for step in (1, 3, 6, 8):
        folder = die_and_resume(fit_here, arguments, tmp_path / str(step), step, monkeypatch)
        assert_same(outcome(folder), whole, f"died at step {step}")


@pytest.mark.parametrize("call", range(1, 4))
def test_told_to_stop_while_it_evaluates(call, fit_here, fake_mnist, tmp_path, monkeypatch):
    """In the first, the second and the last evaluation; the last is of the test set."""
    monkeypatch.setattr("longwave.tasks.base.ArrayTask.evaluation_batch", 20)
    arguments = (
        f"data.root={fake_mnist}", "model=lstm", "task=smnist", "model.hidden=3", "training.batch_size=2",
        "training.steps=4", "training.evaluate_every=2", "training.limit_evaluation=2", "training.selection=best",
    )  # fmt: skip
    whole = outcome(fit_here(*arguments)[1])
    evaluate = loop.evaluate
    calls = []

    def signalled(model, task, split, device, settings, signals, step, *more):
        calls.append(step)
        if len(calls) == call:
            signals._note(signal.SIGTERM, None)
        return evaluate(model, task, split, device, settings, signals, step, *more)

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as m:
        m.setattr("longwave.training.loop.evaluate", signalled)
        with pytest.raises(Interrupted, match=f"interrupted at step {min(2 * call, 4)}"):
            fit_here(*arguments, output=tmp_path / "stopped")
    assert signal.getsignal(signal.SIGTERM) == handler
    _, folder = fit_here(*arguments, output=tmp_path / "stopped")
    assert_same(outcome(folder), whole)


def test_killed_before_its_first_checkpoint_it_was_a_session_all_the_same(fit_here, tmp_path, monkeypatch):
    arguments = ("task.T=6", "model.hidden=3", "training.batch_size=2", "training.steps=3", "task.test_samples=10")
    folder = die_and_resume(fit_here, arguments, tmp_path / "died", 1, monkeypatch)
    assert json.loads((folder / "record.json").read_text())["sessions"] == 2


@pytest.mark.parametrize(("step", "dirty"), [(0, False), (1, True)])
def test_what_a_dirty_tree_has_trained_stays_so(step, dirty, fit_here, tmp_path, monkeypatch):
    trees = iter([Git(commit="a" * 40, dirty=True), Git(commit="b" * 40, dirty=False)])
    monkeypatch.setattr("longwave.training.environment.git", lambda: next(trees))
    arguments = (
        "task.T=6", "model.hidden=3", "training.batch_size=2", "training.steps=4", "task.test_samples=10",
        "training.checkpoint_seconds=0",
    )  # fmt: skip
    # Before it died, nothing or one step was trained in the dirty tree.
    folder = die_and_resume(fit_here, arguments, tmp_path / "died", step, monkeypatch)
    assert json.loads((folder / "record.json").read_text())["git"] == {"commit": "b" * 40, "dirty": dirty}


@pytest.fixture
def assert_resumes(fit_here, monkeypatch, caplog):
    """An interrupted run has saved what it has done, and goes on there, which is seen of its first step."""

    def call(folder, *arguments):
        record = json.loads((folder / "record.json").read_text())
        saved = torch.load(folder / "checkpoint.pt")
        assert record["status"] == "interrupted"
        assert record["budget"]["steps_done"] == saved["state"]["step"] > 0
        steps = []

        def first(trainer):
            steps.append(trainer.state.step)
            raise KeyboardInterrupt

        caplog.set_level("INFO")
        with monkeypatch.context() as m:
            m.setattr(loop.Trainer, "train_step", first)
            with pytest.raises(KeyboardInterrupt):
                fit_here(*arguments, output=folder.parent.parent)
        assert steps == [saved["state"]["step"]]
        assert f"resuming at step {steps[0]}" in caplog.messages

    return call


LONG = (*ADDING, "training.checkpoint_seconds=1000", "training.steps=100000", "tracking=none")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_told_to_stop_it_saves_and_goes_on_later(number, code, train_process, assert_resumes):
    arguments = LONG
    process = train_process.start(*arguments)
    while not train_process.runs() or entries(train_process.runs()[0]) < 3:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "the same command (without fresh=true) resumes there" in out
    assert "Traceback" not in out
    (folder,) = train_process.runs()
    assert_resumes(folder, *arguments)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 129), (signal.SIGUSR1, 138), (signal.SIGUSR2, 140)])
def test_so_it_does_by_any_other_signal(number, code, fit_here, assert_resumes, tmp_path, monkeypatch, capsys):
    train_step = loop.Trainer.train_step
    # Outside of the run the signal would end this process.
    handler = signal.signal(number, signal.SIG_DFL)

    def signalled(trainer):
        if trainer.state.step == 10:
            os.kill(os.getpid(), number)
        train_step(trainer)

    try:
        with monkeypatch.context() as m:
            m.setattr(loop.Trainer, "train_step", signalled)
            with pytest.raises(SystemExit) as ended, in_one_line():
                fit_here(*LONG)
    finally:
        signal.signal(number, handler)
    assert ended.value.code == code
    told = "interrupted at step 11; the same command (without fresh=true) resumes there\n"
    assert capsys.readouterr().err.endswith(told)
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert_resumes(folder, *LONG)


def test_a_terminal_that_is_closed_saves_and_ends(train_process):
    """The run writes to the terminal, which then is an error; the system sends SIGHUP."""

    def own_terminal():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        # It is ignored where nohup started the tests.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    ours, terminal = os.openpty()
    arguments = (*ADDING, "training.checkpoint_seconds=1000", "training.steps=100000", "tracking=none")
    process = subprocess.Popen(
        train_process.arguments(*arguments),
        env=train_process.environment(TERM="xterm"),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=own_terminal,
    )
    os.close(terminal)
    while not train_process.runs() or entries(train_process.runs()[0]) < 3:
        assert process.poll() is None
        # Nobody else reads what the bar writes.
        if select.select([ours], [], [], 0.05)[0]:
            os.read(ours, 4096)
    os.close(ours)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    (folder,) = train_process.runs()
    record = json.loads((folder / "record.json").read_text())
    assert record["status"] == "interrupted"
    assert torch.load(folder / "checkpoint.pt")["state"]["step"] == record["budget"]["steps_done"] > 0


def test_signals_are_noted_and_handed_on():
    heard = []
    before = {s: signal.signal(s, lambda number, frame: heard.append(number)) for s in (signal.SIGUSR1, signal.SIGUSR2)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with loop.Signals() as signals:
            # As under nohup.
            signal.raise_signal(signal.SIGHUP)
            signals.check(1)
            # A shell sends its signals a second time.
            signal.raise_signal(signal.SIGUSR2)
            signal.raise_signal(signal.SIGUSR2)
            assert heard == []
            with pytest.raises(Interrupted):
                signals.check(2)
        # A launcher requeues the job.
        assert heard == [signal.SIGUSR2]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
