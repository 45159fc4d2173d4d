from pathlib import Path

import pytest
import torch
from torch import nn

from longwave.tasks.base import data_root, start_readout
from longwave.training.config import compose_run


def test_data_root(monkeypatch):
    monkeypatch.setenv("LONGWAVE_HOME", "/home")
    for given, expected in (("~/sets", Path.home() / "sets"), ("", Path("/home/data")), ("/there", Path("/there"))):
        monkeypatch.setenv("LONGWAVE_DATA", given)
        assert data_root() == expected
        assert data_root("here") == Path("/home/here")
    monkeypatch.delenv("LONGWAVE_DATA")
    assert data_root() == Path("/home/data")


@pytest.mark.parametrize(
    ("how", "deviation", "largest"), [("uniform", 0.1 / 3**0.5, 0.1), ("kaiming", (2 / 400) ** 0.5, 1)]
)
def test_the_readout_of_a_protocol(how, deviation, largest):
    torch.manual_seed(0)
    readout = nn.Linear(400, 100)
    start_readout(readout, how)
    assert readout.weight.std().item() == pytest.approx(deviation, rel=0.02)
    assert abs(readout.weight.mean().item()) < 0.02 * deviation
    assert readout.weight.abs().max() <= largest
    assert (readout.bias == 0).all()
    before = readout.weight.clone()
    start_readout(readout, "model")
    assert torch.equal(readout.weight, before)


def test_the_readout_reaches_the_model(fit_here):
    small = ["task=copying", "recipe=none", "task.L=3", "model.hidden=100", "training.steps=1", "task.test_samples=5"]
    for how in ("model", "kaiming"):
        _, folder = fit_here(*small, f"task.readout={how}", "optimizer.lr=1e-9")
        bias = torch.load(folder / "checkpoint.pt")["model"]["readout.bias"]
        assert (bias.abs().max() < 1e-6) == (how == "kaiming")


@pytest.mark.parametrize(("task", "how"), [("copying", "kaiming"), ("ptb_char", "uniform")])
def test_the_recipes_have_the_readout_of_the_code(task, how):
    models = ["exprnn"] if task == "copying" else ["exprnn", "lstm"]
    for model in models:
        assert compose_run([f"model={model}", f"task={task}"])[0].task.readout == how
    with pytest.raises(Exception, match=r"readout=zero: must be one of model, uniform, kaiming"):
        compose_run([f"task={task}", "task.readout=zero", "recipe=none", "training.steps=1"])
