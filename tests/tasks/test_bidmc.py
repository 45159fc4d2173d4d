import json
import math

import numpy as np
import pytest
import torch

from longwave.tasks.bidmc import SOURCES, Config
from tests.archives import bidmc

# scikit-learn 1.9.1 and torch, as the released codes call them: sizes, and the first of each part.
SPLITS = {
    "nrde": {
        "train": (5563, [4095, 4594, 5596, 7813, 4550, 1749]),
        "validation": (1193, [3841, 1209, 5715, 6243, 5789, 3271]),
        "test": (1193, [3402, 1454, 167, 1742, 5673, 6821]),
    },
    "s4": {
        "train": (5564, [4225, 7371, 6695, 6492, 1427, 1668]),
        "validation": (1192, [1700, 470, 6409, 1775, 4008, 7657]),
        "test": (1193, [1864, 7060, 2455, 6584, 130, 2708]),
    },
    "lem": {
        "train": (5565, [6018, 4595, 84, 1832, 482, 4232]),
        "validation": (1192, [3909, 350, 5400, 1081, 6772, 5480]),
        "test": (1192, [7826, 3524, 6568, 5815, 4555, 1908]),
    },
}


def build(root, seed=0, **config):
    return Config(**config).build(seed, root)


@pytest.mark.parametrize("protocol", SPLITS)
def test_the_papers_splits(fake_archives, protocol):
    task = build(fake_archives, protocol=protocol)
    for part, (size, first) in SPLITS[protocol].items():
        assert len(task.splits[part]) == size
        assert task.splits[part][:6].tolist() == first
    assert torch.cat(list(task.splits.values())).sort().values.tolist() == list(range(7949))
    assert build(fake_archives, 1, protocol=protocol).split_id == task.split_id


def test_a_split_by_the_seed(fake_archives):
    task = build(fake_archives, protocol="unicornn")
    assert task.notes["series"] == {"train": 5564, "validation": 1192, "test": 1193}
    assert torch.cat(list(task.splits.values())).sort().values.tolist() == list(range(7949))
    assert build(fake_archives, 1, protocol="unicornn").split_id != task.split_id
    assert build(fake_archives, 0, protocol="unicornn").split_id == task.split_id


def test_the_official_split(fake_archives):
    task = build(fake_archives, protocol="official", validation=0.2)
    assert task.splits["test"].tolist() == list(range(5550, 7949))
    assert len(task.splits["validation"]) == 1110
    both = torch.cat([task.splits["train"], task.splits["validation"]])
    assert both.sort().values.tolist() == list(range(5550))


def test_lem_splits_a_known_number(tmp_path):
    bidmc(tmp_path, train=4, test=3)
    with pytest.raises(OSError, match=r"BIDMC32RR: 7 series, and task\.protocol=lem splits 7949"):
        build(tmp_path, protocol="lem")


def test_series_and_targets(fake_archives):
    task = build(fake_archives, name="bidmc_rr", protocol="lem")
    x, target = next(task.evaluation("test"))
    assert (task.inputs, task.outputs, task.metric) == (2, 1, "rmse")
    assert x.shape == (3, 1000, 2)
    index = task.splits["test"][:1000]
    assert torch.equal(x[:, :, 0], index + torch.arange(3)[:, None] / 8)
    assert torch.equal(x[:, :, 1], index - torch.arange(3)[:, None] / 8)
    torch.testing.assert_close(target, index / 100)
    assert [file for file, _ in task.files] == [source.path.removeprefix("uea/") for source in SOURCES["bidmc_rr"]]
    train, test = task.targets[task.splits["train"]], task.targets[task.splits["test"]]
    assert task.baseline == {"rmse": pytest.approx(((test - train.mean()) ** 2).mean().sqrt().item())}


def test_only_nrde_is_normalised(fake_archives):
    raw = build(fake_archives, protocol="s4").samples.double().numpy()
    task = build(fake_archives, protocol="nrde")
    steps = raw[task.splits["train"].numpy()].reshape(-1, 2)
    np.testing.assert_allclose(task.samples, (raw - steps.mean(0)) / steps.std(0), atol=1e-5)


def test_addresses_are_the_records_that_the_papers_used_first():
    assert SOURCES["bidmc_hr"][1].urls == (
        "https://zenodo.org/records/4001456/files/BIDMC32HR_TEST.ts",
        "https://zenodo.org/records/18485047/files/BIDMC32HR_TEST.ts",
    )


def test_loss_and_metric_of_nrde(fake_archives):
    task = build(fake_archives, loss="batch_rmse", metric="batch_rmse")
    assert (task.objective, task.metric, task.evaluation_batch) == ("batch_rmse", "batch_rmse", 512)
    output, target = torch.tensor([[1.0], [2.0], [4.0]], requires_grad=True), torch.tensor([1.0, 0.0, 1.0])
    scores = task.scores(output, target)
    expected = math.sqrt((0 + 4 + 9) / 3 + 1e-6)
    assert scores["batch_rmse"].tolist() == pytest.approx([expected] * 3)
    # The loss is its mean, whose gradient is that of the root.
    scores["batch_rmse"].mean().backward()
    assert output.grad[:, 0].tolist() == pytest.approx([0, 2 / 3 / expected, 3 / 3 / expected])
    # Over batches of 512, 512 and 169: weighted by their size.
    batches = [target for _, target in task.evaluation("test")]
    assert [len(batch) for batch in batches] == [512, 512, 169]
    means = {"mse": 0.0, "batch_rmse": 0.0}
    for batch in batches:
        for key, values in task.scores(torch.zeros(len(batch), 1), batch).items():
            means[key] += values.double().sum().item() / 1193
    roots = [batch.double().square().mean().sqrt().item() for batch in batches]
    found = task.summary(means)
    assert found["batch_rmse"] == pytest.approx(sum(len(b) * r for b, r in zip(batches, roots, strict=True)) / 1193)
    assert found["rmse"] == pytest.approx(torch.cat(batches).double().square().mean().sqrt().item())
    assert found["batch_rmse"] < found["rmse"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"protocol": "mine"}, "protocol=mine: must be one of nrde, lem, unicornn, s4, official"),
        ({"loss": "rmse"}, "loss=rmse: must be one of mse, batch_rmse"),
        ({"metric": "mse"}, "metric=mse: must be one of rmse, batch_rmse"),
        ({"validation": 0.0}, r"validation=0\.0: must be greater than 0"),
    ],
)
def test_what_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        Config(**config)


@pytest.mark.parametrize("task", ["bidmc_hr", "bidmc_spo2"])
def test_trains(fake_archives, fit_here, monkeypatch, task):
    monkeypatch.setenv("LONGWAVE_DATA", str(fake_archives))
    objective, folder = fit_here(
        "model=cornn", f"task={task}", "task.loss=batch_rmse", "debug=fast", "training.batch_size=8"
    )
    record = json.loads((folder / "record.json").read_text())
    assert record["data"]["split_id"].startswith(f"{task}/nrde/")
    assert record["objective"] == {"key": "validation/rmse", "value": objective}
    assert objective == pytest.approx(math.sqrt(record["metrics"]["validation"]["mse"]))
