import numpy as np
import pytest
import torch

from longwave.tasks import fitzhugh_nagumo
from longwave.tasks.fitzhugh_nagumo import Config, series
from longwave.training import record


def runge_kutta(v0: float, steps: int) -> np.ndarray:
    """v at the 1,001 points, by the classical method in small steps."""
    h = 0.4 / steps

    def slope(y):
        v, w = y
        return np.array([v - v**3 / 3 - w + 0.5, (v + 0.7 - 0.8 * w) * 0.02])

    y, found = np.array([v0, 0.0]), []
    for n in range(1000 * steps + 1):
        if n % steps == 0:
            found.append(y[0])
        a = slope(y)
        b = slope(y + h / 2 * a)
        c = slope(y + h / 2 * b)
        y = y + h / 6 * (a + 2 * b + 2 * c + slope(y + h * c))
    return np.array(found)


def test_series_solve_the_equation(tmp_path):
    v = series(tmp_path, seed=0, count=3, points=1001)
    assert v.shape == (3, 1001)
    assert (v[:, 0].abs() < 1).all()
    assert len(v[:, 0].unique()) == 3
    exact = runge_kutta(v[0, 0].item(), 4)
    # The solver's default tolerance is 1e-3 a step, and jumps between the branches come a little early or late.
    error = np.abs(v[0].numpy() - exact)
    assert np.median(error) < 5e-3
    assert error[:100].max() < 0.05
    assert v.max() < 2.2
    assert v.min() > -2.2


def test_the_next_value_at_every_point(few_neurons, tmp_path):
    task = Config().build(0, few_neurons)
    x, target = next(task.evaluation("test"))
    assert x.shape == (1000, 5, 1)
    assert target.shape == (1000, 5)
    assert torch.equal(x[1:, :, 0], target[:-1])
    assert torch.equal(x[:, :, 0], task.samples[7:12, :-1].T)
    assert (task.read, task.metric, task.higher_is_better) == ("every", "rmse", False)
    assert [len(task.splits[name]) for name in ("train", "validation", "test")] == [4, 3, 5]
    assert torch.equal(task.samples, Config().build(1, few_neurons).samples)
    assert next(Config(points=9).build(0, tmp_path).evaluation("test"))[0].shape == (8, 5, 1)


def test_published_sizes():
    assert fitzhugh_nagumo.SIZES == {"train": 128, "validation": 128, "test": 1024}


def test_the_last_batch_of_the_test_set_is_tested_too(few_neurons, monkeypatch, fit_here):
    """The released code's figure is of the last 128 of 1,024."""
    assert fitzhugh_nagumo.LAST == 128
    monkeypatch.setattr(fitzhugh_nagumo, "LAST", 2)
    task = Config().build(0, few_neurons)
    assert task.tests == ("test", "test_last_128")
    assert task.splits["test_last_128"].tolist() == [10, 11]
    _, folder = fit_here(
        f"data.root={few_neurons}", "model=lstm", "task=fitzhugh_nagumo", "model.hidden=3", "training.epochs=1",
    )  # fmt: skip
    metrics = record.read(folder).metrics
    assert metrics["test"].keys() == metrics["test_last_128"].keys() == {"mse", "rmse"}
    assert metrics["test"] != metrics["test_last_128"]


def test_the_root_is_taken_of_the_mean(few_neurons):
    task = Config().build(0, few_neurons)
    scores = task.scores(torch.tensor([[[1.0]], [[5.0]]]), torch.tensor([[1.0], [2.0]]))
    assert scores["mse"].tolist() == [[0], [9]]
    assert task.summary({"mse": 9 / 2}) == {"mse": 4.5, "rmse": pytest.approx(4.5**0.5)}
    x, target = next(task.evaluation("test"))
    # That nothing changes.
    mean = task.scores(x, target)["mse"].mean().item()
    assert task.summary({"mse": mean})["rmse"] == pytest.approx(task.baseline["rmse"], rel=1e-5)


def test_trains(few_neurons, fit_here):
    objective, _ = fit_here(
        f"data.root={few_neurons}", "model=lstm", "task=fitzhugh_nagumo", "model.hidden=3", "training.batch_size=3",
        "training.epochs=1",
    )  # fmt: skip
    assert 0 < objective < 3
    assert len(list((few_neurons / "cache").glob("fitzhugh_nagumo-*.pt"))) == 1
