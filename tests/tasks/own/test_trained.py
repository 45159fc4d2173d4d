"""A model that was trained on a user's files, on raw samples: the same as on the task's own batches."""

import csv

import numpy as np
import pytest
import torch

import longwave
from longwave.training.build import build
from longwave.training.config import restore
from longwave.training.evaluate import again
from longwave.training.record import read


def arrays(kind: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(3, 2, size=(40, 7, 2)).astype(np.float32)
    lengths = random.integers(4, 8, 40)
    for one, length in zip(x, lengths, strict=True):
        one[length:] = 0
    classes = (x[:, 0, 0] > 3).astype(np.int64)
    found = {"x": x, "lengths": lengths, "y": classes}
    if kind == "numbers":
        found["y"] = 100 + 10 * x[:, :4].mean((1, 2))
    elif kind == "steps":
        found["y"] = np.where(np.arange(7) < lengths[:, None], classes[:, None], -1)
    elif kind == "times":
        found["t"] = random.uniform(0.5, 2, (40, 7)).cumsum(1)
    return found


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("classes", []),
        ("classes", ["task.class_weights=balanced", "task.time=true"]),
        ("numbers", []),
        ("steps", []),
        ("times", ["task.time=true", "task.normalise=false"]),
    ],
)
def test_raw_samples_are_prepared_as_in_training(kind, settings, fit_here, tmp_path):
    data = arrays(kind)
    np.savez(tmp_path / "own.npz", **data)
    run = ["model=gru", "task=files", f"task.path={tmp_path / 'own.npz'}", "recipe=none", "model.hidden=4", *settings]
    _, folder = fit_here(*run, "training.steps=6", "training.batch_size=8")
    trained = longwave.load(folder, "cpu")
    task, _ = build(restore(read(folder).config))
    samples = [one[:length] for one, length in zip(data["x"], data["lengths"], strict=True)]
    if kind == "times":
        samples = [(x, t[: len(x)] - t[0]) for x, t in zip(samples, data["t"], strict=True)]
    indices = task.splits["test"]
    x, target, *lengths = task._take(indices)
    for place, prepared in enumerate(trained.prepare([samples[i] for i in indices])):
        torch.testing.assert_close(prepared, x[: len(prepared), place])
    found = trained.predict([samples[i] for i in indices])
    outputs = trained.network(x, *lengths)
    if kind == "numbers":
        expected = outputs.detach() * task.unit[1] + task.unit[0]
        torch.testing.assert_close(found.outputs, expected)
        assert (found.outputs - 100).abs().max() < 100
        rmse = (found.outputs[:, 0] - target).square().mean().sqrt().item()
        assert rmse == pytest.approx(read(folder).metrics["test"]["rmse"], rel=1e-5)
    elif kind != "steps":
        torch.testing.assert_close(found.probabilities, outputs.softmax(-1))
        assert found.names == task.classes
    again(folder)
    rows = list(csv.DictReader((folder / "predictions.csv").open()))
    counted = sum(int(data["lengths"][i]) for i in indices) if kind == "steps" else len(indices)
    assert len([row for row in rows if row["split"] == "test"]) == counted


def test_what_is_no_such_sample(fit_here, tmp_path):
    np.savez(tmp_path / "own.npz", **arrays("times"))
    run = ["model=gru", "task=files", f"task.path={tmp_path / 'own.npz'}", "recipe=none", "model.hidden=4"]
    _, folder = fit_here(*run, "task.time=true", "training.steps=2", "training.batch_size=8")
    trained, x = longwave.load(folder, "cpu"), np.zeros((5, 2), np.float32)
    for sample, reason in (
        (x, r"sample 0: must be a pair: steps"),
        ((x, np.zeros(4)), r"sample 0: must have a time for each of 5 steps"),
        ((x[:, :1], np.zeros(5)), r"sample 0: must have 2 channels, got 1"),
        ((x + np.nan, np.arange(5.0)), r"sample 0: has missing values"),
    ):
        with pytest.raises(ValueError, match=reason):
            trained.predict([sample])
