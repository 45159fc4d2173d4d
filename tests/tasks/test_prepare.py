"""What a task does to a raw sample is what it does to those it trains on."""

import numpy as np
import pytest
import torch

from longwave.tasks import har2, imdb, mnist, ncifar10, series
from longwave.tasks.base import TaskConfig, numbers
from longwave.tasks.own.reading import read
from longwave.tasks.series import SeriesTask
from longwave.training.config import choices, compose_run
from tests.stand_ins import FIXTURES, SHORT

COUNT = 3


def built(name, root, *overrides):
    arguments = [f"task={name}", "recipe=none", "training.steps=1", *SHORT.get(name, []), *overrides]
    config = compose_run(["model=gru", *arguments])[0].task
    return config, config.build(3, root)


def raw_samples(config, task, root, monkeypatch) -> list:
    """The first samples of the test set, as the files have them."""
    test = task.splits["test"][:COUNT] if task.splits else range(COUNT)
    match config.name:
        case "smnist" | "psmnist":
            return [image.view(28, 28).numpy() for image in mnist.read(root)[0][test]]
        case "ncifar10":
            return list(ncifar10.read(root)[0][test])
        case "har2":
            return list(har2.read(root)[0][test])
        case "imdb":
            names = [f"test/pos/{number}_9.txt" for number in range(COUNT)]
            return [(root / "aclImdb" / name).read_text() for name in sorted(names)]
        case "ptb_char":
            end, characters = {"<eos>": "\n", "_": " "}, task.characters
            texts = next(task.evaluation("test"))[0][:, :COUNT].T
            return ["".join(end.get(characters[c], characters[c]) for c in text) for text in texts]
        case "copying":
            return list(next(task.evaluation("test"))[0][:, :COUNT].argmax(-1).T)
    if config.name == "files":
        found = read(config, root)
        return [found.block(np.array([i]))[0] for i in test.tolist()]
    if isinstance(task, SeriesTask):
        loaded = []
        load = series.load
        monkeypatch.setattr(series, "load", lambda *a, **k: loaded.append(load(*a, **k)) or loaded[0])
        config.build(3, root)
        return [loaded[0].values[i, : loaded[0].lengths[i]].numpy() for i in test]
    return [x.numpy() for x in next(task.evaluation("test"))[0].unbind(1)[:COUNT]]


CASES = [
    *((name, ()) for name in choices("task") if name != "imdb"),
    ("psmnist", ("task.permutation=exprnn",)),
    ("smnist", ("task.protocol=indrnn",)),
    ("har2", ("task.normalisation=feature",)),
    ("har2", ("task.normalisation=none",)),
    ("uea", ("task.normalise=true", "task.time=true")),
    ("bidmc_rr", ("task.protocol=official", "task.time=true")),
]


@pytest.mark.parametrize(("name", "overrides"), CASES, ids=str)
def test_as_the_batches_have_it(name, overrides, request, monkeypatch):
    monkeypatch.setattr("longwave.tasks.base.ArrayTask.evaluation_batch", 20)
    root = request.getfixturevalue(FIXTURES.get(name, "tmp_path"))
    config, task = built(name, root, *overrides)
    samples = raw_samples(config, task, root, monkeypatch)
    x, _, *lengths = next(task.evaluation("test"))
    for i, sample in enumerate(samples):
        found = config.prepare(sample, task.statistics)
        steps = lengths[0][i] if lengths else len(x)
        assert found.dtype == x.dtype or not x.is_floating_point()
        # A stationary predictor never sees the last step.
        assert torch.equal(found[: len(x)], x[:steps, i]), i


@pytest.mark.parametrize("lower", [False, True])
def test_reviews(lower, fake_imdb):
    config, task = built("imdb", fake_imdb, "task.vectors=glove.6B.50d", f"task.lower={str(lower).lower()}")
    text = (fake_imdb / "aclImdb" / "test" / "pos" / "0_9.txt").read_text()
    # Test reviews follow the training reviews, the favourable ones first, by name.
    index = len(task.lengths) // 2
    start = task.starts[index]
    assert torch.equal(config.prepare(text, task.statistics), task.words[start : start + task.lengths[index]].long())
    assert config.prepare("xyzzy", task.statistics).tolist() == [imdb.UNKNOWN]
    with pytest.raises(ValueError, match=r"^a review without words$"):
        config.prepare(" ", task.statistics)


@pytest.mark.parametrize(("name", "overrides"), [c for c in CASES if c[0] not in ("psmnist", "ncifar10")], ids=str)
def test_step_by_step(name, overrides, request, monkeypatch):
    monkeypatch.setattr("longwave.tasks.base.ArrayTask.evaluation_batch", 20)
    root = request.getfixturevalue(FIXTURES.get(name, "tmp_path"))
    config, task = built(name, root, *overrides)
    assert config.stepwise
    sample = raw_samples(config, task, root, monkeypatch)[0]
    sample = sample.flatten() if name == "smnist" else sample
    whole = config.prepare(sample, task.statistics)
    steps = [config.prepare(sample[t : t + 1], task.statistics, t) for t in range(len(sample))]
    assert torch.equal(torch.cat(steps), whole)


def test_those_that_need_the_whole_sample_say_so(fake_cifar10, fake_mnist, fake_imdb):
    for name, root in (("psmnist", fake_mnist), ("ncifar10", fake_cifar10), ("imdb", fake_imdb)):
        overrides = ["task.vectors=glove.6B.50d"] if name == "imdb" else []
        assert not built(name, root, *overrides)[0].stepwise


def test_fresh_noise_is_drawn_for_one_sample(fake_cifar10):
    config, task = built("ncifar10", fake_cifar10, "task.noise=fresh")
    image = torch.arange(3072)
    found = config.prepare(image, task.statistics)
    assert found.shape == (1000, 96)
    assert torch.equal(found, config.prepare(image, {}))
    assert found[32:].std().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("name", "sample", "message"),
    [
        ("adding", np.zeros((2, 3, 4)), r"^must be \(T, D\) or \(T,\), got \(2, 3, 4\)$"),
        ("adding", np.zeros((0, 2)), r"^must be \(T, D\) or \(T,\), got \(0, 2\)$"),
        ("copying", [0, 10], "^symbols must be whole numbers from 0 to 9$"),
        ("copying", [0.5, 1.0], "^symbols must be whole numbers from 0 to 9$"),
        ("psmnist", np.zeros(783), "^must have 784 pixels, got 783$"),
        ("ncifar10", np.zeros((32, 32)), "^must have 3072 values, got 1024$"),
    ],
)
def test_what_is_no_sample_of_the_task(name, sample, message):
    config = compose_run(["model=gru", f"task={name}", "recipe=none", "training.steps=1"])[0].task
    with pytest.raises(ValueError, match=message):
        config.prepare(sample, {})


def test_a_character_that_nobody_has_seen(fake_ptb):
    config, task = built("ptb_char", fake_ptb)
    with pytest.raises(ValueError, match=r"^'é' is none of the characters of the training$"):
        config.prepare("né", task.statistics)
    known = {"characters": [*task.characters, "<unk>"]}
    assert config.prepare("é", known).tolist() == [len(task.characters)]


def test_more_steps_than_have_statistics(fake_har):
    config, task = built("har2", fake_har, "task.normalisation=feature")
    with pytest.raises(ValueError, match=r"^must have at most 128 steps where task.normalisation=feature$"):
        config.prepare(np.zeros((129, 9)), task.statistics)


def test_every_task_has_the_hook():
    for name in choices("task"):
        config, _ = compose_run(["model=gru", f"task={name}", "recipe=none", "training.steps=1"])
        assert isinstance(config.task, TaskConfig)


def test_one_channel_needs_no_dimension():
    assert torch.equal(numbers([1, 2]), torch.tensor([[1.0], [2.0]]))
