import json
import logging

import numpy as np
import pytest
import torch

from longwave.tasks.eigenworms import Config
from tests.archives import read_plainly, write_ts, zipped

# scikit-learn 1.9.1: train_test_split, as the released codes call it: sizes, and the first six of each part.
SPLITS = {
    "nrde": {
        "train": (181, [165, 98, 22, 55, 34, 148]),
        "validation": (39, [10, 62, 142, 87, 11, 17]),
        "test": (39, [252, 111, 226, 116, 122, 153]),
    },
    "lem": {
        "train": (181, [248, 188, 176, 150, 232, 12]),
        "validation": (39, [95, 231, 48, 6, 59, 250]),
        "test": (39, [212, 217, 182, 73, 29, 94]),
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
    assert torch.cat(list(task.splits.values())).sort().values.tolist() == list(range(259))
    # For every seed the same.
    other = build(fake_archives, 1, protocol=protocol)
    assert torch.equal(other.splits["test"], task.splits["test"])
    assert other.split_id == task.split_id
    assert task.split_id.startswith(f"eigenworms/{protocol}/")


def test_the_split_without_copies(fake_archives):
    task = build(fake_archives, protocol="dedup")
    assert task.notes["series"] == {"train": 165, "validation": 35, "test": 36}
    kept = torch.cat(list(task.splits.values()))
    assert len(set(kept.tolist())) == 236
    # Of copies the first is kept.
    assert not set(kept.tolist()) & {1, 5, 200, *range(239, 259)}
    assert len({task.samples[i].numpy().tobytes() for i in kept}) == 236
    assert task.notes["test_series_with_a_copy_in_train"] == 0
    ids = {build(fake_archives, seed, protocol="dedup").split_id for seed in (0, 1, 1)}
    assert len(ids) == 2


def test_copies_are_reported(fake_archives, caplog):
    with caplog.at_level(logging.INFO, "longwave"):
        task = build(fake_archives, protocol="lem")
    assert task.notes["exact_copies"] == 23
    train, test = (set(task.splits[part].tolist()) for part in ("train", "test"))
    pairs = [*((239 + i, 108 + i) for i in range(20)), (200, 150)]
    groups = [{0, 1, 5}, *map(set, pairs)]
    expected = sum(len(group & test) for group in groups if group & train)
    assert expected > 0
    assert task.notes["test_series_with_a_copy_in_train"] == expected
    assert f"23 of 259 series are exact copies of others; {expected} of 39 test series have one" in caplog.text


def test_stratified(fake_archives):
    everything = build(fake_archives).targets.bincount()
    for protocol in ("nrde", "lem", "dedup"):
        task = build(fake_archives, protocol=protocol, stratified=True)
        total = sum(len(part) for part in task.splits.values())
        assert [len(part) for part in task.splits.values()] == ([165, 35, 36] if total == 236 else [181, 39, 39])
        for part in ("validation", "test"):
            found = task.targets[task.splits[part]].bincount(minlength=5)
            expected = everything * len(task.splits[part]) / 259
            assert (found - expected).abs().max() < 2
        assert task.split_id != build(fake_archives, protocol=protocol).split_id
        assert "/stratified/" in task.split_id


def test_only_nrde_is_normalised(fake_archives):
    raw = build(fake_archives, protocol="lem").samples.double()
    task = build(fake_archives, protocol="nrde")
    steps = raw[task.splits["train"]].reshape(-1, 6).numpy()
    expected = (raw.numpy() - steps.mean(0)) / steps.std(0)
    np.testing.assert_allclose(task.samples, expected, atol=1e-5)
    assert torch.equal(build(fake_archives, protocol="dedup").samples.double(), raw)


def test_shapes(fake_archives):
    task = build(fake_archives)
    x, target = task.batch(0, 8)
    assert (x.shape, target.shape) == ((9, 8, 6), (8,))
    assert (task.inputs, task.outputs, task.metric) == (6, 5, "accuracy")
    assert task.classes == ["1", "2", "3", "4", "5"]
    timed = build(fake_archives, time=True)
    x, _ = timed.batch(0, 8)
    assert timed.inputs == 7
    assert x[:, 3, 0].tolist() == pytest.approx([t / 8 for t in range(9)])


def test_unknown_protocol():
    with pytest.raises(ValueError, match="protocol=mine: must be one of nrde, lem, dedup"):
        Config(protocol="mine")


def test_trains(fake_archives, fit_here, monkeypatch):
    monkeypatch.setenv("LONGWAVE_DATA", str(fake_archives))
    _, folder = fit_here("model=cornn", "task=eigenworms", "task.protocol=lem", "debug=fast", "training.batch_size=8")
    data = json.loads((folder / "record.json").read_text())["data"]
    assert data["split_id"].startswith("eigenworms/lem/")
    assert data["notes"]["exact_copies"] == 23


def test_the_official_length(tmp_path):
    rng = np.random.default_rng(1)
    series = [rng.normal(0, 9, (17984, 6)).round(5) for _ in range(7)]
    labels = [i % 5 + 1 for i in range(7)]
    paths = [
        write_ts(tmp_path / "uea" / f"EigenWorms_{part}.ts", series[where], labels[where], [1, 2, 3, 4, 5])
        for part, where in (("TRAIN", slice(0, 5)), ("TEST", slice(5, 7)))
    ]
    expected, _ = read_plainly(paths[0])
    zipped(tmp_path / "uea", "EigenWorms.zip", *paths)
    task = build(tmp_path, protocol="lem")
    assert task.samples.shape == (7, 17984, 6)
    assert np.array_equal(task.samples[3], expected[3].astype(np.float32))
    x, _ = next(task.evaluation("test"))
    assert x.shape == (17984, 2, 6)
    # 27 at once: the states of a wide model over so many steps are large.
    assert task.evaluation_batch == 27
