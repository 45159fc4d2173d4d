import importlib.util
import itertools
import json
import math
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch

from longwave.tasks import adding
from longwave.tasks.base import ArrayTask, Task
from longwave.tasks.series import Data, SeriesTask
from longwave.tasks.transforms import log_signature as module
from longwave.tasks.transforms.log_signature import Config, log_signatures, lyndon_words, of_unequal_lengths
from longwave.training.errors import UserError

needs_signatory = pytest.mark.skipif(
    importlib.util.find_spec("signatory") is None, reason="signatory is not installed: `make signatory` builds it"
)
needs_pysiglib = pytest.mark.skipif(
    importlib.util.find_spec("pysiglib") is None, reason="pysiglib has no wheel for this platform"
)
BACKENDS = [
    "torch",
    pytest.param("pysiglib", marks=needs_pysiglib),
    pytest.param("signatory", marks=needs_signatory),
]


def paths(length, batch, channels, seed=0):
    """Random walks (L, B, C) in double precision."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(length, batch, channels)).cumsum(0))


def next_lyndon_words(channels, longest):
    """Duval's algorithm: all Lyndon words up to a length, by length, then in lexicographic order."""
    found, word = [], [-1]
    while word:
        word[-1] += 1
        found.append(tuple(word))
        period = len(word)
        while len(word) < longest:
            word.append(word[-period])
        while word and word[-1] == channels - 1:
            word.pop()
    return sorted(found, key=lambda w: (len(w), w))


def brute_force(path, depth):
    """The logarithm of the product of exp(increment) in the tensor algebra, a dict from words to coefficients."""
    channels = path.shape[1]

    def product(a, b):
        out = {}
        for (u, x), (v, y) in itertools.product(a.items(), b.items()):
            if len(u) + len(v) <= depth:
                out[u + v] = out.get(u + v, 0) + x * y
        return out

    signature = {(): 1.0}
    for increment in np.diff(path, axis=0):
        exponential = {
            word: np.prod(increment[list(word)]) / math.factorial(length)
            for length in range(depth + 1)
            for word in itertools.product(range(channels), repeat=length)
        }
        signature = product(signature, exponential)
    rest = {word: value for word, value in signature.items() if word}
    power, total = {(): 1.0}, {}
    for n in range(1, depth + 1):
        power = product(power, rest)
        for word, value in power.items():
            total[word] = total.get(word, 0) + (-1) ** (n + 1) / n * value
    return np.array([total[word] for word in next_lyndon_words(channels, depth)])


@pytest.mark.parametrize(("channels", "sizes"), [(1, (1, 1, 1)), (2, (2, 3, 5)), (3, (3, 6, 14)), (7, (7, 28, 140))])
def test_lyndon_words(channels, sizes):
    for depth in (1, 2, 3):
        words = [word for length in range(1, depth + 1) for word in lyndon_words(channels, length)]
        assert words == next_lyndon_words(channels, depth)
        assert len(words) == sizes[depth - 1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("depth", "step"), [(1, 1), (2, 1), (2, 4), (3, 5)])
def test_equals_the_definition(backend, depth, step):
    x = paths(11, 2, 2)
    found = log_signatures(x, depth, step, backend=backend)
    timed = np.concatenate([np.linspace(0, 1, 11)[:, None, None].repeat(2, 1), x.numpy()], axis=2)
    for k, b in itertools.product(range(10 // step), range(2)):
        expected = brute_force(timed[k * step : (k + 1) * step + 1, b], depth)
        np.testing.assert_allclose(found[1 + k, b].numpy(), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_depth_2_is_the_levy_area(backend):
    x = paths(9, 3, 4)
    found = log_signatures(x, 2, 8, time=False, backend=backend)[1].numpy()
    for b in range(3):
        p = x[:, b].numpy()
        areas = [
            0.5
            * sum(
                (p[t, i] - p[0, i]) * (p[t + 1, j] - p[t, j]) - (p[t, j] - p[0, j]) * (p[t + 1, i] - p[t, i])
                for t in range(8)
            )
            for i in range(4)
            for j in range(i + 1, 4)
        ]
        np.testing.assert_allclose(found[b], np.concatenate([p[8] - p[0], areas]), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_straight_line_has_its_increment_and_nothing_else(backend, depth):
    stamps = torch.linspace(0, 1, 10, dtype=torch.float64) ** 2  # at any speed
    x = stamps.view(-1, 1, 1) * torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    found = log_signatures(x, depth, 3, time=False, backend=backend)
    torch.testing.assert_close(found[1:, :, :3], x[3::3] - x[:-1:3])
    torch.testing.assert_close(found[1:, :, 3:], torch.zeros_like(found[1:, :, 3:]), rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "torch"])
@pytest.mark.parametrize("shape", [(2, 1, 1), (13, 1, 6), (20, 5, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_backends_agree(backend, shape, dtype):
    x = paths(*shape).to(dtype)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-11}
    for depth, step in itertools.product((1, 2, 3), {1, 3, shape[0] - 1}):
        if step < shape[0]:
            found = log_signatures(x, depth, step, backend=backend)
            torch.testing.assert_close(found, log_signatures(x, depth, step, backend="torch"), **tolerance)


# 12 = 3 * 4: the last block would need sample 12, and is left out.
@pytest.mark.parametrize("length", [2, 9, 12, 13, 14])
@pytest.mark.parametrize("step", [1, 3, 4])
def test_blocks_share_end_points_and_an_incomplete_one_is_left_out(length, step):
    x = paths(length, 2, 1)
    starts, start = [], 0
    while start < length - step:
        starts.append(start)
        start += step
    if not starts:
        with pytest.raises(ValueError, match=rf"^transform\.step={step}: must be less than {length}, the length of"):
            log_signatures(x, 1, step)
        return
    found = log_signatures(x, 1, step)
    assert found.shape == (1 + len(starts), 2, 2)
    for k, start in enumerate(starts):
        torch.testing.assert_close(found[1 + k, :, 1], x[start + step, :, 0] - x[start, :, 0])
        torch.testing.assert_close(found[1 + k, :, 0], torch.full((2,), step / (length - 1), dtype=x.dtype))


@pytest.mark.parametrize("time", [True, False])
def test_the_first_entry_is_the_first_sample(time):
    x = paths(5, 3, 2)
    first = log_signatures(x, 3, 2, time)[0]
    sample = torch.cat([torch.zeros(3, 1), x[0]], 1) if time else x[0]
    assert torch.equal(first[:, : 2 + time], sample)
    assert not first[:, 2 + time :].any()


def test_chunks_change_nothing(monkeypatch):
    x = paths(30, 4, 3)
    whole = log_signatures(x, 3, 4, backend="torch")
    monkeypatch.setattr(module, "CHUNK", 1)
    torch.testing.assert_close(log_signatures(x, 3, 4, backend="torch"), whole)


def test_gradients_of_the_torch_backend():
    x = paths(7, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: log_signatures(x, 3, 3, backend="torch"), x)


def test_auto_is_pysiglib_and_else_torch(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert module._pick("auto") == "torch"
    with pytest.raises(ValueError, match=r"^backend=pysiglib: is not installed; use pip install pysiglib"):
        Config(backend="pysiglib")
    with pytest.raises(ValueError, match=r"^backend=signatory: is not installed; use make signatory"):
        Config(backend="signatory")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    assert module._pick("auto") == "pysiglib"


class Series(ArrayTask):
    """Stored as integers, in another order of axes than models read."""

    inputs, outputs = 2, 1
    objective = metric = "mse"
    higher_is_better = False
    split_id = "series"
    notes = {"source": "here"}

    def __init__(self, seed=0, data=0):
        samples = (100 * paths(10, 12, 2, data)).to(torch.int32)
        splits = {
            "train": torch.tensor([7, 1, 2, 3, 4, 5, 6]),
            "validation": torch.tensor([0, 8]),
            "test": torch.tensor([9, 11, 10]),
        }
        super().__init__(samples.transpose(0, 1), torch.arange(12.0), splits, seed)

    def prepare(self, samples):
        return samples.transpose(0, 1).float() / 100

    def scores(self, output, target):
        return {"mse": (output.squeeze(-1) - target) ** 2}


def test_a_data_set_is_transformed_sample_by_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 50)  # two samples at a time
    task = Series(seed=3)
    transformed = Config(depth=2, step=4).apply(task, tmp_path)
    assert (transformed.inputs, transformed.outputs, transformed.metric) == (6, 1, "mse")
    assert transformed.split_id == "series/log_signature/depth=2/step=4/time=True"
    assert transformed.steps_per_epoch(3) == 3
    pairs = [(transformed.batch(i, 3), task.batch(i, 3)) for i in range(7)]
    pairs += [(*pair,) for s in task.splits for pair in zip(transformed.evaluation(s), task.evaluation(s), strict=True)]
    for (x, target), (plain, expected) in pairs:
        assert torch.equal(target, expected)
        torch.testing.assert_close(x, log_signatures(plain, 2, 4))
    # What it was made of is as it was.
    assert (task.inputs, task.split_id, task.notes) == (2, "series", {"source": "here"})
    assert transformed.notes == {"source": "here", "log_signature": module._pick("auto")}
    assert task.batch(0, 3)[0].shape == (10, 3, 2)


def test_the_data_set_is_kept_and_found(tmp_path, monkeypatch):
    plain = Config(depth=2, step=3)
    first = plain.apply(Series(), tmp_path)
    (file,) = (tmp_path / "cache").glob("log_signature-*.pt")

    calls = []
    original = log_signatures
    monkeypatch.setattr(module, "log_signatures", lambda x, *rest: calls.append(x.shape[1]) or original(x, *rest))

    def computed(config, task):
        """Whether the whole data set was transformed, not only a sample to see its size."""
        calls.clear()
        found = config.apply(task, tmp_path)
        return sum(calls) > 1, found

    again, second = computed(plain, Series(seed=1))
    assert not again
    assert torch.equal(first.samples, second.samples)
    for config, task in [
        (Config(depth=3, step=3), Series()),
        (Config(depth=2, step=2), Series()),
        (Config(depth=2, step=3, time=False), Series()),
        (Config(depth=2, step=3, backend="torch"), Series()),
        (plain, Series(data=1)),
    ]:
        assert computed(config, task)[0]
    assert len(list((tmp_path / "cache").glob("log_signature-*.pt"))) == 6
    # Half of it, or one wrong bit, is noticed.
    content = file.read_bytes()
    at = len(content) // 2
    for damaged in (content[:at], content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :], b""):
        file.write_bytes(damaged)
        again, found = computed(plain, Series())
        assert again
        assert torch.equal(found.samples, first.samples)
        assert not computed(plain, Series())[0]


def die_while_writing(root):
    def save(content, out):
        out.write(b"half")
        out.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save
    Config(depth=2, step=3).apply(Series(), root)


def test_a_process_that_is_killed_while_writing_leaves_nothing_that_is_read(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=die_while_writing, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert any(path.read_bytes() == b"half" for path in (tmp_path / "cache").iterdir())
    task = Series()
    x, _ = Config(depth=2, step=3).apply(task, tmp_path).batch(0, 4)
    torch.testing.assert_close(x, log_signatures(task.batch(0, 4)[0], 2, 3))


def test_generated_batches_are_transformed_as_they_come(tmp_path):
    task = adding.Config(T=20, test_samples=30).build(5, tmp_path)
    transformed = Config(depth=2, step=6, time=False).apply(task, tmp_path)
    assert transformed.inputs == 3
    for step in (0, 3, 0):
        (x, target), (plain, expected) = transformed.batch(step, 7), task.batch(step, 7)
        assert torch.equal(target, expected)
        assert x.shape == (4, 7, 3)
        assert torch.equal(x, log_signatures(plain, 2, 6, time=False))
    ((x, _),) = transformed.evaluation("test")
    assert x.shape == (4, 30, 3)
    assert list(tmp_path.iterdir()) == []


LENGTHS = [9, 14, 4, 14, 5, 7, 4, 9]


class Generated(SeriesTask):
    """With a batch method of its own: it is transformed batch by batch."""

    def batch(self, step, batch_size):
        return super().batch(step, batch_size)


def series_of_unequal_lengths(kind=SeriesTask) -> SeriesTask:
    values = paths(14, 8, 2).float().transpose(0, 1).contiguous()
    for one, length in zip(values, LENGTHS, strict=True):
        one[length:] = 0
    first, classes = torch.arange(8), torch.arange(8) % 2
    data = Data(values, torch.tensor(LENGTHS), classes, ["a", "b"], 5, first, ())
    splits = {"train": np.arange(5), "validation": np.arange(0), "test": np.array([5, 6, 7])}
    return kind(data, splits, "own", seed=0, normalise=True)


def alone(task, index, *settings):
    """The log-signatures of one series of a task that is not transformed yet."""
    return log_signatures(task.prepare(task.samples[index : index + 1, : LENGTHS[index]]), *settings)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("depth", "step", "time"), [(1, 1, True), (2, 3, True), (3, 2, False)])
def test_of_unequal_lengths_each_is_as_if_alone(depth, step, time, backend):
    x, lengths = paths(14, 8, 2), torch.tensor(LENGTHS)
    found, entries = of_unequal_lengths(x, lengths, depth, step, time, backend)
    assert entries.tolist() == [1 + (length - 1) // step for length in LENGTHS]
    assert len(found) == entries.max()
    for i, length in enumerate(LENGTHS):
        own = log_signatures(x[:length, i : i + 1], depth, step, time, backend)
        torch.testing.assert_close(found[: entries[i], i : i + 1], own, rtol=1e-13, atol=1e-13)
        assert not found[entries[i] :, i].any()


def test_series_of_unequal_lengths_are_transformed(tmp_path):
    task = series_of_unequal_lengths()
    transformed = Config(depth=2, step=3, backend="torch").apply(task, tmp_path)
    again = Config(depth=2, step=3, backend="torch").apply(series_of_unequal_lengths(), tmp_path)
    generated = Config(depth=2, step=3, backend="torch").apply(series_of_unequal_lengths(Generated), tmp_path)
    for one in (transformed, again, generated):
        ((x, target, lengths),) = one.evaluation("test")
        assert x.shape == (3, 3, 6)
        assert (target.tolist(), lengths.tolist()) == ([1, 0, 1], [3, 2, 3])
        for column, index in enumerate((5, 6, 7)):
            own = alone(task, index, 2, 3, True, "torch")
            torch.testing.assert_close(x[: len(own), column : column + 1], own)
        x, _, lengths = one.batch(0, 5)
        assert (len(x), x.shape[1], lengths.max().item()) == (5, 5, 5)


def test_a_series_without_a_block_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"^transform\.step=4: must be less than 4, the length of the shortest series$"
    ):
        Config(step=4).apply(series_of_unequal_lengths(), tmp_path)


def test_what_cannot_be_transformed_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"^transform\.step=10: must be less than 10, the length of the sequences$"):
        Config(step=10).apply(Series(), tmp_path)

    class Other(Task):
        def __init__(self, x, *lengths, **attributes):
            self.x, self.lengths = x, lengths
            vars(self).update(attributes)

        def batch(self, step, batch_size):
            return self.x, torch.zeros(1), *self.lengths

    path = torch.zeros(5, 1, 2)
    for task in (
        Other(path.long()),
        Other(path, read="every"),
        Other(path, carries_state=True),
    ):
        with pytest.raises(ValueError, match=r"^transform=log_signature: is for tasks with one output a sequence"):
            Config().apply(task, tmp_path)
    monkeypatch.setattr(module.os, "sysconf", lambda name: 10)  # bytes in all: 100
    with pytest.raises(ValueError, match=r"^transform\.depth=2: the data would take 0 GB, and this machine has 0 GB"):
        Config(depth=2).apply(Series(), tmp_path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("depth", 0, "one of 1, 2, 3"),
        ("depth", 4, "one of 1, 2, 3"),
        ("step", 0, "at least 1"),
        ("backend", "x", "one of auto, .*torch"),
    ],
)
def test_wrong_settings(key, value, allowed):
    with pytest.raises(ValueError, match=rf"^{key}={value}: must be {allowed}"):
        Config(**{key: value})


@pytest.mark.parametrize(
    ("model", "task", "step"),
    [("cornn", "adding", 9), ("lstm", "adding", 4), ("lstm", "har2", 64)],
)
def test_any_model_trains_on_it(model, task, step, fit_here, fake_har, monkeypatch):
    monkeypatch.setenv("LONGWAVE_DATA", str(fake_har))
    monkeypatch.setattr("longwave.tasks.base.ArrayTask.evaluation_batch", 5)
    chosen = [f"model={model}", f"task={task}", "recipe=none", "transform=log_signature", f"transform.step={step}"]
    small = ["model.hidden=4", "training.batch_size=3", "debug=fast", "transform.depth=2"]
    _, folder = fit_here(*chosen, *small)
    record = json.loads((folder / "record.json").read_text())
    assert record["status"] == "finished"
    assert record["data"]["notes"]["log_signature"] == module._pick("auto")
    assert record["data"]["split_id"].endswith(f"/log_signature/depth=2/step={step}/time=True")


def test_a_step_that_is_too_long_is_one_line(fit_here):
    with pytest.raises(UserError, match=r"^transform\.step=100: must be less than 100, the length of the sequences$"):
        fit_here("model=lstm", "task=adding", "debug=fast", "transform=log_signature", "transform.step=100")
