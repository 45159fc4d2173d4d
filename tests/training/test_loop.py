import json
import math
import pickle
import subprocess
import sys

import pytest
import torch

from longwave.models.cornn import CoRNN
from longwave.tasks.adding import Adding
from longwave.tasks.mnist import SequentialMNIST
from longwave.training import loop, record
from longwave.training.errors import Diverged, Interrupted, UserError
from longwave.training.loop import evaluate

SMALL = ("task.T=8", "model.hidden=6", "training.batch_size=4", "task.test_samples=40", "training.target=null")


def record_of(folder):
    return json.loads((folder / "record.json").read_text())


def history_of(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def weights_of(folder, name="checkpoint.pt"):
    return torch.load(folder / name)["model"]


def test_equals_a_loop_written_out(fit_here):
    """Five steps of Adam on the task's batches, from the seed's initialisation."""
    from longwave.tasks.adding import Config
    from longwave.tasks.randomness import counted_seed

    settings = ("recipe=cornn/adding_paper", "seed=3", "training.steps=5", "training.log_every=1", "optimizer.lr=0.01")
    _, folder = fit_here(*SMALL, *settings)
    task = Config(T=8, test_samples=40).build(3, folder)
    torch.manual_seed(counted_seed(3, "init"))
    layer, readout = CoRNN(2, 6, dt=0.016, gamma=94.5, epsilon=9.5), torch.nn.Linear(6, 1)
    optimizer = torch.optim.Adam([*layer.parameters(), *readout.parameters()], lr=0.01)
    losses = []
    for step in range(5):
        x, target = task.batch(step, 4)
        loss = (readout(layer(x)[0][-1])[:, 0] - target).pow(2).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    entries = history_of(folder)
    assert [entry["train/mse"] for entry in entries] == losses
    assert torch.equal(weights_of(folder)["layer.affine.weight"], layer.affine.weight)
    with torch.no_grad():
        errors = [(readout(layer(x)[0][-1])[:, 0] - t).pow(2) for x, t in task.evaluation("test")]
    assert record_of(folder)["metrics"]["test"]["mse"] == pytest.approx(torch.cat(errors).mean().item(), rel=1e-6)


def test_evaluation_and_log_cadence(fit_here):
    _, folder = fit_here(*SMALL, "training.steps=11", "training.log_every=3", "training.evaluate_every=4")
    entries = history_of(folder)
    assert [entry["step"] for entry in entries] == [3, 4, 6, 8, 9, 11]
    assert [entry["step"] for entry in entries if "test/mse" in entry] == [4, 8, 11]
    assert all(entry["train/mse"] > 0 and entry["train/grad_norm"] > 0 and entry["lr"] > 0 for entry in entries)


def test_the_record_holds_what_a_reader_needs(fit_here):
    objective, folder = fit_here(*SMALL, "recipe=cornn/adding_paper", "training.steps=4", "seed=7")
    record = record_of(folder)
    assert record["status"] == "finished"
    assert record["identity"] in folder.name
    assert record["seed"] == 7
    assert record["config"]["task"]["T"] == 8
    assert record["metrics"]["test"]["mse"] == objective
    assert record["objective"] == {"key": "test/mse", "value": objective}
    assert record["selected_step"] == 4
    assert record["published"]["key"] == "cornn/adding"
    assert record["budget"] == {"steps_done": 4, "steps": 4, "steps_in_recipe": 60000}
    assert record["parameters"] == (2 + 12) * 6 + 6 + 7
    assert record["backend"] == "cpu"
    assert record["wall_seconds"] > 0
    assert record["steps_per_second"] > 0
    assert record["peak_memory_bytes"] > 10**7
    assert record["device"].startswith("cpu")
    assert record["packages"]["torch"] == torch.__version__.split("+")[0]
    assert set(record["git"]) == {"commit", "dirty"}
    assert record["data"] == {"split_id": "adding/halves/T=8/test=40", "files": []}
    assert record["first_passed"] == {"test/mse": {"0.01": None, "0.001": None}}
    assert record["baseline"] == {"mse": pytest.approx(1 / 6)}
    assert (folder / "config.yaml").exists()
    assert "4 steps" in (folder / "log.txt").read_text()


@pytest.mark.parametrize(
    "budget", [("training.steps=5", "training.epochs=9"), ("training.steps=99", "training.epochs=1")]
)
def test_the_budget_that_is_reached_first_counts(budget, fit_here, fake_mnist):
    _, folder = fit_here(
        f"data.root={fake_mnist}", "model=lstm", "task=smnist", "model.hidden=1", "training.limit_evaluation=1",
        "task.validation=59000", "training.batch_size=200", *budget,
    )  # fmt: skip
    assert record_of(folder)["budget"]["steps"] == 5


def test_selection_best_tests_the_weights_of_the_best_validation(fit_here, fake_mnist, monkeypatch):
    monkeypatch.setattr(SequentialMNIST, "evaluation_batch", 10)
    accuracies = iter([0.3, 0.6, 0.5, 0.6, 0.2])
    seen = {}

    def planned(model, task, split, *more):
        if split == "test":
            seen["weights"] = model.state_dict()["readout.bias"].clone()
            return evaluate(model, task, split, *more)
        value = next(accuracies)
        seen[value] = seen.get(value, model.state_dict()["readout.bias"].clone())
        return {"accuracy": value, "cross_entropy": 1.0}

    monkeypatch.setattr("longwave.training.loop.evaluate", planned)
    arguments = (
        f"data.root={fake_mnist}", "model=lstm", "task=smnist", "model.hidden=2", "training.batch_size=2",
        "training.steps=5", "training.evaluate_every=1", "training.limit_evaluation=1", "optimizer.lr=0.1",
    )  # fmt: skip
    objective, folder = fit_here(*arguments, "training.selection=best")
    record = record_of(folder)
    assert (record["selected_step"], objective) == (2, 0.6)
    assert torch.equal(seen["weights"], seen[0.6])
    accuracies = iter([0.3, 0.6, 0.5, 0.6, 0.2])
    objective, folder = fit_here(*arguments, "training.selection=last")
    assert (record_of(folder)["selected_step"], objective) == (5, 0.2)
    accuracies = iter([0.3, 0.6, 0.5, 0.6, 0.2])
    _, folder = fit_here(*arguments, "training.selection=best", "training.patience=2")
    record = record_of(folder)
    assert (record["stopped"], record["budget"]["steps_done"]) == ("patience", 4)


def test_a_target_must_hold(fit_here, monkeypatch):
    values = iter([0.5, 0.009, 0.02, 0.01, 0.005, 0.0005, 0.004, 0.003])
    monkeypatch.setattr("longwave.training.loop.evaluate", lambda *_: {"mse": next(values)})
    _, folder = fit_here(*SMALL, "training.steps=8", "training.evaluate_every=1", "training.target=0.01")
    record = record_of(folder)
    assert (record["stopped"], record["budget"]["steps_done"]) == ("target", 6)
    assert record["first_passed"]["test/mse"] == {"0.01": 2, "0.001": 6}


def test_a_loss_that_is_not_finite_ends_the_run(fit_here, monkeypatch, tmp_path):
    scores = Adding.scores

    def poisoned(self, output, target):
        found = scores(self, output, target)
        poisoned.calls += 1
        # Two training steps before it, and no evaluation.
        return {"mse": found["mse"] * math.nan} if poisoned.calls == 3 else found

    poisoned.calls = 0
    arguments = (*SMALL, "training.steps=10", "training.checkpoint_seconds=0")
    with monkeypatch.context() as m:
        m.setattr(Adding, "scores", poisoned)
        with pytest.raises(Diverged, match=r"training loss \(mse\) is nan at step 3"):
            fit_here(*arguments)
    folder = next((tmp_path / "outputs" / "runs").iterdir())
    record = record_of(folder)
    assert (record["status"], record["failed_step"], record["budget"]["steps_done"]) == ("failed", 3, 2)
    assert "nan" in record["error"]
    kept = torch.load(folder / "checkpoint.pt")
    assert kept["state"]["step"] == 2
    assert all(tensor.isfinite().all() for tensor in kept["model"].values())
    # Mended, the same command goes on.
    fit_here(*arguments)
    assert record_of(folder)["status"] == "finished"


def test_a_gradient_that_is_not_finite_leaves_the_weights_good(fit_here, monkeypatch, tmp_path):
    total_norm = torch.nn.utils.get_total_norm
    monkeypatch.setattr("torch.nn.utils.get_total_norm", lambda gradients: total_norm(gradients) * math.inf)
    with pytest.raises(Diverged, match="norm of the gradient is inf at step 1"):
        fit_here(*SMALL, "training.steps=10")


def test_scores_that_are_not_finite_are_no_result(fit_here, tmp_path, monkeypatch):
    def scores(self, output, target):
        return {"mse": (output.squeeze(-1) - target) ** 2 * (1 if output.requires_grad else math.inf)}

    monkeypatch.setattr(Adding, "scores", scores)
    with pytest.raises(Diverged, match=r"test mse is (inf|nan) at step 1"):
        fit_here(*SMALL, "training.steps=1")
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert record_of(folder)["status"] == "failed"


def test_weights_that_are_not_finite_are_never_saved(fit_here, tmp_path, monkeypatch):
    train_step = loop.Trainer.train_step

    def overflowing(trainer):
        train_step(trainer)
        if trainer.state.step == 4:
            trainer.model.readout.bias.data.fill_(math.inf)

    monkeypatch.setattr("longwave.training.loop.Trainer.train_step", overflowing)
    with pytest.raises(Diverged, match="largest weight is inf at step 4"):
        fit_here(*SMALL, "training.steps=9", "training.checkpoint_seconds=0")
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert torch.load(folder / "checkpoint.pt")["state"]["step"] == 3


@pytest.mark.parametrize("error", [Diverged(2, "loss", 1.0), Interrupted(3, 15)])
def test_failures_travel_between_processes(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.step) == (type(error), str(error), error.step)


def test_what_differs_from_the_recipe_is_in_the_record(fit_here, caplog):
    _, folder = fit_here(*SMALL, "training.steps=4", "training.limit_evaluation=1", "training.target=null")
    changed = record_of(folder)["changed"]
    assert changed["task.T"] == 8
    assert changed["training.limit_evaluation"] == 1
    assert "optimizer.lr" not in changed
    assert "changed from recipe cornn/adding: model.hidden=6" in caplog.text
    # As a command line has it.
    assert ", training.target=null" in caplog.text
    assert "reduced budget: 4 of the recipe's 20,000 steps" in caplog.text
    assert "not a result" in caplog.text


def test_a_result_far_worse_than_the_trivial_prediction_is_named(fit_here, caplog):
    objective, folder = fit_here(*SMALL, "model=lstm", "training.steps=20", "optimizer.lr=1000")
    assert objective > 10 / 6
    assert "far worse than the trivial prediction: mse 0.1667)" in caplog.text
    assert record.read(folder).far_below_trivial
    caplog.clear()
    _, folder = fit_here(*SMALL, "training.steps=20", "optimizer.lr=0.001")
    assert " (trivial prediction: mse 0.1667)" in caplog.text
    assert not record.read(folder).far_below_trivial


@pytest.mark.parametrize(
    ("metric", "trivial", "near", "far"),
    [
        ("accuracy", 0.5, 0.26, 0.24),
        ("macro_f1", 0.4, 0.21, 0.19),
        ("auroc", 0.5, 0.26, 0.24),
        ("rmse", 2.0, 6.0, 7.0),
        ("batch_rmse", 2.0, 6.0, 7.0),
        ("mae", 2.0, 6.0, 7.0),
        ("r2", -0.1, -9.9, -10.1),
        ("bpc", 4.0, 39.0, 41.0),
    ],
)
def test_how_far_a_result_may_be_below_the_trivial_prediction(metric, trivial, near, far, fit_here):
    name = metric.removeprefix("batch_")
    _, folder = fit_here(*SMALL, "training.steps=1")
    for value, is_far in ((near, False), (far, True)):
        found = record.read(folder)
        found.objective.key, found.baseline = f"validation/{metric}", {name: trivial}
        found.metrics["test"] = {name: value}
        assert found.far_below_trivial == is_far


def test_clipping(fit_here):
    arguments = (*SMALL, "training.steps=1", "optimizer=sgd", "optimizer.lr=1")

    def change(*more):
        _, folder = fit_here(*arguments, *more)
        _, before = fit_here(*arguments, "optimizer.lr=1e-30")
        after = weights_of(folder)
        return torch.cat([(after[k] - v).flatten() for k, v in weights_of(before).items()]), history_of(folder)[-1]

    free, entry = change()
    assert free.norm().item() == pytest.approx(entry["train/grad_norm"], rel=1e-4)
    by_norm, entry = change("training.clip_norm=0.01")
    assert by_norm.norm().item() == pytest.approx(0.01, rel=1e-3)
    # What is logged is the norm before clipping.
    assert entry["train/grad_norm"] == pytest.approx(free.norm().item(), rel=1e-4)
    by_value, _ = change("training.clip_value=0.01")
    torch.testing.assert_close(by_value, free.clamp(-0.01, 0.01), atol=1e-6, rtol=1e-4)


def test_bf16_trains_and_is_not_fp32(fit_here):
    for model in ("cornn", "lstm"):
        found = {}
        for precision in ("fp32", "bf16"):
            _, folder = fit_here(
                f"model={model}", "task.T=8", "model.hidden=16", "training.batch_size=4", "training.target=null",
                "training.steps=3", f"training.precision={precision}",
            )  # fmt: skip
            found[precision] = history_of(folder)[-1]["train/mse"]
            assert all(v.dtype == torch.float32 for v in weights_of(folder).values())
        assert found["bf16"] != found["fp32"]
        assert found["bf16"] == pytest.approx(found["fp32"], rel=0.05)


def test_overfit_repeats_one_batch(fit_here, monkeypatch):
    steps = []
    batch = Adding.batch
    monkeypatch.setattr(Adding, "batch", lambda self, step, size: steps.append(step) or batch(self, step, size))
    _, folder = fit_here("task.T=8", "model=lstm", "model.hidden=16", "training.batch_size=4", "debug=overfit")
    assert set(steps) == {0}
    entries = history_of(folder)
    assert entries[-1]["train/mse"] < 0.05 * entries[0]["train/mse"]


def test_learns_the_adding_problem(fit_here):
    objective, _ = fit_here("model=lstm", "task.T=6", "model.hidden=24", "training.steps=400", "optimizer.lr=0.02")
    assert objective < 0.02


def test_a_checkpoint_of_other_code_is_refused(fit_here, tmp_path):
    _, folder = fit_here(*SMALL, "training.steps=2")
    (folder / "record.json").unlink()
    saved = torch.load(folder / "checkpoint.pt")
    saved["model"]["layer.new"] = torch.zeros(1)
    torch.save(saved, folder / "checkpoint.pt")
    with pytest.raises(UserError, match=r"checkpoint does not fit this code.*use fresh=true to start over"):
        fit_here(*SMALL, "training.steps=2")


def test_a_device_that_is_not_here_is_refused(fit_here, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(UserError, match=r"device=cuda: not available here; there are auto, .*cpu"):
        fit_here(*SMALL, "device=cuda")
    assert not (tmp_path / "outputs").exists()


def test_denormals_are_flushed_in_every_thread():
    code = """
import torch
from longwave.training.environment import set_up_process
set_up_process(2)
x = torch.full((1_000_000,), 1e-30)
assert (x * 1e-10 == 0).all()
x = torch.full((200, 200), 1e-30)
assert (x * torch.full((200, 200), 1e-10) == 0).all()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is of the whole process")
def test_the_peak_of_memory_is_that_of_the_job():
    """A process keeps what it freed, of which the next job's peak knows nothing."""
    code = """
import torch
from longwave.training.environment import peak_memory_bytes, reset_peak_memory
from longwave.training.environment import set_up_process
set_up_process(1)
device = torch.device("cpu")
peaks = []
for size in (1, 400, 1):
    reset_peak_memory()
    # As a training step leaves it: in pieces, with something small behind them.
    pieces = [torch.ones(2**18) for _ in range(size)]
    kept = torch.ones(100)
    peaks.append(peak_memory_bytes(device) / 2**20)
    del pieces
assert peaks[1] > peaks[0] + 350, peaks
assert peaks[2] < peaks[0] + 100, peaks
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_state_is_carried_and_its_gradient_is_not(fit_here, fake_ptb):
    """Written out: chunk after chunk from the detached state, from zeros at the beginning of an epoch."""
    from longwave.tasks.ptb_char import Config
    from longwave.tasks.randomness import counted_seed

    arguments = ("model=lstm", "task=ptb_char", "task.T=60", "task.embedding=3", "model.hidden=4", "recipe=none")
    _, folder = fit_here(
        *arguments, f"data.root={fake_ptb}", "training.steps=8", "training.log_every=1", "training.batch_size=3",
        "optimizer=sgd", "optimizer.lr=1", "training.evaluate_every=4",
    )  # fmt: skip
    task = Config(T=60, embedding=3).build(0, fake_ptb)
    assert task.steps_per_epoch(3) == 4
    torch.manual_seed(counted_seed(0, "init"))
    lstm, readout = torch.nn.LSTM(3, 4), torch.nn.Linear(4, task.outputs)
    vectors = task.embedding().weight
    parameters = [*lstm.parameters(), *readout.parameters(), vectors]
    losses = []
    for step in range(8):
        x, target = task.batch(step, 3)
        if step % 4 == 0:
            state = torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)
        sequence, state = lstm(vectors[x], tuple(s.detach() for s in state))
        loss = torch.nn.functional.cross_entropy(readout(sequence).flatten(0, 1), target.flatten())
        losses.append(loss.item())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= gradient
    assert [entry["train/cross_entropy"] for entry in history_of(folder)] == pytest.approx(losses, rel=1e-5)


def test_overfit_starts_from_zeros_every_time(fit_here, fake_ptb):
    _, folder = fit_here(
        f"data.root={fake_ptb}", "model=lstm", "task=ptb_char", "task.T=20", "task.embedding=8", "model.hidden=16",
        "training.batch_size=1", "debug=overfit", "optimizer.lr=0.05", "training.evaluate_every=300",
    )  # fmt: skip
    entries = history_of(folder)
    assert entries[-1]["train/cross_entropy"] < 0.05 * entries[0]["train/cross_entropy"]


def test_lengths_reach_the_model(fit_here, fake_imdb):
    """The reviews of one batch, with more padding or less: their lengths decide what is read."""
    from longwave.tasks.imdb import Config

    arguments = ("model=lstm", "task=imdb", "task.vectors=glove.6B.50d", "model.hidden=3", "recipe=none")
    _, folder = fit_here(
        *arguments, f"data.root={fake_imdb}", "task.lengths=respected", "training.steps=1", "task.bucketing=false",
        "optimizer.lr=1e-30", "task.average=samples",
    )  # fmt: skip
    task = Config(vectors="glove.6B.50d", lengths="respected").build(0, fake_imdb)
    saved = weights_of(folder)
    lstm, readout = torch.nn.LSTM(50, 3), torch.nn.Linear(3, 1)
    lstm.load_state_dict({key.removeprefix("layer."): v for key, v in saved.items() if key.startswith("layer.")})
    readout.load_state_dict({key.removeprefix("readout."): v for key, v in saved.items() if key.startswith("readout.")})
    with torch.no_grad():
        losses = []
        for index in task.splits["test"]:
            # One by one there is nothing to pad.
            x, target, _ = task._take(index[None])
            output = readout(lstm(saved["embedding.weight"][x])[0][-1])
            losses.append(task.scores(output, target)["cross_entropy"])
    expected = torch.cat(losses).mean().item()
    assert record_of(folder)["metrics"]["test"]["cross_entropy"] == pytest.approx(expected, rel=1e-5)
