import gzip
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from longwave.tasks import mnist
from longwave.tasks.data import Source
from longwave.tasks.mnist import Config, permutation, read
from longwave.training.budget import Training
from longwave.training.errors import UserError
from tests.server import Page, Server

# paper_facts of each released code: the first twelve indices.
FIRST = {
    "cornn": [91, 97, 471, 426, 157, 451, 312, 198, 117, 454, 357, 608],
    "unicornn": [327, 72, 48, 129, 109, 101, 69, 569, 79, 263, 618, 589],
    "lem": [327, 72, 48, 129, 109, 101, 69, 569, 79, 263, 618, 589],
    "exprnn": [319, 576, 323, 107, 355, 716, 197, 20, 625, 60, 443, 620],
    "scornn": [319, 576, 323, 107, 355, 716, 197, 20, 625, 60, 443, 620],
    "nnrnn": [529, 511, 328, 133, 532, 378, 156, 305, 143, 582, 288, 169],
}


@pytest.mark.parametrize("name", FIRST)
def test_permutations_are_the_papers(name):
    indices = permutation(name)
    assert indices[:12].tolist() == FIRST[name]
    assert sorted(indices.tolist()) == list(range(784))


def test_a_generator_that_draws_other_numbers_is_noticed(monkeypatch):
    monkeypatch.setitem(mnist.PERMUTATIONS, "cornn", ("torch", 12009, "f4113bc8ae789021"))
    with pytest.raises(RuntimeError, match="f4113bc8ae789021"):
        permutation("cornn")


def pixel(image, j):
    return ((7 * image + j) % 256).float() / 255


def test_rows_in_order_and_scaled_to_one(fake_mnist):
    task = Config(name="smnist").build(0, fake_mnist)
    x, target = next(task.evaluation("test"))
    assert x.shape == (784, 1000, 1)
    assert x.dtype == torch.float32
    images = torch.arange(1000)
    for j in (0, 1, 27, 28, 783):
        assert torch.equal(x[j, :, 0], pixel(images, j))
    assert torch.equal(target, images % 10)
    assert x.max() == 1
    assert x.min() == 0


def test_permuted_step_t_is_pixel_permutation_of_t(fake_mnist):
    task = Config(name="psmnist", permutation="cornn").build(0, fake_mnist)
    x, _ = next(task.evaluation("test"))
    for t, j in enumerate(FIRST["cornn"]):
        assert torch.equal(x[t, :, 0], pixel(torch.arange(1000), j))


def test_split_is_57000_and_3000_by_the_seed(fake_mnist):
    task = Config().build(1, fake_mnist)
    train, validation, test = (task.splits[name] for name in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (57000, 3000, 10000)
    assert torch.equal(torch.cat([train, validation]).sort().values, torch.arange(60000))
    assert torch.equal(test, torch.arange(60000, 70000))
    assert torch.equal(validation, Config().build(1, fake_mnist).splits["validation"])
    other = Config().build(2, fake_mnist)
    assert not torch.equal(validation, other.splits["validation"])
    assert task.split_id != other.split_id
    digest = hashlib.sha256(validation.numpy().astype("<i8").tobytes()).hexdigest()[:16]
    assert task.split_id == f"smnist/rows/validation=3000/{digest}"
    assert sum(len(t) for _, t in task.evaluation("validation")) == 3000


# Of each paper: training and validation images, and what the bytes 0, 128 and 255 become.
PROTOCOLS = {
    "cornn": (57000, 3000, [0, 128 / 255, 1]),
    "nnrnn": (50000, 10000, [0, 128 / 255, 1]),
    "indrnn": (57000, 3000, [-1, 0, (255 / 256 - 0.5) * 2]),
    "exprnn": (60000, 0, [0, 128 / 255, 1]),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols(protocol, fake_mnist):
    train, validation, expected = PROTOCOLS[protocol]
    task = Config(protocol=protocol).build(0, fake_mnist)
    assert [len(task.splits[name]) for name in ("train", "validation", "test")] == [train, validation, 10000]
    # Byte j of image 0 is j mod 256.
    x = next(task.evaluation("test"))[0][:, 0, 0]
    assert x[[0, 128, 255]].tolist() == pytest.approx(expected, abs=1e-7)
    default = Config().build(0, fake_mnist)
    same_validation = torch.equal(task.splits["validation"], default.splits["validation"])
    assert same_validation == (validation == 3000)
    assert task.split_id.split("/validation")[0] == "smnist/rows" + ("" if protocol == "cornn" else f"/{protocol}")
    assert (task.split_id == default.split_id) == (protocol == "cornn")


def test_held_out_by_the_key(fake_mnist):
    task = Config(protocol="exprnn", validation=7).build(0, fake_mnist)
    assert (len(task.splits["validation"]), task.monitor, task.selects_on_test) == (7, "validation", False)
    # Without a validation set it is an honest error to select the best, but for the protocol that does so.
    task = Config(validation=0).build(0, fake_mnist)
    assert (task.monitor, task.selects_on_test) == ("test", False)
    with pytest.raises(UserError, match=r"selection=best: this task has no validation split"):
        Training(epochs=1, selection="best").check(task)
    Training(epochs=1, selection="best").check(Config(protocol="exprnn").build(0, fake_mnist))
    for options, message in (({"validation": -1}, "must be at least 0"), ({"protocol": "lem"}, "one of cornn, nnrnn")):
        with pytest.raises(ValueError, match=message):
            Config(**options)


def test_exprnn_reports_the_best_test_epoch(fake_mnist, fit_here, monkeypatch):
    monkeypatch.setattr(mnist.SequentialMNIST, "evaluation_batch", 10)
    accuracies = iter([0.3, 0.6, 0.5])
    monkeypatch.setattr(
        "longwave.training.loop.evaluate", lambda *_: {"accuracy": next(accuracies), "cross_entropy": 1.0}
    )
    arguments = (
        f"data.root={fake_mnist}", "model=lstm", "task=smnist", "task.protocol=exprnn", "model.hidden=1",
        "training.batch_size=2", "training.steps=3", "training.evaluate_every=1", "training.selection=best",
    )  # fmt: skip
    objective, folder = fit_here(*arguments)
    assert objective == 0.6
    assert json.loads((folder / "record.json").read_text())["metrics"]["test"]["accuracy"] == 0.6


def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own(fake_mnist):
    task = Config().build(0, fake_mnist)
    assert task.steps_per_epoch(120) == 475
    assert task.steps_per_epoch(128) == 446
    task.prepare = lambda samples: samples
    task.samples = torch.arange(70000)

    def epoch(number):
        return torch.cat([task.batch(446 * number + i, 128)[0] for i in range(446)])

    first, second = epoch(0), epoch(1)
    assert torch.equal(first.sort().values, task.splits["train"].sort().values)
    assert torch.equal(second.sort().values, first.sort().values)
    assert not torch.equal(first, second)
    # Whatever was asked before.
    assert torch.equal(task.batch(3, 128)[0], first[3 * 128 : 4 * 128])
    assert len(task.batch(445, 128)[0]) == 57000 - 445 * 128


def test_scores():
    task = object.__new__(mnist.SequentialMNIST)
    output = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    scores = task.scores(output, torch.tensor([0, 0]))
    assert scores["accuracy"].tolist() == [1, 0]
    expected = [torch.log1p(torch.exp(torch.tensor(-2.0))).item(), torch.log1p(torch.exp(torch.tensor(1.0))).item()]
    assert scores["cross_entropy"].tolist() == pytest.approx(expected)


def test_a_damaged_file_is_named(fake_mnist, monkeypatch):
    monkeypatch.setitem(mnist.SHA256, "t10k-labels-idx1-ubyte", "0" * 64)
    with pytest.raises(OSError, match=r"t10k-labels-idx1-ubyte: sha256 is \w+, not 000.*delete it"):
        read(fake_mnist)


def test_offline_says_what_to_put_where(tmp_path, monkeypatch):
    source = Source("MNIST/raw/train-images-idx3-ubyte.gz", ("http://127.0.0.1:9/mnist/",), md5="0123")
    monkeypatch.setitem(mnist.SOURCES, "mnist", (source,))
    with pytest.raises(
        OSError, match=r"MNIST/raw/train-images-idx3-ubyte\.gz: .*\nfrom http://127\.0\.0\.1.*\nmd5 0123$"
    ):
        read(tmp_path)


def test_addresses():
    found = {Path(source.path).stem: source for source in mnist.SOURCES["mnist"]}
    assert set(found) == set(mnist.SHA256)
    for name, source in found.items():
        assert source.path == f"MNIST/raw/{name}.gz"
        assert len(source.md5) == 32
        assert f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz" in source.urls


def test_downloads_and_unpacks_what_is_not_there(fake_mnist, tmp_path, monkeypatch):
    server = Server()
    sources = []
    for name in mnist.SHA256:
        packed = gzip.compress((fake_mnist / "MNIST" / "raw" / name).read_bytes(), 1)
        server.pages[name] = Page(packed)
        sources.append(Source(f"MNIST/raw/{name}.gz", (server.url(name),), md5=hashlib.md5(packed).hexdigest()))
    monkeypatch.setitem(mnist.SOURCES, "mnist", tuple(sources))
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    present = "t10k-labels-idx1-ubyte"
    shutil.copy(fake_mnist / "MNIST" / "raw" / present, raw / present)
    pixels, labels = read(tmp_path)
    assert pixels.shape == (70000, 784)
    assert labels[60000:60012].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert not server.asked(present)
    assert all(len(server.asked(name)) == 1 for name in mnist.SHA256 if name != present)
    server.close()


def test_real_mnist(mnist_root):
    task = Config().build(0, mnist_root)
    assert dict(task.files) == mnist.SHA256
    x, target = next(task.evaluation("test"))
    assert target[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert x.sum().item() == pytest.approx(task.samples[60000:61000].sum().item() / 255, rel=1e-5)
    labels = torch.cat([t for _, t in task.evaluation("test")])
    assert labels.bincount().max().item() / 10000 == task.baseline["accuracy"]
