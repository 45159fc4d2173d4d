"""The metrics of a run again from its checkpoint, for every model and every task."""

import csv
import json
import math

import pytest
import torch

import longwave
from longwave.training import evaluate
from longwave.training.config import choices
from longwave.training.errors import UserError
from longwave.training.record import read
from tests.stand_ins import FIXTURES, SHORT

TINY = ("recipe=none", "debug=fast", "model.hidden=4", "training.batch_size=3")


pytestmark = pytest.mark.usefixtures("small_batches")


@pytest.fixture
def run(fit_here):
    arguments = ("model=cornn", "task=adding", "recipe=none", "task.T=12", "task.test_samples=20", "model.hidden=4")
    return fit_here(*arguments, "training.steps=4", "training.batch_size=3")[1]


def rows(folder) -> list[dict]:
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


CASES = [(model, "adding") for model in choices("model")] + [("gru", task) for task in choices("task")]


@pytest.mark.parametrize(("model", "task"), CASES)
def test_the_metrics_are_those_of_the_record(model, task, fit_here, request):
    root = request.getfixturevalue(FIXTURES.get(task, "tmp_path"))
    overrides = ["transform.step=5"] if model == "nrde" else []
    _, folder = fit_here(f"model={model}", f"task={task}", *TINY, f"data.root={root}", *SHORT.get(task, []), *overrides)
    record = read(folder)
    lines = evaluate.again(folder)
    expected = [
        f"{split} {key}: {value:.6g}, as in the record"
        for split, scores in record.metrics.items()
        if split != "train"
        for key, value in scores.items()
    ]
    assert lines == [*expected, f"predictions: {folder / 'predictions.csv'}"]
    assert {row["split"] for row in rows(folder)} == set(record.metrics) - {"train"}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "task"), [("cornn", "har2"), ("linoss", "har2"), ("lstm", "smnist")])
def test_on_the_real_data_whole(model, task, fit_here, real_data, mnist_root):
    if not (real_data / "UCI HAR Dataset").is_dir():
        pytest.skip(f"HAR-2 is not in {real_data}")
    _, folder = fit_here(f"model={model}", f"task={task}", "training.epochs=1", "model.hidden=16", "training.steps=50")
    assert all(line.endswith("as in the record") for line in evaluate.again(folder)[:-1])


def test_predictions_of_values(run):
    evaluate.again(run)
    found = rows(run)
    assert list(found[0]) == ["split", "sample", "target", "prediction"]
    assert [int(row["sample"]) for row in found] == list(range(20))
    squared = [(float(row["prediction"]) - float(row["target"])) ** 2 for row in found]
    assert math.fsum(squared) / 20 == pytest.approx(read(run).metrics["test"]["mse"], rel=1e-5)


@pytest.mark.parametrize("task", ["har2", "uea", "smnist"])
def test_predictions_of_classes(task, fit_here, request):
    root = request.getfixturevalue(FIXTURES[task])
    _, folder = fit_here("model=gru", f"task={task}", *TINY, f"data.root={root}", *SHORT.get(task, []))
    evaluate.again(folder)
    model, found = longwave.load(folder, "cpu"), rows(folder)
    names = model.task["classes"] or [str(number) for number in range(len(found[0]) - 4)]
    assert list(found[0]) == ["split", "sample", "target", "class", *(f"p({name})" for name in names)]
    for split in ("validation", "test"):
        right = [row["class"] == row["target"] for row in found if row["split"] == split]
        assert sum(right) / len(right) == pytest.approx(read(folder).metrics[split]["accuracy"])
    shares = [float(found[0][f"p({name})"]) for name in names]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert found[0]["class"] == names[shares.index(max(shares))]


def test_predictions_at_every_step(fit_here, fake_ptb):
    """A text is read on in the next batch."""
    _, folder = fit_here("model=gru", "task=ptb_char", "task.embedding=3", *TINY, f"data.root={fake_ptb}")
    evaluate.again(folder, "test")
    found = rows(folder)
    assert list(found[0]) == ["split", "sample", "step", "target", "class", "probability"]
    places = [(int(row["sample"]), int(row["step"])) for row in found]
    assert len(set(places)) == len(places)
    nats = read(folder).metrics["test"]["cross_entropy"]
    right = [-math.log(float(row["probability"])) for row in found if row["class"] == row["target"]]
    assert 0 < min(right) < nats


def test_the_training_set(fit_here, fake_har, run):
    _, folder = fit_here("model=gru", "task=har2", *TINY, f"data.root={fake_har}")
    lines = evaluate.again(folder, "train")
    assert [line.partition(":")[0] for line in lines] == ["train cross_entropy", "train accuracy", "predictions"]
    assert not any("record" in line for line in lines[:2])
    with pytest.raises(UserError, match=r"^valid: no such split; there are validation, test, train$"):
        evaluate.again(folder, "valid")
    with pytest.raises(UserError, match=r"^train: no such split; there are test$"):
        evaluate.again(run, "train")


def test_a_difference_is_an_error_with_both_values(run, capsys):
    record = json.loads((run / "record.json").read_text())
    value = record["metrics"]["test"]["mse"]
    other = math.nextafter(value, 1)
    record["metrics"]["test"]["mse"] = record["objective"]["value"] = other
    (run / "record.json").write_text(json.dumps(record))
    with pytest.raises(UserError) as error:
        evaluate.main([str(run)])
    assert str(error.value) == f"test mse is {value!r}, and {other!r} in the record"
    (run / "record.json").write_text(json.dumps(record | {"device": "cuda (A card)", "packages": {"torch": "1.0"}}))
    with pytest.raises(UserError, match=r" in the record \(device cuda \(A card\) then, cpu .* now; torch 1.0 then, "):
        evaluate.main([str(run)])
    assert len(rows(run)) == 20


def test_other_weights_are_noticed(run):
    saved = torch.load(run / "checkpoint.pt")
    saved["model"]["readout.bias"] += 1e-6
    torch.save(saved, run / "checkpoint.pt")
    with pytest.raises(UserError, match=r"^test mse is \S+, and \S+ in the record$"):
        evaluate.again(run)


def test_data_that_have_changed(fit_here, fake_har, tmp_path):
    _, folder = fit_here("model=gru", "task=har2", *TINY, f"data.root={fake_har}")
    assert len(evaluate.again(folder, "test", root=str(fake_har))) == 3
    record = json.loads((folder / "record.json").read_text())
    record["data"]["files"][0]["sha256"] = "0" * 64
    (folder / "record.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="is not what this run was trained on"):
        evaluate.again(folder)


def test_predictions_that_cannot_be_written(run):
    (run / "predictions.csv").mkdir()
    with pytest.raises(UserError, match=r"^cannot write .*predictions.csv: "):
        evaluate.again(run)
