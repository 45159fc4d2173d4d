import json
import math
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from longwave.models.cornn import Config as CoRNN
from longwave.tasks import formats, series
from longwave.tasks.data import Source
from longwave.tasks.series import SeriesTask
from longwave.tasks.uea import Config, seventy_fifteen_fifteen, sources
from tests.archives import read_plainly, write_arff, write_ts, zipped
from tests.server import Page, Server

RNG = np.random.default_rng(0)
# Unequal lengths, two channels, three classes.
LENGTHS = [5, 3, 7, 7, 1, 6, 4, 7, 2, 5, 8, 3]
SERIES = [RNG.normal(3, 2, (length, 2)).astype(np.float32) for length in LENGTHS]
LABELS = ["b", "a", "c", "a", "b", "c", "a", "b", "c", "a", "b", "c"]


def write(root, train=slice(0, 8), test=slice(8, 12), found=SERIES, labels=LABELS, classes=("c", "b", "a"), name="X"):
    return [
        write_ts(root / "uea" / f"{name}_{part}.ts", found[where], labels[where], classes)
        for part, where in (("TRAIN", train), ("TEST", test))
    ]


@pytest.fixture
def ragged(tmp_path):
    write(tmp_path)
    return tmp_path


def build(root, seed=0, **config) -> SeriesTask:
    return Config(**({"dataset": "X", "validation": 0} | config)).build(seed, root)


# Reading


def test_unequal_lengths_come_with_the_batch(ragged):
    task = build(ragged)
    x, target, lengths = next(task.evaluation("test"))
    assert lengths.tolist() == LENGTHS[8:]
    assert x.shape == (8, 4, 2)
    assert x.is_contiguous()
    for i, one in enumerate(SERIES[8:]):
        assert np.array_equal(x[: len(one), i], one)
        assert (x[len(one) :, i] == 0).all()
    assert target.tolist() == [2, 0, 1, 2]
    assert (task.inputs, task.outputs, task.metric, task.monitor) == (2, 3, "accuracy", "test")
    # The longest of the batch decides, not of the data set.
    x, _, lengths = task.batch(0, 2)
    assert len(x) == lengths.max()


def test_padding_does_not_reach_the_output(ragged):
    task = build(ragged)
    torch.manual_seed(0)
    model = CoRNN(hidden=5).build(2, 3)
    x, _, lengths = next(task.evaluation("test"))
    together = model(x, lengths)
    alone = torch.cat([model(torch.from_numpy(one)[:, None]) for one in SERIES[8:]])
    torch.testing.assert_close(together, alone)


def test_equal_lengths_come_without(tmp_path):
    write(tmp_path, found=[one.repeat(9, axis=0)[:4] for one in SERIES])
    assert len(next(build(tmp_path).evaluation("test"))) == 2


def test_zip_and_arff_hold_the_same(ragged, tmp_path):
    expected = build(ragged)
    for write_part, suffix in ((write_ts, "ts"), (write_arff, "arff")):
        root = tmp_path / suffix
        paths = [
            write_part(root / "uea" / f"X_{part}.{suffix}", SERIES[where], LABELS[where], ["a", "b", "c"])
            for part, where in (("TRAIN", slice(0, 8)), ("TEST", slice(8, 12)))
        ]
        plain = build(root)
        packed = zipped(root / "uea", "X.zip", *paths)
        shutil.rmtree(root / "cache")
        for task in (plain, build(root)):
            assert torch.equal(task.samples, expected.samples)
            assert torch.equal(task.targets, expected.targets)
            assert torch.equal(task.lengths, expected.lengths)
        assert [name for name, _ in plain.files] == [path.name for path in paths]
        assert [name for name, _ in task.files] == [packed.name]


def test_downloads_by_name(tmp_path, monkeypatch):
    content = zipped(tmp_path, "X.zip", *write(tmp_path)).read_bytes()
    server = Server()
    server.pages["X.zip"] = Page(content)
    monkeypatch.setattr(series, "zipped", lambda name: (Source(f"uea/{name}.zip", (server.url(f"{name}.zip"),)),))
    assert build(tmp_path / "root").notes["series"] == {"train": 8, "test": 4}
    build(tmp_path / "root")
    assert server.asked("X.zip") == [None]
    with pytest.raises(OSError, match=rf"Y\.zip: .*\nfrom {server.url('Y.zip')} \(HTTP 404"):
        build(tmp_path / "root", dataset="Y")
    server.close()


def test_addresses():
    [zipped_source], fallback = sources("BasicMotions", None)
    assert zipped_source.urls == ("https://timeseriesclassification.com/aeon-toolkit/BasicMotions.zip",)
    assert fallback == ()
    for name, record, expected in (("AppliancesEnergy", None, 18484626), ("Mine", 7, 7)):
        first, fallback = sources(name, record)
        assert [url for source in first for url in source.urls] == [
            f"https://zenodo.org/records/{expected}/files/{name}_{part}.ts" for part in ("TRAIN", "TEST")
        ]
        assert fallback[0].path == f"uea/{name}.zip"


def test_parsed_once(ragged, monkeypatch):
    first = build(ragged)
    monkeypatch.setattr(formats, "read", None)
    assert torch.equal(build(ragged).samples, first.samples)


def test_another_file_is_parsed_anew(tmp_path):
    write(tmp_path)
    before = build(tmp_path).samples
    for path in (tmp_path / "uea").glob("*.json"):
        path.unlink()
    write(tmp_path, found=SERIES[::-1])
    assert not torch.equal(build(tmp_path).samples, before)


def test_a_label_unknown_to_the_training_set(tmp_path):
    write(tmp_path, labels=["a"] * 10 + ["b", "a"])
    with pytest.raises(OSError, match=r"X_TEST\.ts, line 12: no series of .*X_TRAIN\.ts has the label 'b'"):
        build(tmp_path)


def test_a_malformed_line(ragged):
    path = ragged / "uea" / "X_TEST.ts"
    path.write_text(path.read_text() + "1,2:3,x:a\n")
    with pytest.raises(OSError, match=rf"{path}, line 14: 'x' is not a number"):
        build(ragged)
    assert not list((ragged / "cache").glob("*.pt"))


def test_a_zip_that_lacks_a_part(ragged):
    paths = sorted((ragged / "uea").glob("*.ts"))
    zipped(ragged / "uea", "X.zip", paths[0])
    paths[1].unlink()
    with pytest.raises(OSError, match=r"X\.zip: no files named X_TRAIN\.arff; it holds X_TEST\.ts"):
        build(ragged)


def test_different_channels(tmp_path):
    write(tmp_path)
    write_ts(tmp_path / "uea" / "X_TEST.ts", [one[:, :1] for one in SERIES[8:]], LABELS[8:], ["a", "b", "c"])
    with pytest.raises(OSError, match=r"X_TEST\.ts: 1 channels, and 2 in .*X_TRAIN\.ts"):
        build(tmp_path)


def test_missing_values(tmp_path):
    found = [one.copy() for one in SERIES]
    nan = np.nan
    found[9][:, 1] = [nan, 2, nan, nan, 5]
    found[2][:, 0] = [1, nan, nan, nan, 9, nan, nan]
    write(tmp_path, found=found)
    with pytest.raises(
        OSError, match=r"X_TRAIN\.ts, line 12: 5 missing values; use task=uea with task\.missing=interpolate"
    ):
        build(tmp_path)
    task = build(tmp_path, missing="interpolate")
    assert task.samples[9, :5, 1].tolist() == [2, 2, 3, 4, 5]
    assert task.samples[2, :7, 0].tolist() == [1, 3, 5, 7, 9, 9, 9]
    assert np.array_equal(task.samples[9, :5, 0], SERIES[9][:, 0])
    found[2][:, 0] = nan
    write(tmp_path, found=found)
    for path in (tmp_path / "uea").glob("*.json"):
        path.unlink()
    with pytest.raises(OSError, match=r"X_TRAIN\.ts, line 12: a channel without any value"):
        build(tmp_path, missing="interpolate")


def test_padding_is_not_interpolated(tmp_path):
    """Missing values at the end of all channels are the end of the series, as zeros behind it."""
    longest = max(LENGTHS)
    padded = [np.pad(one, ((0, longest - len(one)), (0, 0)), constant_values=np.nan) for one in SERIES]
    for root, found in ((tmp_path / "short", SERIES), (tmp_path / "padded", padded)):
        write(root, found=found)
    short, full = build(tmp_path / "short"), build(tmp_path / "padded", missing="interpolate")
    assert torch.equal(full.lengths, short.lengths)
    assert torch.equal(full.samples, short.samples)


# Normalisation, time


def test_normalisation_is_fitted_on_the_steps_of_the_training_series(ragged):
    task = build(ragged, normalise=True)
    steps = np.concatenate(SERIES[:8]).astype(np.float64)
    mean, deviation = steps.mean(0), steps.std(0)
    for i, one in enumerate(SERIES):
        np.testing.assert_allclose(task.samples[i, : len(one)], (one - mean) / deviation, rtol=1e-5, atol=1e-5)
        assert (task.samples[i, len(one) :] == 0).all()


def test_a_constant_channel_becomes_zero(tmp_path):
    write(tmp_path, found=[np.stack([one[:, 0], np.full(len(one), 0.1)], 1) for one in SERIES])
    task = build(tmp_path, normalise=True)
    assert task.samples[:, :, 1].abs().max() < 1e-6
    assert task.samples.isfinite().all()


def test_time_is_the_first_channel(ragged):
    task = build(ragged, time=True)
    x, *_ = next(task.evaluation("test"))
    assert task.inputs == 3
    assert x.shape == (8, 4, 3)
    for i in range(4):
        assert x[:, i, 0].tolist() == pytest.approx([t / 7 for t in range(8)])
    assert np.array_equal(x[:5, 1, 1:], SERIES[9])
    # One step.
    write(ragged, found=[one[:1] for one in SERIES], name="Y")
    x, _ = next(build(ragged, dataset="Y", time=True).evaluation("test"))
    assert x[:, :, 0].tolist() == [[0] * 4]


def test_the_clock_of_linoss(ragged):
    x, *_ = next(build(ragged, time=True, clock="steps").evaluation("test"))
    for i in range(4):
        assert x[:, i, 0].tolist() == pytest.approx([t / 8 for t in range(8)])


def test_a_batch_that_is_not_full_may_be_left_out(ragged):
    """Seven series of the training set, three a batch: what is left of one epoch's order is not seen in it."""
    whole, dropped = (build(ragged, validation=0.125, drop_last=drop) for drop in (False, True))
    assert (whole.steps_per_epoch(3), dropped.steps_per_epoch(3)) == (3, 2)
    for step in range(2):
        assert torch.equal(dropped.batch(step, 3)[0], whole.batch(step, 3)[0])
    assert torch.equal(dropped.batch(2, 3)[0], whole.batch(3, 3)[0])


# Splits


@pytest.mark.parametrize(
    ("total", "sizes"),
    [(524, [366, 79, 79]), (378, [264, 57, 57]), (561, [392, 84, 85]), (236, [165, 35, 36])],
)
def test_bounds_are_rounded_down_as_in_the_released_code(total, sizes):
    """EthanolConcentration, MotorImagery, SelfRegulationSCP1, and EigenWorms without its copies."""
    assert [len(part) for part in seventy_fifteen_fifteen(total, 0).values()] == sizes


def test_official_split(ragged):
    task = build(ragged, validation=0.25, seed=3)
    train, validation = task.splits["train"], task.splits["validation"]
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(8))
    assert len(validation) == 2
    assert task.splits["test"].tolist() == [8, 9, 10, 11]
    assert task.monitor == "validation"
    again, other = build(ragged, validation=0.25, seed=3), [build(ragged, validation=0.25, seed=s) for s in range(9)]
    assert torch.equal(again.splits["validation"], validation)
    assert again.split_id == task.split_id
    assert len({t.split_id for t in other}) > 1
    assert task.split_id.startswith("uea/X/official/")


def test_a_split_of_all_series(tmp_path):
    many = [np.full((1, 1), i, np.float32) for i in range(101)]
    labels = ["b", "a", "c", "a", "a"] * 20 + ["a"]
    write(tmp_path, slice(0, 40), slice(40, 101), many, labels)
    for stratified in (False, True):
        task = build(tmp_path, protocol="resplit", stratified=stratified)
        assert task.notes["series"] == {"train": 70, "validation": 15, "test": 16}
        assert torch.cat(list(task.splits.values())).sort().values.tolist() == list(range(101))
        by_class = {key: task.targets[part].bincount(minlength=3).tolist() for key, part in task.splits.items()}
        assert (by_class["validation"] == [9, 3, 3]) == stratified
        assert ("/stratified/" in task.split_id) == stratified
        if stratified:
            # Of 61, 20 and 20.
            assert by_class["train"] in ([42, 14, 14], [43, 14, 13], [43, 13, 14])


def test_exact_copies_are_counted(tmp_path):
    found = [SERIES[0], SERIES[1], SERIES[0], *SERIES[3:9], SERIES[1], SERIES[10], SERIES[11]]
    found.append(SERIES[11])
    # Equal beginnings are no copies.
    found.append(SERIES[3][:-1])
    write(tmp_path, slice(0, 8), slice(8, 14), found, [*LABELS, "a", "b"])
    notes = build(tmp_path).notes
    assert notes["exact_copies"] == 3
    assert notes["test_series_with_a_copy_in_train"] == 1
    assert notes["classes"] == ["a", "b", "c"]


# Scores


def test_classification(ragged):
    task = build(ragged)
    output, target = torch.tensor([[2.0, 0, 0], [0, 1, 0]]), torch.tensor([0, 2])
    scores = task.scores(output, target)
    assert scores["accuracy"].tolist() == [1, 0]
    assert torch.equal(scores["cross_entropy"], F.cross_entropy(output, target, reduction="none"))
    assert task.summary({"accuracy": 0.5}) == {"accuracy": 0.5}
    # Three classes appear 3, 3 and 2 times in the training set; of equals, the first.
    assert task.baseline == {"accuracy": 0.25}


@pytest.fixture
def regression(tmp_path):
    targets = [float(t) for t in RNG.normal(5, 2, 12).round(3)]
    write(tmp_path, labels=targets, classes=None)
    return tmp_path, np.array(targets)


def test_regression(regression):
    root, targets = regression
    task = build(root)
    assert (task.outputs, task.objective, task.metric, task.higher_is_better) == (1, "mse", "rmse", False)
    _, target, _ = next(task.evaluation("test"))
    assert target.dtype == torch.float32
    assert target.tolist() == pytest.approx(list(targets[8:]))
    scores = task.scores(torch.zeros(4, 1), target)
    assert scores["mse"].tolist() == pytest.approx(list(targets[8:] ** 2))
    assert task.summary({"mse": 9.0}) == {"mse": 9.0, "rmse": 3.0}
    expected = math.sqrt(((targets[8:] - targets[:8].mean()) ** 2).mean())
    assert task.baseline == {"rmse": pytest.approx(expected)}
    with pytest.raises(OSError, match=r"X: has no classes, which task\.stratified=true needs"):
        build(root, stratified=True)


def test_rmse_through_the_loop(regression, fit_here, monkeypatch):
    root, targets = regression
    monkeypatch.setenv("LONGWAVE_DATA", str(root))
    # Batches of 3 and 1: the root is of the mean over all, not a mean of roots.
    monkeypatch.setattr("longwave.tasks.base.ArrayTask.evaluation_batch", 3)
    # A model that says 0 for ever.
    monkeypatch.setattr(
        "longwave.models.network.Network.advance",
        lambda self, x, *_: (self.readout.weight[:1, :1] * x[0, :, :1] * 0, None),
    )
    objective, folder = fit_here(
        "model=cornn", "task=uea", "task.dataset=X", "task.validation=0", "training.steps=1", "training.batch_size=4"
    )
    expected = math.sqrt((targets[8:] ** 2).mean())
    assert objective == pytest.approx(expected)
    record = json.loads((folder / "record.json").read_text())
    assert record["metrics"]["test"]["rmse"] == pytest.approx(expected)
    assert record["metrics"]["test"]["mse"] == pytest.approx(expected**2)
    assert record["data"]["notes"]["series"] == {"train": 8, "test": 4}
    assert [file["file"] for file in record["data"]["files"]] == ["X_TRAIN.ts", "X_TEST.ts"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dataset": "../etc"}, r"dataset=\.\./etc: must be a name of the archives"),
        ({"dataset": ""}, "dataset='': must be"),
        ({"dataset": "PPGDalia"}, "dataset=PPGDalia: cannot be read: its channels have two sampling rates"),
        ({"protocol": "mine"}, "protocol=mine: must be one of official, resplit"),
        ({"validation": 1.0}, r"validation=1\.0: must be less than 1"),
        ({"missing": "zero"}, "missing=zero: must be one of refuse, interpolate"),
    ],
)
def test_what_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        Config(**config)


def test_nothing_left_to_train_on(tmp_path):
    write(tmp_path, slice(0, 1), slice(1, 2), labels=["a", "a"])
    with pytest.raises(OSError, match=r"X_TRAIN\.ts and X_TEST\.ts: 2 series, too few to train and test on"):
        build(tmp_path, validation=0.9)


# Real data


REAL = {"BasicMotions": (40, 40), "JapaneseVowels": (270, 370), "Covid3Month": (140, 61)}


@pytest.mark.parametrize("name", REAL)
def test_real_sets_are_read_as_a_plain_reader_does(uea_root, name):
    task = build(uea_root, dataset=name)
    assert (len(task.splits["train"]), len(task.splits["test"])) == REAL[name]
    parts = [read_plainly(uea_root / "uea" / f"{name}_{part}.ts") for part in ("TRAIN", "TEST")]
    found, labels = parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]
    for i, one in enumerate(found):
        assert task.lengths[i] == len(one)
        assert np.array_equal(task.samples[i, : len(one)], one.astype(np.float32))
    if task.classes is None:
        assert task.targets.tolist() == pytest.approx([float(label) for label in labels])
    else:
        assert [task.classes[t] for t in task.targets] == labels
    # As published with the sets.
    shape = {"BasicMotions": (100, 6), "JapaneseVowels": (29, 12), "Covid3Month": (84, 1)}[name]
    assert task.samples.shape[1:] == shape
    assert int(task.lengths.min()) == {"JapaneseVowels": 7}.get(name, shape[0])


def test_real_arff_holds_what_the_ts_holds(uea_root, tmp_path):
    ts = build(uea_root, dataset="BasicMotions")
    (tmp_path / "uea").mkdir()
    for part in ("TRAIN", "TEST"):
        shutil.copy(uea_root / "uea" / f"BasicMotions_{part}.arff", tmp_path / "uea")
    arff = build(tmp_path, dataset="BasicMotions")
    assert torch.equal(arff.samples, ts.samples)
    assert torch.equal(arff.targets, ts.targets)


def test_real_time_stamps(uea_root):
    with open(uea_root / "uea" / "UnitTestTimeStamps_TRAIN.ts", "rb") as file:
        part = formats.read(file, "UnitTestTimeStamps_TRAIN.ts")
    assert part.series[0][:, 0].tolist() == pytest.approx([241.97, 241.75, 241.64, 241.71])
    assert part.labels == ["1", "1", "2", "2"]
