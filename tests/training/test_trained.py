"""A finished run as a model: its weights, what it says of raw samples, and without the data set."""

import json

import numpy as np
import pytest
import torch

import longwave
from longwave.tasks import har2
from longwave.training import weights
from longwave.training.build import build
from longwave.training.config import choices, restore
from longwave.training.errors import UserError
from longwave.training.record import read
from longwave.training.trained import Trained
from tests.stand_ins import FIXTURES, SHORT

SMALL = ("task.T=12", "task.test_samples=20", "model.hidden=4", "training.batch_size=3", "training.steps=4")
TINY = ("recipe=none", "debug=fast", "model.hidden=4", "training.batch_size=3")


pytestmark = pytest.mark.usefixtures("small_batches")


@pytest.fixture
def adding(fit_here):
    return fit_here("model=cornn", "task=adding", "recipe=none", *SMALL)[1]


def of_the_record(model: Trained) -> torch.Tensor:
    """Its mean squared error on the adding problem's test set."""
    task, _ = build(model.config)
    found = [(model.predict((x, y)).outputs[:, 0] - y).square() for x, y in task.evaluation("test")]
    return torch.cat(found).double().mean()


def test_it_is_found_by_folder_name_and_identity(adding, monkeypatch, tmp_path):
    monkeypatch.setenv("LONGWAVE_HOME", str(tmp_path))
    identity = adding.name.rpartition("-")[2]
    for name in (adding, str(adding), adding.name, identity, f"outputs/runs/{adding.name}"):
        model = longwave.load(name, "cpu")
        assert model.folder.resolve() == adding.resolve()
    assert model.record == read(adding)
    assert model.config.as_dict() == model.record.config
    assert not model.network.training


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", r"^nowhere: no run there, nor in .*runs; give a run's folder, name or identity$"),
        ("", r"^'': no run there"),
        ("a\0b\n", r"^a\\x00b\\n: no run there"),
        ("x" * 5000, r"^x+\.\.\.: no run there"),
        ("~nobody/x", r"^~nobody/x: no run there"),
        ("seed0-abc", r"^seed0-abc: 2 runs have this identity; "),
    ],
)
def test_no_such_run(name, message, tmp_path, monkeypatch):
    monkeypatch.setenv("LONGWAVE_HOME", str(tmp_path))
    for one in ("gru", "rnn"):
        (tmp_path / "outputs" / "runs" / f"{one}-seed0-abc").mkdir(parents=True)
    with pytest.raises(UserError, match=message) as error:
        longwave.load(name)
    assert "\n" not in str(error.value)


def test_the_last_weights(adding):
    model = longwave.load(adding, "cpu")
    saved = torch.load(adding / "checkpoint.pt")
    for key, value in model.network.state_dict().items():
        assert torch.equal(value, saved["model"][key])
    assert of_the_record(model).item() == model.record.metrics["test"]["mse"]


def test_the_best_weights(fit_here, fake_mnist):
    """With the first evaluation as the best, which the last weights are not."""
    arguments = (
        "model=lstm", "task=smnist", "recipe=none", f"data.root={fake_mnist}", "model.hidden=3", "training.steps=6",
        "training.batch_size=2", "training.evaluate_every=1", "training.limit_evaluation=1", "training.selection=best",
        "optimizer.lr=0.3",
    )  # fmt: skip
    _, folder = fit_here(*arguments)
    saved = torch.load(folder / "checkpoint.pt")
    best = saved["state"]["best"]
    assert best["step"] == read(folder).selected_step < 6
    model = longwave.load(folder, "cpu")
    assert all(torch.equal(value, best["weights"][key]) for key, value in model.network.state_dict().items())
    assert not torch.equal(best["weights"]["readout.bias"], saved["model"]["readout.bias"])
    task, _ = build(model.config)
    x, y = next(task.evaluation("test"))
    assert (model.predict((x, y)).classes == y).double().mean().item() == model.record.metrics["test"]["accuracy"]


@pytest.mark.parametrize("task", choices("task"))
def test_without_the_data(task, fit_here, request, monkeypatch):
    """Every task, whose data set is needed to train only; the network is that of the run."""
    root = request.getfixturevalue(FIXTURES.get(task, "tmp_path"))
    _, folder = fit_here(f"task={task}", "model=gru", *TINY, f"data.root={root}", *SHORT.get(task, []))
    record = read(folder)
    built, network = build(restore(record.config))
    chosen, _ = weights.selected(folder)
    network.load_state_dict(chosen)
    batch = next(built.evaluation("test"))
    with torch.no_grad():
        expected = network.eval()(batch[0], *batch[2:])
    monkeypatch.setattr("longwave.training.trained.build_task", None)
    model = longwave.load(folder, "cpu")
    found = model.predict(batch)
    outputs = torch.stack(tuple(found.outputs)) if isinstance(found.outputs, list) else found.outputs
    assert torch.equal(outputs, expected.transpose(0, 1) if built.read == "every" else expected)
    assert found.names == built.classes
    if built.predicts == "values":
        assert found.classes is None
        assert found.probabilities is None
    else:
        torch.testing.assert_close(found.probabilities.sum(-1), torch.ones(outputs.shape[:-1]))
        assert torch.equal(found.classes, found.probabilities.argmax(-1))
        # As the task counts it.
        target = batch[1].T if built.read == "every" else batch[1]
        scores = built.scores(expected, batch[1])
        if "accuracy" in scores and built.read == "last":
            assert (found.classes == target).float().mean() == scores["accuracy"].mean()


@pytest.mark.parametrize("model", choices("model"))
def test_raw_samples(model, fit_here, fake_har, tmp_path):
    """As the batches of the task give them; and of other lengths, each as if it were alone."""
    more = ["transform.step=5"] if model == "nrde" else []
    _, folder = fit_here("task=har2", f"model={model}", *TINY, f"data.root={fake_har}", *more)
    trained = longwave.load(folder, "cpu")
    task, _ = build(trained.config)
    raw = har2.read(fake_har)[0][task.splits["test"]]
    batch = next(task.evaluation("test"))
    expected = trained.predict(batch).outputs
    found = trained.predict(raw.numpy(), batch_size=7)
    torch.testing.assert_close(found.outputs, expected)
    assert found.probabilities.shape == (20, 2)
    ragged = [raw[i, : 20 + 3 * (i % 4)].numpy() for i in range(8)]
    together = trained.predict(ragged)
    alone = [trained.predict([one]).outputs[0] for one in ragged]
    torch.testing.assert_close(together.outputs, torch.stack(alone))
    assert not torch.allclose(together.outputs[0], found.outputs[0])
    assert torch.equal(trained.predict(raw.clone().requires_grad_(), batch_size=7).outputs, found.outputs)
    # What the network reads of them.
    x = trained.prepare(ragged[:1])[0]
    torch.testing.assert_close(trained.network(x.unsqueeze(1))[0], together.outputs[0])


def test_outputs_at_every_step(fit_here, few_neurons):
    _, folder = fit_here("task=fitzhugh_nagumo", "model=gru", *TINY, f"data.root={few_neurons}")
    model = longwave.load(folder, "cpu")
    found = model.predict([np.zeros(5), np.ones((7, 1))])
    assert [output.shape for output in found.outputs] == [(5, 1), (7, 1)]
    assert model.predict(np.zeros((2, 5, 1))).outputs.shape == (2, 5, 1)


def test_texts(fit_here, fake_imdb, fake_ptb):
    arguments = ("task.vectors=glove.6B.50d", "model=gru", *TINY)
    _, folder = fit_here("task=imdb", *arguments, f"data.root={fake_imdb}")
    model = longwave.load(folder, "cpu")
    found = model.predict(["good film", "bad"])
    assert found.classes.shape == (2,)
    assert torch.equal(model.predict("good film").outputs[0], found.outputs[0])
    _, folder = fit_here("task=ptb_char", "task.embedding=5", "model=gru", *TINY, f"data.root={fake_ptb}")
    model = longwave.load(folder, "cpu")
    assert [part.shape[0] for part in model.predict(["no it", "n"]).probabilities] == [5, 1]
    with pytest.raises(ValueError, match=r"^sample 0: tokens must be whole numbers from 0 to \d+$"):
        model.predict([[1, 10**6]])


def test_what_is_no_sample(adding, fit_here, fake_har):
    model = longwave.load(adding, "cpu")
    with pytest.raises(ValueError, match=r"^sample 1: must have 2 channels, got 3$"):
        model.predict([np.zeros((4, 2)), np.zeros((4, 3))])
    with pytest.raises(ValueError, match=r"^sample 0: must be \(T, D\) or \(T,\), got \(2, 3, 4\)$"):
        model.predict(np.zeros((1, 2, 3, 4)))
    _, folder = fit_here("task=har2", "model=nrde", "transform.step=5", *TINY, f"data.root={fake_har}")
    nrde = longwave.load(folder, "cpu")
    with pytest.raises(ValueError, match=r"^transform.step=5: must be less than 3, the length of the sequences$"):
        nrde.predict(np.zeros((1, 3, 9)))


def test_in_bfloat16_as_it_was_trained(fit_here):
    _, folder = fit_here("model=lem", "task=adding", "recipe=none", *SMALL, "training.precision=bf16")
    model = longwave.load(folder, "cpu")
    assert of_the_record(model).item() == pytest.approx(model.record.metrics["test"]["mse"], abs=0)


def test_a_run_that_is_not_finished(adding):
    record = json.loads((adding / "record.json").read_text())
    (adding / "record.json").write_text(json.dumps(record | {"status": "interrupted"}))
    with pytest.raises(UserError, match=r"the run is interrupted, not finished; train it to its end first$"):
        longwave.load(adding)
    (adding / "record.json").write_text("{")
    with pytest.raises(UserError, match=r"record.json: cannot be read \("):
        longwave.load(adding)


def test_a_checkpoint_that_is_not_that_of_the_record(adding):
    path = adding / "checkpoint.pt"
    saved = torch.load(path)
    torch.save(saved | {"state": saved["state"] | {"step": 3}}, path)
    with pytest.raises(UserError, match=r"there is a checkpoint of step 3, and the run ended at step 4$"):
        longwave.load(adding)
    path.write_bytes(b"broken")
    (adding / "checkpoint.previous.pt").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"checkpoint.pt is damaged \("):
        longwave.load(adding)
    path.unlink()
    with pytest.raises(UserError, match=r"checkpoint.pt: there is no checkpoint$"):
        longwave.load(adding)


def test_a_pickle_is_not_run(adding):
    class Evil:
        def __reduce__(self):
            return print, ("it ran",)

    saved = torch.load(adding / "checkpoint.pt")
    torch.save(saved | {"files": Evil()}, adding / "checkpoint.pt")
    (adding / "checkpoint.previous.pt").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"checkpoint.pt is damaged"):
        longwave.load(adding)


def test_an_older_run_needs_its_data(fit_here, fake_har, monkeypatch):
    _, folder = fit_here("task=har2", "model=gru", *TINY, f"data.root={fake_har}")
    raw = har2.read(fake_har)[0][:2]
    expected = longwave.load(folder, "cpu").predict(raw).outputs
    saved = torch.load(folder / "checkpoint.pt")
    del saved["task"]
    torch.save(saved, folder / "checkpoint.pt")
    assert torch.equal(longwave.load(folder, "cpu").predict(raw).outputs, expected)
    record = json.loads((folder / "record.json").read_text())
    record["config"]["data"]["root"] = str(folder)
    (folder / "record.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"is not there"):
        longwave.load(folder, "cpu")


def test_a_record_of_another_version(adding):
    record = json.loads((adding / "record.json").read_text())
    for section, key, message in (("model", "gone", "gone"), ("task", "name", "nothing.yaml")):
        config = record["config"] | {section: record["config"][section] | {key: "nothing"}}
        (adding / "record.json").write_text(json.dumps(record | {"config": config}))
        with pytest.raises(UserError, match=rf"^the run was made by another version of the code: .*{message}"):
            longwave.load(adding)
    config = record["config"] | {"model": record["config"]["model"] | {"hidden": 5}}
    (adding / "record.json").write_text(json.dumps(record | {"config": config}))
    with pytest.raises(
        UserError, match=r"another version of the code: \S+ is \(\d+, \d+\) there and \(\d+, \d+\) here$"
    ):
        longwave.load(adding)


def test_loading_draws_no_numbers(adding):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    longwave.load(adding, "cpu")
    assert torch.equal(torch.rand(3), expected)
