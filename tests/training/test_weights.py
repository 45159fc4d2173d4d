"""Training that starts from the weights of another run."""

import json
import shutil

import pytest
import torch

from longwave.training import weights
from longwave.training.config import compose_run, numbers
from longwave.training.errors import UserError
from longwave.training.record import read
from tests.test_resume import assert_same, die_and_resume, outcome

SMALL = (
    "model=cornn", "task=adding", "recipe=none", "task.test_samples=20", "model.hidden=4", "training.batch_size=3",
    "training.evaluate_every=2", "training.checkpoint_seconds=0",
)  # fmt: skip


@pytest.fixture
def short(fit_here):
    return fit_here(*SMALL, "task.T=8", "training.steps=3")[1]


def composed(output, *overrides):
    return compose_run([*SMALL, "task.T=12", "training.steps=4", f"output={output}", *overrides])[0]


def test_it_starts_from_them_at_another_length(short, fit_here, tmp_path, monkeypatch, caplog):
    taken = {}

    def first(trainer):
        taken.update({key: value.clone() for key, value in trainer.model.state_dict().items()})
        raise KeyboardInterrupt

    caplog.set_level("INFO")
    monkeypatch.setattr("longwave.training.loop.Trainer.train_step", first)
    with pytest.raises(KeyboardInterrupt):
        fit_here(*SMALL, "task.T=12", "training.steps=4", f"training.start_from={short.name}")
    assert_same(taken, dict(torch.load(short / "checkpoint.pt")["model"]))
    content = weights.digest(weights.selected(short)[0])
    assert f"starting from the weights of {short.name}@{content}" in caplog.text


def test_resuming_it_is_exact(short, fit_here, tmp_path, monkeypatch):
    arguments = (*SMALL, "task.T=12", "training.steps=5", f"training.start_from={short}")
    whole = outcome(fit_here(*arguments)[1])
    # Also where the other run is gone by then.
    for step in (1, 3):
        folder = die_and_resume(fit_here, arguments, tmp_path / str(step), step, monkeypatch)
        assert_same(outcome(folder), whole, f"died at step {step}")
    content = weights.digest(weights.selected(short)[0])
    shutil.move(short, tmp_path / "elsewhere")
    _, folder = fit_here(*arguments[:-1], f"training.start_from={short}@{content}")
    assert_same(outcome(folder), whole)


def test_the_content_is_part_of_the_identity(short, fit_here, tmp_path):
    output = short.parent.parent
    plain, named = composed(output), composed(output, f"training.start_from={short.name}")
    assert plain.training.start_from is None
    assert "start_from" not in numbers(plain.as_dict())["training"]
    content = weights.digest(weights.selected(short)[0])
    assert named.training.start_from == f"{short.name}@{content}"
    assert numbers(named.as_dict())["training"]["start_from"] == content
    assert named.identity() != plain.identity()
    # Whatever the run is called, and wherever it is.
    shutil.copytree(short, tmp_path / "copy")
    for run in (short, short.name.rpartition("-")[2], tmp_path / "copy", f"{short.name}@{content}"):
        assert composed(output, f"training.start_from={run}").identity() == named.identity()
    # A gone one is known by its content.
    assert composed(output, f"training.start_from=gone@{content}").identity() == named.identity()
    saved = torch.load(short / "checkpoint.pt")
    saved["model"]["readout.bias"] += 1
    torch.save(saved, short / "checkpoint.pt")
    assert composed(output, f"training.start_from={short.name}").identity() != named.identity()
    with pytest.raises(
        UserError, match=rf"^training.start_from={short.name[:20]}.*: its weights are now [0-9a-f]{{16}}$"
    ):
        composed(output, f"training.start_from={short.name}@{content}")


def test_the_record_names_it(short, fit_here):
    _, folder = fit_here(*SMALL, "task.T=12", "training.steps=4", f"training.start_from={short.name}")
    content = weights.digest(weights.selected(short)[0])
    assert read(folder).config["training"]["start_from"] == f"{short.name}@{content}"
    assert read(short).config["training"]["start_from"] is None


def test_the_best_weights_are_taken(fit_here, fake_mnist, monkeypatch):
    monkeypatch.setattr("longwave.tasks.base.ArrayTask.evaluation_batch", 20)
    _, folder = fit_here(
        "model=lstm", "task=smnist", "recipe=none", f"data.root={fake_mnist}", "model.hidden=3", "training.steps=6",
        "training.batch_size=2", "training.evaluate_every=1", "training.limit_evaluation=1", "training.selection=best",
        "optimizer.lr=0.3",
    )  # fmt: skip
    best = torch.load(folder / "checkpoint.pt")["state"]["best"]
    assert best["step"] < 6
    assert_same(weights.selected(folder)[0], best["weights"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.hidden=5"], r"layer\.affine\.weight is \(4, 10\) there and \(5, 12\) here$"),
        (["model=lstm"], r"layer\.weight_ih_l0 is not in it$"),
        (["model.train_dynamics=shared"], r"layer\.logarithms\.gamma is not in it$"),
        (["task=copying", "~task.T"], r"layer\.affine\.weight is \(4, 10\) there and \(4, 18\) here$"),
    ],
)
def test_weights_that_do_not_fit_are_named(overrides, message, short, fit_here):
    arguments = [*SMALL, "task.T=12", "training.steps=4"]
    if "~task.T" in overrides:
        arguments = ["model=cornn", "task=copying", "task.L=3", "recipe=none", "model.hidden=4", "training.steps=1"]
        overrides = []
    with pytest.raises(UserError, match=rf"^training\.start_from=\S+: {message}"):
        fit_here(*arguments, *overrides, f"training.start_from={short.name}")


def test_weights_that_the_model_does_not_have(short, fit_here):
    _, folder = fit_here(*SMALL, "task.T=8", "training.steps=3", "model.train_dynamics=shared")
    with pytest.raises(UserError, match=r": layer\.logarithms\.gamma is in it, and not in the model$"):
        fit_here(*SMALL, "task.T=12", "training.steps=4", f"training.start_from={folder.name}")


def test_no_such_run(short, tmp_path):
    output = short.parent.parent
    with pytest.raises(UserError, match=r"^training\.start_from=nowhere: no run there, nor in "):
        composed(output, "training.start_from=nowhere")
    with pytest.raises(UserError, match=r"^training\.start_from='': no run there"):
        composed(output, "training.start_from=''")
    record = json.loads((short / "record.json").read_text())
    (short / "record.json").write_text(json.dumps(record | {"status": "failed"}))
    with pytest.raises(UserError, match=r"^training\.start_from=.*: the run is failed, not finished; train it"):
        composed(output, f"training.start_from={short.name[-10:]}")


def test_a_run_that_is_gone_cannot_be_started_from(short, fit_here):
    with pytest.raises(UserError, match=r"^training\.start_from=gone: no run there"):
        fit_here(*SMALL, "task.T=12", "training.steps=4", f"training.start_from=gone@{'0' * 16}")
