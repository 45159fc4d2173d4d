"""A user's own data through the loop: split, prepared by the training set alone, scored as people report it."""

import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch.nn import functional as F

from longwave.models.network import Network
from longwave.tasks import show
from longwave.tasks.checks import DataError
from longwave.tasks.files import Config, OnDisk
from longwave.tasks.own.content import content_of
from longwave.tasks.own.reading import read
from longwave.training.config import compose_run
from longwave.training.errors import UserError
from tests.archives import write_ts

RNG = np.random.default_rng(0)
N, STEPS, CHANNELS = 60, 7, 2
LABELS = np.array(["no", "yes", "perhaps"])[RNG.choice(3, N, p=[0.6, 0.25, 0.15])]
X = RNG.normal(3, 2, (N, STEPS, CHANNELS)).astype(np.float32)
LENGTHS = RNG.integers(2, STEPS + 1, N)
LENGTHS[0] = STEPS
GROUPS = RNG.integers(0, 12, N)


@pytest.fixture
def build(tmp_path):
    """``build({"x": ...}, seed=0, **settings)``: the task of these arrays."""

    def call(arrays: dict | None = None, seed: int = 0, **settings):
        np.savez(tmp_path / "my.npz", **({"x": X, "y": LABELS} | (arrays or {})))
        return Config(path=str(tmp_path / "my.npz"), **settings).build(seed, tmp_path)

    return call


def parts(task) -> dict[str, list[int]]:
    return {key: sorted(part.tolist()) for key, part in task.splits.items()}


# Batches


def test_a_batch(build):
    task = build({"lengths": LENGTHS})
    x, target, lengths = task.batch(0, 10)
    assert x.shape == (lengths.max(), 10, CHANNELS)
    assert (task.inputs, task.outputs, task.classes) == (CHANNELS, 3, ["no", "perhaps", "yes"])
    index = task._order[1][:10]
    assert [task.classes[code] for code in target] == LABELS[index].tolist()
    assert lengths.tolist() == LENGTHS[index].tolist()
    for place, length in enumerate(lengths):
        assert (x[length:, place] == 0).all()
    # A function of seed and step, and each epoch goes once through the training set.
    again = build({"lengths": LENGTHS})
    assert torch.equal(again.batch(7, 10)[0], task.batch(7, 10)[0])
    assert not torch.equal(build({"lengths": LENGTHS}, seed=1).batch(7, 10)[0], task.batch(7, 10)[0])
    seen = torch.cat([task.batch(step, 10)[1] for step in range(task.steps_per_epoch(10))])
    assert sorted(seen.tolist()) == sorted(task.targets[task.splits["train"]].tolist())


def test_equal_lengths_come_without(build):
    assert len(build().batch(0, 4)) == 2


def test_statistics_are_those_of_the_training_set(build):
    task = build({"lengths": LENGTHS})
    train = task.splits["train"].numpy()
    inside = np.concatenate([X[i, : LENGTHS[i]] for i in train]).astype(float)
    expected = (X - inside.mean(0)) / inside.std(0)
    for index in range(N):
        length = LENGTHS[index]
        assert task.samples[index, :length].numpy() == pytest.approx(expected[index, :length], abs=1e-5)
    # What is in the other sets does not matter.
    other = X.copy()
    test = task.splits["test"].numpy()
    other[test] *= 1000
    assert torch.equal(build({"x": other, "lengths": LENGTHS}).samples[train], task.samples[train])
    assert torch.equal(build(normalise=False).samples, torch.from_numpy(X))
    assert (build({"x": np.ones_like(X)}).samples == 0).all()


def test_time_as_a_channel(build):
    t = np.cumsum(RNG.uniform(0.1, 2, (N, STEPS)), 1) + 100
    task = build({"t": t, "lengths": LENGTHS}, time=True)
    train = task.splits["train"].numpy()
    longest = max(t[i, LENGTHS[i] - 1] - t[i, 0] for i in train)
    for index in range(N):
        length = LENGTHS[index]
        assert task.samples[index, :length, 0].numpy() == pytest.approx((t[index, :length] - t[index, 0]) / longest)
    plain = build(time=True)
    assert plain.inputs == CHANNELS + 1
    assert plain.samples[3, :, 0].tolist() == pytest.approx(np.linspace(0, 1, STEPS).tolist())


# Missing values


@pytest.fixture
def gaps() -> np.ndarray:
    """Values of which some are missing inside; of sample 3 also the first two of channel 1, of sample 4 all of it."""
    x = np.where(RNG.random(X.shape) < 0.2, np.nan, X)
    x[:, [0, -1]] = X[:, [0, -1]]
    x[3, :2, 1] = np.nan
    x[3, 2, 1] = X[3, 2, 1]
    x[4, :, 1] = np.nan
    return x


def test_a_mask_is_a_channel_for_each(build, gaps):
    task = build({"x": gaps, "lengths": LENGTHS}, missing="mask")
    there = ~np.isnan(gaps) & (np.arange(STEPS) < LENGTHS[:, None])[:, :, None]
    assert task.inputs == 2 * CHANNELS
    assert np.array_equal(task.samples[..., CHANNELS:].numpy(), there)
    # What is missing is the mean, 0; the statistics are those of what is there.
    assert (task.samples[..., :CHANNELS].numpy()[~there] == 0).all()
    train = task.splits["train"].numpy()
    first = task.samples[train][..., 0].numpy()[there[train][..., 0]]
    assert abs(first.mean()) < 1e-5
    assert first.std() == pytest.approx(1, abs=1e-4)
    assert task.notes["missing_values"] == int(
        (np.isnan(gaps) & (np.arange(STEPS) < LENGTHS[:, None])[..., None]).sum()
    )


@pytest.mark.parametrize("how", ["forward", "linear"])
def test_gaps_are_filled_inside_the_series(build, gaps, how):
    t = np.cumsum(RNG.uniform(0.1, 2, (N, STEPS)), 1)
    with pytest.raises(DataError, match=rf"x\[3, 0, 1\]: a missing value without one .*, for task\.missing={how}; use"):
        build({"x": gaps, "t": t}, missing=how)
    task = build({"x": gaps, "t": t}, missing=how, missing_ends="mean", normalise=False)
    train = task.splits["train"].numpy()
    means = np.nanmean(gaps[train].astype(np.float32), (0, 1))
    for index in range(N):
        for channel in range(CHANNELS):
            there = np.flatnonzero(~np.isnan(gaps[index, :, channel]))
            for step in range(STEPS):
                before, after = there[there <= step], there[there >= step]
                if how == "forward":
                    expected = gaps[index, before[-1], channel] if len(before) else means[channel]
                elif len(before) and len(after):
                    expected = np.interp(t[index, step], t[index, there], gaps[index, there, channel])
                else:
                    expected = means[channel]
                assert task.samples[index, step, channel] == pytest.approx(expected, rel=1e-4)


def test_padding_is_never_filled(build):
    x = X.copy()
    x[np.arange(STEPS) >= LENGTHS[:, None]] = np.nan
    for how in ("refuse", "forward", "linear"):
        task = build({"x": x, "lengths": LENGTHS}, missing=how)
        assert task.notes["missing_values"] == 0
        assert (task.samples.numpy()[np.arange(STEPS) >= LENGTHS[:, None]] == 0).all()


# On disk


@pytest.mark.parametrize(
    "settings", [{}, {"missing": "mask", "time": True}, {"missing": "linear", "missing_ends": "mean"}]
)
def test_a_large_array_is_read_batch_by_batch(tmp_path, gaps, settings):
    folder = tmp_path / "my"
    folder.mkdir()
    arrays = {"x": gaps.astype(np.float32) if settings else X, "y": LABELS, "lengths": LENGTHS}
    arrays["t"] = np.cumsum(RNG.uniform(0.1, 2, (N, STEPS)), 1)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    held = Config(path=str(folder), **settings).build(0, tmp_path)
    there = Config(path=str(folder), memory=1e-6, **settings).build(0, tmp_path)
    assert type(there) is OnDisk
    assert there.samples.numel() == 0
    assert there.split_id == held.split_id
    for step in (0, 1, 9, 2):
        for ours, theirs in zip(there.batch(step, 8), held.batch(step, 8), strict=True):
            assert torch.equal(ours, theirs)
    for ours, theirs in zip(there.evaluation("test"), held.evaluation("test"), strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert compose_run(["task=files", f"task.path={folder}", "task.memory=1e-6"])[0].identity() == identity(folder)


MEASURE = """
import sys
from pathlib import Path

from longwave.tasks.files import Config

task = Config(path=sys.argv[1], memory=float(sys.argv[2])).build(0, Path(sys.argv[3]))
for step in range(task.steps_per_epoch(16)):
    task.batch(step, 16)
# Of this program alone; getrusage has the peak of the process that started it, too.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(type(task).__name__, peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_stays_bounded(tmp_path):
    folder = tmp_path / "my"
    folder.mkdir()
    # 800 MB.
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (2000, 10_000, 10))
    for index in range(0, 2000, 100):
        x[index : index + 100] = np.random.default_rng(index).normal(size=(100, 10_000, 10))
    x.flush()
    np.save(folder / "y.npy", np.arange(2000) % 2)
    peaks = {}
    for memory in ("0.1", "8"):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, folder, memory, tmp_path], capture_output=True, text=True, check=True
        )
        kind, peak = done.stdout.split()
        peaks[kind] = int(peak) / 1e3
    assert peaks["OnDisk"] < peaks["Files"] - 600


# Targets


def test_numbers_are_learned_in_their_deviation_and_scored_in_their_unit(build):
    torch.manual_seed(0)
    y = X.mean((1, 2)).astype(float) * 100 + 50
    task = build({"y": y})
    train, test = task.splits["train"].numpy(), task.splits["test"].numpy()
    mean, deviation = y[train].mean(), y[train].std()
    assert (task.objective, task.metric, task.higher_is_better, task.outputs) == ("mse", "rmse", False, 1)
    output, target = torch.randn(len(test), 1), task.targets[test]
    scaled = (y[test] - mean) / deviation
    assert task.scores(output, target)["mse"].numpy() == pytest.approx((output[:, 0].numpy() - scaled) ** 2, abs=1e-5)
    predicted = output[:, 0].double().numpy() * deviation + mean
    found = task.metrics(*task.predictions(output, target))
    assert found["rmse"] == pytest.approx(math.sqrt(((predicted - y[test]) ** 2).mean()), rel=1e-5)
    assert found["mae"] == pytest.approx(np.abs(predicted - y[test]).mean(), rel=1e-5)
    assert found["r2"] == pytest.approx(metrics.r2_score(y[test], predicted), rel=1e-4)
    assert task.baseline["rmse"] == pytest.approx(math.sqrt(((mean - y[test]) ** 2).mean()), rel=1e-4)
    plain = build({"y": y}, scale_target=False)
    assert plain.scores(output, target)["mse"].numpy() == pytest.approx((output[:, 0].numpy() - y[test]) ** 2)


def test_a_target_a_step(build):
    y = (X[:, :, 0] > 3).astype(int)
    y[5, 0] = -1
    task = build({"y": y, "lengths": LENGTHS})
    assert task.read == "every"
    x, target, lengths = task.batch(0, 8)
    assert target.shape == x.shape[:2]
    index = task._order[1][:8].tolist()
    valid = [label for i in index for label in y[i, : LENGTHS[i]] if label >= 0]
    assert sorted(target[target >= 0].tolist()) == sorted(valid)
    torch.manual_seed(0)
    output = torch.randn(*target.shape, 2)
    loss = task.scores(output, target)["cross_entropy"]
    assert len(loss) == len(valid) <= int(lengths.sum())
    expected = F.cross_entropy(output[target >= 0], target[target >= 0])
    assert loss.mean() == pytest.approx(expected.item())
    numbers = build({"y": X[:, :, 1].astype(float), "lengths": LENGTHS})
    _, target, lengths = numbers.batch(0, 8)
    assert len(numbers.scores(torch.zeros(*target.shape, 1), target)["mse"]) == lengths.sum()


def test_balanced_class_weights(build):
    task = build(class_weights="balanced")
    seen = LABELS[task.splits["train"].numpy()]
    weights = {name: len(seen) / (3 * (seen == name).sum()) for name in task.classes}
    torch.manual_seed(0)
    output, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    scores = task.scores(output, target)
    loss = F.cross_entropy(output, target, reduction="none")
    expected = loss * torch.tensor([weights[task.classes[code]] for code in target])
    assert scores["weighted_cross_entropy"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert (task.objective, task.metric) == ("weighted_cross_entropy", "accuracy")
    # Over the training set the weights are 1 on average.
    assert sum(weights[name] for name in seen) == pytest.approx(len(seen))


# Metrics


@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_are_those_of_scikit_learn(build, classes):
    task = build({"y": np.arange(N) % classes})
    torch.manual_seed(0)
    logits, target = torch.randn(40, classes), torch.arange(40) % classes
    found = task.metrics(*task.predictions(logits, target))
    probabilities, chosen, true = logits.double().softmax(1).numpy(), logits.argmax(1).numpy(), target.numpy()
    score = probabilities[:, 1] if classes == 2 else probabilities
    assert found == pytest.approx(
        {
            "accuracy": (chosen == true).mean(),
            "balanced_accuracy": np.mean([(chosen == c)[true == c].mean() for c in range(classes)]),
            "macro_f1": metrics.f1_score(true, chosen, average="macro"),
            "log_loss": F.cross_entropy(logits.double(), target).item(),
            "auroc": metrics.roc_auc_score(true, score, multi_class="ovr"),
        }
    )
    # Without samples of a class there is no AUROC.
    assert "auroc" not in task.metrics(*task.predictions(logits[::classes], target[::classes]))


def test_the_baseline_is_the_majority(build):
    task = build(split="random", metric="macro_f1")
    seen, test = LABELS[task.splits["train"].numpy()], LABELS[task.splits["test"].numpy()]
    assert task.baseline["accuracy"] == pytest.approx((test == "no").mean())
    assert task.baseline["balanced_accuracy"] == pytest.approx(1 / len(set(test)))
    frequencies = {name: (seen == name).mean() for name in task.classes}
    assert task.baseline["log_loss"] == pytest.approx(-np.mean([np.log(frequencies[name]) for name in test]), rel=1e-5)
    assert task.higher_is_better


# Splits


def test_a_stratified_split(build):
    task = build()
    assert "/stratified/" in task.split_id
    assert {key: len(part) for key, part in task.splits.items()} == {"train": 43, "validation": 8, "test": 9}
    assert sorted(itertools.chain(*parts(task).values())) == list(range(N))
    for name in set(LABELS):
        share = (name == LABELS).mean()
        for part in parts(task).values():
            assert (LABELS[part] == name).sum() == pytest.approx(share * len(part), abs=1.01)
    assert build(seed=1).split_id != task.split_id == build().split_id
    assert build(split="random").split_id != task.split_id


def test_no_group_is_in_two_splits(build):
    for seed in range(5):
        task = build({"group": GROUPS}, seed=seed)
        assert "/group/" in task.split_id
        found = [set(GROUPS[part]) for part in parts(task).values()]
        assert len(found) == 3
        assert sum(map(len, found)) == len(set(GROUPS))
        assert sorted(itertools.chain(*parts(task).values())) == list(range(N))
    assert "/stratified/" in build({"group": GROUPS}, split="stratified").split_id


def test_the_split_of_the_file(build):
    split = np.array(["train", "TEST", "val"])[np.arange(N) % 3]
    task = build({"split": split})
    assert parts(task) == {key: list(range(i, N, 3)) for i, key in ((0, "train"), (2, "validation"), (1, "test"))}
    split[split == "val"] = "train"
    task = build({"split": split})
    assert parts(task)["test"] == list(range(1, N, 3))
    assert len(task.splits["validation"]) == 6
    assert build({"split": split}, validation=0.0).monitor == "test"


@pytest.mark.parametrize("how", ["random", "stratified", "group"])
def test_folds(build, how):
    tests = []
    for fold in range(5):
        task = build({"group": GROUPS}, split=how, folds=5, fold=fold)
        assert f"/{how}/fold={fold}/5/" in task.split_id
        assert sorted(itertools.chain(*parts(task).values())) == list(range(N))
        tests.append(parts(task)["test"])
        if how == "group":
            found = [set(GROUPS[part]) for part in parts(task).values()]
            assert sum(map(len, found)) == len(set(GROUPS))
    assert sorted(itertools.chain(*tests)) == list(range(N))
    if how != "group":
        assert {len(test) for test in tests} == {12}
    else:
        assert max(map(len, tests)) - min(map(len, tests)) <= 4
    if how == "stratified":
        for name in set(LABELS):
            counts = [(LABELS[test] == name).sum() for test in tests]
            assert max(counts) - min(counts) <= 1


def test_whole_numbers_may_be_predicted(build):
    assert build({"y": np.arange(N) + 60}, predict="numbers").metric == "rmse"
    assert len(build({"y": np.arange(N) + 60}, predict="classes", split="random").classes) == N


def test_numbers_are_not_stratified(build):
    assert "/random/" in build({"y": X.mean((1, 2))}).split_id


# Identity


def identity(path, *overrides) -> str:
    return compose_run(["task=files", f"task.path={path}", *overrides])[0].identity()


def test_the_run_is_named_by_the_content(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=LABELS)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    first = identity(tmp_path / "a.npz")
    assert identity(tmp_path / "elsewhere" / "b.npz") == first
    assert identity(tmp_path / "a.npz", "task.memory=1", "task.title=mine") == first
    assert identity(tmp_path / "a.npz", "task.missing=mask") != first
    mended = LABELS.copy()
    mended[0] = "no" if mended[0] == "yes" else "yes"
    np.savez(tmp_path / "a.npz", x=X, y=mended)
    assert identity(tmp_path / "a.npz") != first
    # What it was can be asked for.
    content = content_of({"path": tmp_path / "elsewhere" / "b.npz"})
    with pytest.raises(UserError, match=r"task\.content=.*: the data have changed; their sha256 is now "):
        identity(tmp_path / "a.npz", f"task.content={content}")
    assert identity(tmp_path / "elsewhere" / "b.npz", f"task.content={content}") == first
    assert identity(tmp_path / "gone.npz", f"task.content={content}") == first


def test_folds_of_one_experiment_share_a_group(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=LABELS)
    runs = [
        compose_run(["task=files", f"task.path={tmp_path / 'a.npz'}", "task.folds=3", f"task.fold={fold}"])[0]
        for fold in range(3)
    ]
    assert len({run.identity() for run in runs}) == 3
    assert len({run.identity(with_seed=False) for run in runs}) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.path=gone.npz"], r"^task\.path=gone\.npz: no such file or folder \(.*gone\.npz\)$"),
        (["task.fold=1"], r"^task\.fold=1: is one of task\.folds; set that too"),
        (["task.folds=5"], r"^task\.fold=null: must be from 0 to 4; -m task\.fold=0,1,2,3,4 runs all$"),
        (["task.folds=5", "task.fold=5"], r"^task\.fold=5: must be from 0 to 4"),
        (["task.folds=5", "task.fold=0", "task.split=file"], r"^task\.split=file: has no folds"),
        (["task.validation=0.5", "task.test=0.5"], r"^task\.validation=0\.5: leaves nothing to train on"),
        (["task.missing=zero"], r"^task\.missing=zero: must be one of refuse, forward, linear, mask"),
        (["task.metric=f1"], r"^task\.metric=f1: must be one of null, accuracy, .* r2"),
        (["task.target=y"], r"^task\.target: no such key"),
    ],
)
def test_a_wrong_key_is_one_line(overrides, message):
    with pytest.raises(UserError, match=message):
        compose_run(["task=files", *overrides])


WRONG = [
    ({"y": np.full(N, "a")}, {}, "one class, 'a'; there must be two or more"),
    ({}, {"folds": 61, "fold": 0}, "task.folds=61: 60 samples, fewer than folds"),
    ({"group": GROUPS}, {"folds": 13, "fold": 0}, "task.folds=13: 12 groups, fewer than folds"),
    ({}, {"split": "group"}, "task.split=group: has no groups"),
    ({}, {"split": "file"}, "task.split=file: has no split"),
    ({"y": X.mean((1, 2))}, {"split": "stratified"}, "task.split=stratified: needs one class a sample"),
    ({"y": X.mean((1, 2))}, {"class_weights": "balanced"}, "task.class_weights=balanced: there are no classes"),
    ({"y": X.mean((1, 2))}, {"metric": "auroc"}, "task.metric=auroc: must be one of rmse, mae, r2"),
    ({}, {"metric": "rmse"}, "task.metric=rmse: must be one of accuracy, balanced_accuracy"),
    ({"split": np.full(N, "train")}, {}, "its split has no test samples"),
    ({"y": np.arange(N) + 60}, {}, "60 different whole numbers as targets of 60 samples; set task.predict=numbers"),
    ({"y": np.where(np.arange(N)[:, None] == 5, -1, np.arange(STEPS) % 2)}, {}, "x[5]: a sample without any target"),
    ({"split": np.where(np.arange(N) == 7, "holdout", "train")}, {}, "split[7]: 'holdout' is not train, validation"),
    ({"x": X[:2], "y": LABELS[:2]}, {}, "2 samples, too few: none is left to train on"),
    ({"y": np.where(np.arange(N) == 0, "rare", "often")}, {"metric": "auroc"}, "task.metric=auroc: needs all classes"),
    ({"x": np.where(X[3, 4, 1] == X, np.nan, X)}, {},
     "x[3, 4, 1]: a missing value, one of 1; use task.missing=forward, linear or mask"),
]  # fmt: skip


@pytest.mark.parametrize(("arrays", "settings", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_what_is_refused(build, arrays, settings, message):
    with pytest.raises(DataError) as caught:
        build(arrays, **settings)
    assert message in str(caught.value)
    assert "my.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


# Files of several kinds


def test_a_training_and_a_test_file(tmp_path):
    series = [RNG.normal(size=(length, 2)).round(3) for length in (5, 3, 4, 6, 2, 5, 4, 3)]
    train = write_ts(tmp_path / "set" / "X_TRAIN.ts", series[:5], list("abaab"), ["a", "b", "c"])
    test = write_ts(tmp_path / "set" / "X_TEST.ts", series[5:], list("cba"), ["a", "b", "c"])
    for config in (
        Config(path=str(train), test_path=str(test), validation=0.2),
        Config(path=str(tmp_path / "set"), validation=0.2),
    ):
        task = config.build(0, tmp_path)
        assert "/file/" in task.split_id
        assert task.classes == ["a", "b", "c"]
        assert [task.classes[code] for code in task.targets] == list("abaabcba")
        assert parts(task)["test"] == [5, 6, 7]
        assert task.lengths.tolist() == [5, 3, 4, 6, 2, 5, 4, 3]
        mean = np.concatenate([series[i] for i in parts(task)["train"]]).mean(0)
        deviation = np.concatenate([series[i] for i in parts(task)["train"]]).std(0)
        assert task.samples[6, :4].numpy() == pytest.approx((series[6] - mean) / deviation, abs=1e-5)
    write_ts(test, [one[:, :1] for one in series[5:]], list("cba"), ["a", "b", "c"])
    with pytest.raises(DataError, match=r"X_TEST\.ts: 1 channels, where X_TRAIN\.ts has 2"):
        Config(path=str(tmp_path / "set")).build(0, tmp_path)


def test_headers_of_other_tools_are_not_relied_on(tmp_path):
    path = tmp_path / "my.ts"
    text = "\ufeff@problemName X\r\n@missing false\r\n@equalLength true\r\n@classLabel true 1 2\r\n@data\r\n"
    path.write_text(text + "1,2,3:1\r\n4,5:2.0\r\n6,?,7,?:1.0\r\n", newline="")
    found = read(Config(path=str(path)), tmp_path)
    assert found.lengths.tolist() == [3, 2, 3]
    assert (found.classes, found.targets.tolist()) == (["1", "2"], [0, 1, 0])
    assert np.isnan(found.block(np.array([2]))).sum() == 1
    with pytest.raises(DataError, match=r"my\.ts, line 8, step 2 of channel 1: a missing value"):
        Config(path=str(path), validation=0.3, test=0.3).build(0, tmp_path)


def test_a_table_is_parsed_once(tmp_path, monkeypatch):
    monkeypatch.setattr("longwave.tasks.own.content.LARGE", 0)
    monkeypatch.setenv("LONGWAVE_DATA", str(tmp_path))
    path = tmp_path / "my.csv"
    rows = [f"{i // 4},{i % 4},{i},{'ab'[i // 4 % 2]},{'' if i == 9 else i}" for i in range(80)]
    path.write_text("\n".join(["sample,time,x,target,y", *rows]))
    first = Config(path=str(path), missing="mask", time=True).build(0, tmp_path)
    assert list((tmp_path / "cache").glob("files-*.pt"))
    assert list((tmp_path / "cache").glob("sha256-*.json"))
    monkeypatch.delattr("longwave.tasks.own.tables.Columns.load")
    again = Config(path=str(path), missing="mask", time=True).build(0, tmp_path)
    assert torch.equal(again.samples, first.samples)
    monkeypatch.undo()
    monkeypatch.setattr("longwave.tasks.own.content.LARGE", 0)
    # The line of an error is found all the same.
    with pytest.raises(DataError, match=r"my\.csv, line 11, column y: a missing value, one of 1"):
        Config(path=str(path)).build(0, tmp_path)
    path.write_text(path.read_text().replace("a,", "b,"))
    with pytest.raises(DataError, match="one class"):
        Config(path=str(path), missing="mask").build(0, tmp_path)


def test_the_picture_of_a_target_a_step(build):
    task = build({"y": np.where(X[:, :, 0] > 3, "up", "down"), "lengths": LENGTHS})
    figure = show.draw(Config(), task)
    (axes,) = [axes for part in figure.subfigs for axes in part.axes if axes.get_title() == "targets"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["down", "up"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("my.xlsx", {}, r"my\.xlsx: of no known suffix; there are \.npz, \.csv"),
        ("my.csv", {"layout": "folder"}, r"task\.layout=folder: is no folder"),
        ("my.csv", {"layout": "arrays"}, r"task\.layout=arrays: must be a \.npz, or a folder with x\.npy"),
        (".", {"layout": "long"}, r"task\.layout=long: is a folder, not a file"),
        (".", {}, "no tables in it, nor arrays"),
        ("", {}, r"^task\.path: name your file, such as task\.path=my\.npz$"),
    ],
)
def test_no_such_layout(tmp_path, name, settings, message):
    folder = tmp_path / "here"
    folder.mkdir()
    if name not in ("", "."):
        (folder / name).write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=message):
        Config(path=str(folder / name) if name else "", **settings).build(0, tmp_path)


# Through the loop


def start(path, *overrides) -> list[str]:
    small = ["training.epochs=2", "training.batch_size=16", "model.hidden=4"]
    return ["model=cornn", "task=files", f"task.path={path}", *small, *overrides]


@pytest.fixture
def record(fit_here, tmp_path):
    def call(arrays: dict, *overrides):
        np.savez(tmp_path / "my.npz", **arrays)
        objective, folder = fit_here(*start(tmp_path / "my.npz", *overrides))
        return objective, json.loads((folder / "record.json").read_text()), folder

    return call


def test_classification_through_the_loop(record, tmp_path, monkeypatch):
    # Several batches: the metrics are of all predictions together.
    monkeypatch.setattr("longwave.tasks.base.ArrayTask.evaluation_batch", 4)
    objective, found, folder = record({"x": X, "y": LABELS, "lengths": LENGTHS}, "task.metric=macro_f1")
    assert found["objective"] == {"key": "validation/macro_f1", "value": objective}
    scores = {"cross_entropy", "accuracy", "balanced_accuracy", "macro_f1", "log_loss", "auroc"}
    assert set(found["metrics"]["test"]) == scores
    assert found["metrics"]["test"]["log_loss"] == pytest.approx(found["metrics"]["test"]["cross_entropy"], rel=1e-5)
    assert {"accuracy", "macro_f1"} <= set(found["baseline"])
    assert found["data"]["notes"]["classes"] == ["no", "perhaps", "yes"]
    assert found["data"]["files"] == [{"file": "my.npz", "sha256": content_of({"path": tmp_path / "my.npz"})}]
    assert found["config"]["task"]["content"] == content_of({"path": tmp_path / "my.npz"})
    assert found["data"]["split_id"].startswith(f"files/{content_of({'path': tmp_path / 'my.npz'})[:16]}/stratified/")
    assert (folder / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_regression_through_the_loop(record, monkeypatch):
    monkeypatch.setattr("longwave.tasks.base.ArrayTask.evaluation_batch", 4)
    # A model that says 0 for ever: the mean of the training set.
    monkeypatch.setattr(Network, "advance", lambda self, x, *_: (self.readout.weight[:1, :1] * x[0, :, :1] * 0, None))
    _, found, folder = record({"x": X, "y": X.mean((1, 2)) * 10})
    test = found["metrics"]["test"]
    assert {key: test[key] for key in ("rmse", "mae", "r2")} == pytest.approx(found["baseline"], rel=1e-5)
    assert not (folder / "confusion.png").exists()


def test_a_target_a_step_through_the_loop(record):
    y = (X[:, :, 0] > 3).astype(int)
    _, found, folder = record({"x": X, "y": y, "lengths": LENGTHS}, "diagnostics=gradients")
    assert 0 <= found["metrics"]["test"]["balanced_accuracy"] <= 1
    assert (folder / "confusion.png").exists()


def test_without_a_validation_set(record):
    _, found, folder = record({"x": X, "y": LABELS}, "task.validation=0", "training.selection=last")
    assert set(found["metrics"]) == {"train", "test"}
    assert (folder / "confusion.png").exists()


def test_a_part_of_the_test_set_may_have_no_auroc(record, monkeypatch):
    monkeypatch.setattr("longwave.tasks.base.ArrayTask.evaluation_batch", 4)
    split = np.array(["train", "val", "test"])[np.arange(N) % 3]
    arrays = {"x": X, "y": np.where(np.arange(N) < 30, "a", "b"), "split": split}
    with pytest.raises(UserError, match="auroc is not defined on this part of the validation set"):
        record(arrays, "task.metric=auroc", "training.limit_evaluation=1")


def test_a_changed_file_is_another_run(record, caplog):
    arrays = {"x": X, "y": LABELS}
    _, first, folder = record(arrays)
    assert record(arrays)[2] == folder
    assert "is finished already" in caplog.text
    mended = LABELS.copy()
    mended[0] = "no" if mended[0] == "yes" else "yes"
    _, second, other = record({"x": X, "y": mended})
    assert other != folder
    assert second["data"]["files"] != first["data"]["files"]
