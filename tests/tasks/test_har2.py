import dataclasses

import numpy as np
import pytest
import torch

from longwave.tasks import har2
from longwave.tasks.checks import DataError
from longwave.tasks.har2 import Config, read
from tests import stand_ins


def test_reads_the_official_format(fake_har):
    windows, labels, subjects, train, files = read(fake_har)
    assert windows.shape == (60, 128, 9)
    assert train == 40
    n, t, c = 47, 100, 8
    assert windows[n, t, c].item() == pytest.approx(10 * c + n / 10 + t / 1000, abs=1e-5)
    assert labels.tolist() == [n % 6 + 1 for n in range(60)]
    assert subjects.tolist() == [n % 5 + 1 for n in range(60)]
    assert len(files) == 22
    path = fake_har / "UCI HAR Dataset" / "test" / "y_test.txt"
    assert dict(files)["test/y_test.txt"] == stand_ins.sha256(path)


def test_binarisation(fake_har):
    """1: walking, walking downstairs, standing; 0: walking upstairs, sitting, laying."""
    task = Config(validation="none").build(0, fake_har)
    labels = dict(zip(["walking", "upstairs", "downstairs", "sitting", "standing", "laying"], range(1, 7), strict=True))
    ones = {labels["walking"], labels["downstairs"], labels["standing"]}
    assert task.targets.tolist() == [float(n % 6 + 1 in ones) for n in range(60)]
    assert (task.inputs, task.outputs) == (9, 1)


def test_random_split(fake_har):
    task = Config(fraction=0.25).build(0, fake_har)
    train, validation, test = (task.splits[name] for name in ("train", "validation", "test"))
    assert [len(train), len(validation), len(test)] == [30, 10, 20]
    assert torch.equal(torch.cat([train, validation]).sort().values, torch.arange(40))
    assert torch.equal(test, torch.arange(40, 60))
    assert not torch.equal(validation, Config(fraction=0.25).build(1, fake_har).splits["validation"])
    x, target = next(task.evaluation("test"))
    assert x.shape == (128, 20, 9)
    assert target.shape == (20,)
    assert task.split_id.startswith("har2/channel/validation=random=0.25/")


def test_split_by_subject(fake_har):
    task = Config(validation="subject", fraction=0.4).build(0, fake_har)
    people = {name: {int(n) % 5 for n in task.splits[name]} for name in ("train", "validation")}
    assert (len(people["train"]), len(people["validation"])) == (3, 2)
    assert not people["train"] & people["validation"]
    assert len(task.splits["train"]) + len(task.splits["validation"]) == 40
    assert task.split_id.startswith("har2/channel/validation=subject=0.4/")


@pytest.mark.parametrize("validation", ["none", "test"])
def test_without_validation_the_test_set_is_monitored(validation, fake_har):
    task = Config(validation=validation).build(0, fake_har)
    assert torch.equal(task.splits["train"], torch.arange(40))
    assert (task.monitor, task.split_id) == ("test", "har2/channel/validation=none")
    assert task.selects_on_test == (validation == "test")


@pytest.mark.parametrize("normalisation", ["channel", "feature", "none"])
def test_normalisation_is_by_what_is_trained_on(normalisation, fake_har):
    task = Config(normalisation=normalisation, fraction=0.5).build(3, fake_har)
    raw = read(fake_har)[0].double().numpy()
    train = task.splits["train"].numpy()
    axis = {"channel": (0, 1), "feature": 0, "none": None}[normalisation]
    expected = raw
    if axis is not None:
        expected = (raw - raw[train].mean(axis)) / raw[train].std(axis)
    np.testing.assert_allclose(task.samples.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_a_signal_that_never_changes_stays_finite(fake_har, monkeypatch):
    windows, *rest = read(fake_har)
    windows[..., 4] = 3.25
    monkeypatch.setattr(har2, "read", lambda root: (windows, *rest))
    assert (Config().build(0, fake_har).samples[..., 4] == 0).all()


def test_scores():
    task = object.__new__(har2.HAR2)
    scores = task.scores(torch.tensor([[2.0], [-1.0]]), torch.tensor([1.0, 1.0]))
    expected = [np.log1p(np.exp(-2.0)), np.log1p(np.exp(1.0))]
    assert scores["cross_entropy"].tolist() == pytest.approx(expected)
    assert scores["accuracy"].tolist() == [1, 0]


def test_from_the_archive_in_the_archive(tmp_path, monkeypatch):
    stand_ins.har(tmp_path / "made", 6, 6)
    outer = tmp_path / "outer" / "UCI HAR Dataset.zip"
    stand_ins.pack(outer, tmp_path / "made" / "UCI HAR Dataset")
    root = tmp_path / "root"
    source = har2.SOURCES["har2"][0]
    stand_ins.pack(root / source.path, outer.parent)
    source = dataclasses.replace(source, sha256=stand_ins.sha256(root / source.path))
    monkeypatch.setitem(har2.SOURCES, "har2", (source,))
    windows, labels, *_ = read(root)
    assert windows.shape == (12, 128, 9)
    assert labels.tolist() == [1, 2, 3, 4, 5, 6] * 2


def test_offline_says_what_to_put_where(tmp_path, monkeypatch):
    source = dataclasses.replace(har2.SOURCES["har2"][0], urls=("http://127.0.0.1:9/har.zip",))
    monkeypatch.setitem(har2.SOURCES, "har2", (source,))
    with pytest.raises(OSError, match=r"downloads/human.*\nfrom http://127\.0\.0\.1:9/har\.zip.*\nsha256 c00b803081a5"):
        read(tmp_path)


SIGNAL = "train/Inertial Signals/total_acc_y_train.txt"


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        (SIGNAL, "1 2 x", r"total_acc_y_train\.txt, line 2: 3 numbers, not 128; delete it"),
        (SIGNAL, "0 " * 127 + "x", r"total_acc_y_train\.txt, line 2: 'x' is not a number; delete it"),
        (SIGNAL, "0 " * 127 + "nan", r"line 2, number 128: nan is not a number from -100 to 100"),
        (SIGNAL, "inf " + "0 " * 127, r"line 2: a value that is infinite"),
        (SIGNAL, "0 " * 5 + "1e30 " + "0 " * 122, r"line 2, number 6: 1e\+30 is not a number from -100 to 100"),
        (SIGNAL, "1e60 " + "0 " * 127, r"line 2: a value that is infinite"),
        ("test/y_test.txt", "0", r"y_test\.txt, line 2: 0 is not a whole number from 1 to 6"),
        ("test/y_test.txt", "7", r"y_test\.txt, line 2: 7 is not a whole number from 1 to 6"),
        ("test/y_test.txt", "nan", r"y_test\.txt, line 2: nan is not a whole number from 1 to 6"),
        ("train/subject_train.txt", "1.7", r"subject_train\.txt, line 2: 1\.7 is not a whole number from 1 to 30"),
        ("train/subject_train.txt", "1\n1", r"subject_train\.txt: 4 lines, and 3 in the other files"),
        (SIGNAL, "0,0 " + "0 " * 127, r"line 2: a comma, where numbers have space between them"),
        (SIGNAL, "", r"line 2: 0 numbers, not 128"),
    ],
)
def test_a_malformed_line_is_named(name, line, message, tmp_path):
    stand_ins.har(tmp_path, 3, 3)
    path = tmp_path / "UCI HAR Dataset" / name
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:], ""]))
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_a_file_that_was_cut(tmp_path):
    stand_ins.har(tmp_path, 3, 3)
    path = tmp_path / "UCI HAR Dataset" / SIGNAL
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=rf"{path}, line 3: has no end"):
        read(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{path}: is empty"):
        read(tmp_path)


def test_refuses():
    for options, message in (
        ({"validation": "people"}, "validation=people: must be one of random, subject, none"),
        ({"fraction": 0}, "fraction=0: must be greater than 0"),
        ({"normalisation": "max"}, "normalisation=max: must be one of channel, feature, none"),
    ):
        with pytest.raises(ValueError, match=message):
            Config(**options)


def test_real_har(real_data):
    if not (real_data / "UCI HAR Dataset").exists():
        pytest.skip(f"UCI HAR is not in {real_data}: set LONGWAVE_DATA, or run `python train.py task=har2` once online")
    task = Config().build(0, real_data)
    assert task.samples.shape == (7352 + 2947, 128, 9)
    assert {name: len(part) for name, part in task.splits.items()} == {"train": 5882, "validation": 1470, "test": 2947}
    # The test set holds 496 + 420 + 532 windows of class 1.
    assert task.targets[7352:].sum() == 1448
    assert task.baseline["accuracy"] == pytest.approx(1499 / 2947)
    people = Config(validation="subject", fraction=0.1).build(0, real_data)
    subjects = read(real_data)[2]
    assert len(subjects[:7352].unique()) == 21
    assert len(subjects[people.splits["validation"]].unique()) == 2
    first = read(real_data)[0][0, 0]
    # The first number of each file of signals.
    body = [1.8085148e-04, 1.0766808e-02, 5.5560676e-02, 3.0191219e-02, 6.6013615e-02, 2.2858643e-02]
    assert first.tolist() == pytest.approx([*body, 1.0128166, -0.12321670, 0.10293413], abs=2e-7)
