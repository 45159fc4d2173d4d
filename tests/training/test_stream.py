"""Step by step a network says what it says of the whole sequence."""

import io
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch

import longwave
from longwave import PACKAGE
from longwave.tasks import har2
from longwave.tasks.transforms import log_signature
from longwave.training.build import build
from longwave.training.config import choices
from tests.models.test_contract import NAMES
from tests.models.test_contract import build as network

TINY = ("recipe=none", "debug=fast", "model.hidden=4", "training.batch_size=3")


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reads", ["last", "every"])
@pytest.mark.parametrize("name", NAMES)
def test_every_model(name, reads):
    """In float64 to 1e-12, at each step; running means and the like are not at their start."""
    model = network(name).double()
    for norm in (part for part in model.modules() if isinstance(part, torch.nn.BatchNorm1d)):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    model.eval().reads = reads
    x = torch.randn(23, 3, 2, dtype=torch.float64)
    outputs, state = [], None
    model.layer.freeze()
    with torch.no_grad():
        for step in x:
            output, state = model.step(step, state)
            outputs.append(output)
        expected = model(x) if reads == "every" else torch.stack([model(x[: n + 1]) for n in range(len(x))])
    # An undamped oscillator grows with steps that differ.
    scale = max(1.0, expected.abs().max().item())
    close(torch.stack(outputs) / scale, expected / scale)


@pytest.mark.parametrize("model", choices("model"))
def test_a_run(model, fit_here, fake_har):
    """Raw samples, normalised step by step; the Neural RDE at the end of each block, also where one is cut off."""
    more = ["transform.step=5", "transform.depth=2"] if model == "nrde" else []
    _, folder = fit_here("task=har2", f"model={model}", *TINY, f"data.root={fake_har}", *more)
    trained = longwave.load(folder, "cpu")
    trained.network.double()
    task, _ = build(trained.config)
    raw = har2.read(fake_har)[0][task.splits["test"][:1]]
    stream, x = trained.stream(), trained.prepare(raw)[0]
    found = [(t, stream.step(step)) for t, step in enumerate(raw[0].numpy())]
    if model == "nrde":
        found = [(t, output) for t, output in found if output is not None]
        assert [t for t, _ in found] == list(range(0, 126, 5))
    with torch.no_grad():
        sequence, _ = trained.network.layer(x.unsqueeze(1))
        prefixes = [trained.network(x[: n + 1].unsqueeze(1))[0] for n in range(len(found))]
    assert len(sequence) == len(found)
    close(torch.stack([output for _, output in found]), torch.stack(prefixes))
    close(found[-1][1], trained.predict(raw).outputs[0])


@pytest.mark.parametrize("backend", ["torch", "pysiglib"])
@pytest.mark.parametrize("time", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_blocks(depth, time, backend):
    config = log_signature.Config(depth=depth, step=4, time=time, backend=backend)
    x = torch.randn(19, 2, 3, dtype=torch.float64)
    blocks = config.stream(len(x))
    found = [entry for entry in map(blocks.push, x) if entry is not None]
    close(torch.stack(found), config.prepare(x))


def test_a_text(fit_here, fake_ptb):
    _, folder = fit_here("task=ptb_char", "task.embedding=5", "model=lem", *TINY, f"data.root={fake_ptb}")
    trained = longwave.load(folder, "cpu")
    trained.network.double()
    stream = trained.stream()
    close(torch.stack([stream.step(c) for c in "no it was"]), trained.predict("no it was").outputs[0])


def test_a_task_that_prepares_a_sample_as_a_whole(fit_here, fake_mnist, monkeypatch):
    monkeypatch.setattr("longwave.tasks.base.ArrayTask.evaluation_batch", 20)
    _, folder = fit_here("task=psmnist", "model=gru", *TINY, f"data.root={fake_mnist}")
    with pytest.raises(ValueError, match=r"^task=psmnist prepares a sample as a whole: there is no stream$"):
        longwave.load(folder, "cpu").stream()


@pytest.fixture
def folder(fit_here, fake_har):
    return fit_here("task=har2", "model=exprnn", *TINY, f"data.root={fake_har}")[1]


def test_what_is_no_step(folder):
    stream = longwave.load(folder, "cpu").stream()
    with pytest.raises(ValueError, match=r"^must have 9 channels, got 3$"):
        stream.step([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"^must be \(T, D\) or \(T,\), got \(1, 2, 9\)$"):
        stream.step(np.zeros((2, 9)))
    assert stream.steps == 0


def test_the_network_is_left_as_it_was(folder):
    model = longwave.load(folder, "cpu")
    model.stream().step(np.zeros(9))
    assert model.network.layer.frozen is None


def test_a_sensor(folder, monkeypatch, capsys):
    """The example, as a user starts it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 9)).round(3)
    lines = "".join("; ".join(map(str, step)) + "\n" for step in x)
    command = [sys.executable, str(PACKAGE / "examples" / "stream.py"), str(folder)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = longwave.load(folder, "cpu").predict(x[None])
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [int(row[0]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert int(rows[-1][1]) == expected.classes[0]
    assert float(rows[-1][2]) == pytest.approx(expected.probabilities[0].max().item(), abs=1e-4)
    monkeypatch.setattr(sys, "argv", command[1:])
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{lines}1,x\n"))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(command[1], run_name="__main__")
    assert ended.value.code == "error: line 7: could not convert string to float: 'x'"
    assert capsys.readouterr().out == done.stdout
