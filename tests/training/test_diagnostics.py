"""What is measured, against closed forms and autograd through loops in Python; and that measuring changes nothing."""

import json
import math
import sys

import pytest
import torch
from torch import Tensor, nn

from longwave.models import cornn
from longwave.models.layer import Layer
from longwave.models.network import Network
from longwave.tasks.adding import Adding
from longwave.training.budget import Diagnostics
from longwave.training.build import build
from longwave.training.config import choices, compose_run
from longwave.training.diagnostics import gradient_norms, lags, picture, probe
from longwave.training.errors import UserError
from tests.test_resume import assert_same, die_and_resume, outcome

SMALL = (
    "task.T=9", "model.hidden=3", "training.batch_size=4", "task.test_samples=10", "training.steps=6",
    "training.evaluate_every=3", "training.log_every=2", "training.target=null",
)  # fmt: skip


@pytest.mark.parametrize(("T", "expected"), [
    (1, [0]), (2, [0, 1]), (17, [0, 1, 2, 4, 8, 16]), (18, [0, 1, 2, 4, 8, 16, 17]),
    (1000, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 999]),
])  # fmt: skip
def test_lags(T, expected):
    assert lags(T) == expected


class Linear(Layer):
    """h_n = a h_{n-1} + x_n."""

    def __init__(self, a: float):
        super().__init__()
        self.a = a

    def unroll(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h, sequence = x.new_zeros(x.shape[1:]) if state is None else state, []
        for step in x:
            h = self.a * h + step
            sequence.append(h)
        return torch.stack(sequence), h


@pytest.mark.parametrize("T", [1, 2, 17, 100])
@pytest.mark.parametrize("a", [0.4, -1.0, 1.5])
def test_a_linear_recurrence(T, a):
    """The norm is |a|^lag of that at the last step, down to where its square is far below float32's smallest number."""
    torch.manual_seed(0)
    model = Network(Linear(a), nn.Linear(3, 1, bias=False))
    x = torch.randn(T, 5, 3)
    measured = [k for k in lags(T) if abs(a) ** k > 1e-30]
    found = gradient_norms(model, x, lambda output: output[:, 0] * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), measured)
    # The root mean square of 1, ..., 5 is sqrt(11).
    last = math.sqrt(11) * model.readout.weight.norm().item()
    assert list(found) == measured
    assert found == pytest.approx({k: last * abs(a) ** k for k in measured}, rel=1e-4, abs=0)


def norms_by_loop(step, state, x, readout, target) -> dict[int, float]:
    """Of every lag: autograd through a loop, where each step gets copies of the state, which are kept."""
    kept = []
    for drive in x:
        state = tuple(part.clone() for part in step(drive, state))
        kept.append(state)
    error = (readout(state[0])[:, 0] - target) ** 2
    found = {}
    for lag, parts in enumerate(reversed(kept)):
        gradients = torch.autograd.grad(error.sum(), parts, retain_graph=True, allow_unused=True)
        of_samples = sum(g.square().sum(1) for g in gradients if g is not None)
        found[lag] = of_samples.mean().sqrt().item()
    return found


@pytest.mark.parametrize("T", [1, 2, 13])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", ["lstm", "cornn"])
def test_autograd_through_a_loop(name, backend, T):
    torch.manual_seed(T)
    recipe = {"lstm": "lstm/adding", "cornn": "cornn/adding_paper"}[name]
    config, _ = compose_run([f"model={name}", "task=adding", f"recipe={recipe}", "model.hidden=5"])
    model = config.model.build(2, 1).double()
    model.layer.requested = backend
    x, target = torch.randn(T, 3, 2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    layer, zeros = model.layer, torch.zeros(3, 5, dtype=torch.float64)

    def lstm(drive, state):
        h, c = state
        gates = drive @ layer.weight_ih_l0.T + layer.bias_ih_l0 + h @ layer.weight_hh_l0.T + layer.bias_hh_l0
        i, f, g, o = gates.chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def cornn(drive, state):
        y, z = state
        c = config.model
        force = (torch.cat([drive, z, y], 1) @ layer.affine.weight.T + layer.affine.bias).tanh()
        z = z + c.dt * (force - c.gamma * y - c.epsilon * z)
        return y + c.dt * z, z

    expected = norms_by_loop({"lstm": lstm, "cornn": cornn}[name], (zeros, zeros), x, model.readout, target)
    found = gradient_norms(model, x, lambda output: (output[:, 0] - target) ** 2, list(range(T)))
    assert found == pytest.approx(expected, rel=1e-9, abs=0)


class Stack(Layer):
    """Two linear recurrences; the state is (last output, number of steps, (state of each layer))."""

    def __init__(self, a: float, b: float):
        super().__init__()
        self.first, self.second = Linear(a), Linear(b)

    def unroll(self, x, state=None):
        _, steps, (first, second) = (None, torch.tensor(0), (None, None)) if state is None else state
        sequence, first = self.first(x, first)
        sequence, second = self.second(sequence, second)
        return sequence, (sequence[-1], steps + len(x), (first, second))


def test_a_stack():
    """dE/dh at lag k, over dE/dy: b^k in the second layer, the sum of b^{k-j} a^j, j = 1, ..., k, in the first."""
    a, b, T = 0.9, 0.7, 20
    torch.manual_seed(0)
    model = Network(Stack(a, b), nn.Linear(3, 1)).double()
    x = torch.randn(T, 2, 3, dtype=torch.float64)
    found = gradient_norms(model, x, lambda output: output[:, 0], lags(T))
    last = model.readout.weight.norm().item()
    expected = {k: last * math.hypot(b**k, sum(b ** (k - j) * a**j for j in range(1, k + 1))) for k in lags(T)}
    assert found == pytest.approx(expected, rel=1e-9, abs=0)


@pytest.mark.parametrize("name", choices("model"))
def test_every_model_continues_from_its_state(name):
    config, _ = compose_run([f"model={name}", "task=adding", "recipe=none", "training.steps=1", "task.T=11"])
    task, model = build(config)
    model.eval()
    x, _ = task.batch(0, 3)
    outputs = [model(x)]
    gradient_norms(model, x, lambda output: outputs.append(output) or output[:, 0], lags(11))
    torch.testing.assert_close(outputs[1], outputs[0])


class Stochastic(Layer):
    """Draws in training, and keeps statistics in buffers."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout, self.recurrence = nn.BatchNorm1d(3), nn.Dropout(0.5), Linear(0.5)

    def unroll(self, x, state=None):
        x = self.norm(x.flatten(0, 1)).view_as(x)
        return self.recurrence(self.dropout(x), state)

    def theory(self, x):
        assert not self.training
        assert not torch.is_grad_enabled()
        return {"spread": self(x)[0].std()}


def test_measuring_leaves_everything_as_it_was():
    config, _ = compose_run(["task.T=9", "training.batch_size=4"])
    task = config.task.build(0, None)
    torch.manual_seed(0)
    model = Network(Stochastic(), nn.Linear(3, 1))
    model.layer.norm.weight.requires_grad_(False)
    model.layer.dropout.eval()
    x = torch.randn(9, 4, 3)
    task.batch = lambda step, size: (x, torch.zeros(4))
    model(x).sum().backward()

    def everything():
        return {
            "weights and buffers": {key: value.clone() for key, value in model.state_dict().items()},
            "gradients": [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()],
            "trained": [p.requires_grad for p in model.parameters()],
            "modes": [module.training for module in model.modules()],
            "generator": torch.get_rng_state(),
            "cudnn": torch.backends.cudnn.enabled,
        }

    before, attributes = everything(), [sorted(vars(module)) for module in model.modules()]
    with torch.no_grad():
        measure = probe(Diagnostics(gradients=True, theory=True), model, task, 4, torch.device("cpu"))
        found = [measure(), measure()]
    torch.testing.assert_close(everything(), before, rtol=0, atol=0)
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    assert found[0] == found[1]
    assert found[0].keys() == {"theory/spread", *(f"gradients/lag_{k}" for k in (0, 1, 2, 4, 8))}


def test_resumed_it_measures_the_same(fit_here, tmp_path, monkeypatch):
    arguments = (*SMALL, "diagnostics=gradients", "training.checkpoint_seconds=0")
    whole = outcome(fit_here(*arguments)[1])
    assert_same(outcome(die_and_resume(fit_here, arguments, tmp_path / "died", 4, monkeypatch)), whole)


@pytest.mark.parametrize("model", ["lstm", "cornn"])
def test_a_run_is_bit_for_bit_the_same_with_and_without(model, fit_here, tmp_path, monkeypatch):
    monkeypatch.setattr(cornn.CoRNN, "theory", lambda self, x: {"mean": x.mean()})
    found = {}
    for name in ("none", "all"):
        objective, folder = fit_here(*SMALL, f"model={model}", f"diagnostics={name}", output=tmp_path / name)
        saved = torch.load(folder / "checkpoint.pt")
        record = json.loads((folder / "record.json").read_text())
        history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        found[name] = saved, record, history, folder, objective
    (off, record_off, history_off, _, _), (on, record_on, history_on, folder, _) = found.values()
    torch.testing.assert_close(on["model"], off["model"], rtol=0, atol=0)
    torch.testing.assert_close(on["optimizer"]["state"], off["optimizer"]["state"], rtol=0, atol=0)
    assert record_on["identity"] == record_off["identity"]
    for key in ("metrics", "objective", "selected_step", "first_passed", "changed"):
        assert record_on[key] == record_off[key], key

    # The first is of the initialisation, on the training batch of step 0.
    task, start = build(compose_run([*SMALL, f"model={model}"])[0])
    x, target = task.batch(0, 4)
    norms = gradient_norms(start, x, lambda output: (output[:, 0] - target) ** 2, lags(9))
    assert {f"gradients/lag_{k}": norm for k, norm in norms.items()}.items() <= history_on[0].items()

    measured = [
        {key: entry.pop(key) for key in list(entry) if key.startswith(("gradients/", "theory/"))}
        for entry in history_on
    ]
    assert history_on[0] == {"step": 0, "seconds": 0.0}
    for entry in [*history_on, *history_off]:
        del entry["seconds"]
    assert history_on[1:] == history_off
    # Before the first step and at each evaluation, not where only the training loss is logged.
    assert [e["step"] for e in history_on] == [0, 2, 3, 4, 6]
    keys = {f"gradients/lag_{k}" for k in (0, 1, 2, 4, 8)} | ({"theory/mean"} if model == "cornn" else set())
    assert [set(m) for m in measured] == [keys, set(), keys, set(), keys]
    assert len({m["gradients/lag_8"] for m in measured if m}) == 3
    # Always on one batch.
    assert len({m["theory/mean"] for m in measured if "theory/mean" in m}) == (1 if model == "cornn" else 0)
    assert (folder / "gradients.png").read_bytes().startswith(b"\x89PNG")
    assert not (found["none"][3] / "gradients.png").exists()


def test_off_it_costs_nothing(fit_here, monkeypatch):
    def called(*_, **__):
        raise AssertionError

    for name in ("gradient_norms", "lags", "_evaluating", "axes", "picture"):
        monkeypatch.setattr(f"longwave.training.diagnostics.{name}", called)
    # Importing it raises.
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    steps = []
    batch = Adding.batch
    monkeypatch.setattr(Adding, "batch", lambda self, step, size: steps.append(step) or batch(self, step, size))
    fit_here(*SMALL, "diagnostics=none")
    assert steps == [0, 1, 2, 3, 4, 5]


def test_a_model_without_theory_trains(fit_here, caplog):
    _, folder = fit_here(*SMALL, "model=lstm", "diagnostics=theory")
    lines = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert lines == ["diagnostics.theory=true: LSTM has no theory to check; nothing is logged of it"]
    assert "theory" not in (folder / "history.jsonl").read_text()


def test_what_is_not_finite_is_reported_and_left_out(fit_here, monkeypatch, caplog):
    found = {"r": math.inf, "eta": 0.5, "drift": torch.tensor(math.nan)}
    monkeypatch.setattr(cornn.CoRNN, "theory", lambda self, x: found)
    _, folder = fit_here(*SMALL, "diagnostics=theory")
    entries = [
        json.loads(line, parse_constant=pytest.fail) for line in (folder / "history.jsonl").read_text().splitlines()
    ]
    assert [entry.get("theory/eta") for entry in entries] == [0.5, None, 0.5, None, 0.5]
    assert "theory/r" not in entries[0]
    lines = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert lines == ["left out of the history where not finite: theory/r, theory/drift"]


def test_a_run_that_diverges_is_drawn(fit_here, tmp_path):
    with pytest.raises(UserError, match="step 3"):
        fit_here(*SMALL, "diagnostics=gradients", "optimizer=sgd", "optimizer.lr=1000", "training.clip_norm=null")
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert (folder / "gradients.png").exists()


def test_pictures_of_odd_histories():
    assert picture([], "a") is None
    assert picture([{"step": 3, "train/mse": 1.0}], "a") is None
    for norms in ({"lag_0": 1.0}, {"lag_0": 1.0, "lag_1": 0.0}, {"lag_0": 1e30, "lag_4": 1e-38}):
        entry = {f"gradients/{key}": value for key, value in norms.items()}
        assert picture([{"step": 0} | entry], "a").startswith(b"\x89PNG")


def probed(batch_size, *overrides):
    """A task, an LSTM that starts on it, and its gradient norms there."""
    small = ["model=lstm", "model.hidden=3", "recipe=none", "training.steps=1", f"training.batch_size={batch_size}"]
    task, model = build(compose_run([*small, *overrides])[0])
    return task, model, probe(Diagnostics(gradients=True), model, task, batch_size, torch.device("cpu"))()


def test_where_every_step_is_read_it_is_the_error_of_the_last(fake_ptb):
    task, model, found = probed(5, "task=ptb_char", "task.T=20", "task.embedding=4", f"data.root={fake_ptb}")
    x, target = task.batch(0, 5)

    def error(output):
        return nn.functional.cross_entropy(output, target[-1], reduction="none")

    expected = gradient_norms(model, x, error, lags(20))
    assert found == {f"gradients/lag_{lag}": pytest.approx(norm) for lag, norm in expected.items()}


def test_where_lengths_differ_it_goes_to_the_end_of_the_shortest(fake_imdb):
    task, model, found = probed(
        8, "task=imdb", "task.vectors=glove.6B.50d", "task.lengths=respected", "task.bucketing=false",
        f"data.root={fake_imdb}",
    )  # fmt: skip
    x, target, lengths = task.batch(0, 8)
    assert lengths.min() < len(x)

    def error(output):
        return nn.functional.binary_cross_entropy_with_logits(output[:, 0], target, reduction="none")

    shortest = int(lengths.min())
    expected = gradient_norms(model, x[:shortest], error, lags(shortest))
    assert found == {f"gradients/lag_{lag}": pytest.approx(norm) for lag, norm in expected.items()}
