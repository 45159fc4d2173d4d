import dataclasses

import pytest
import torch

from longwave.tasks import ncifar10
from longwave.tasks.ncifar10 import Config, read
from tests import stand_ins


@pytest.fixture(autouse=True)
def small_evaluation(monkeypatch):
    monkeypatch.setattr(ncifar10.NoisyCIFAR10, "evaluation_batch", 20)


def byte(image: int, index: int) -> float:
    """Of a stand-in: byte ``index`` of the 3072 of an image."""
    return (7 * image + index) % 251 / 255


def test_rows_of_red_green_blue_then_noise(fake_cifar10):
    task = Config().build(0, fake_cifar10)
    x, target = next(task.evaluation("test"))
    assert x.shape == (1000, 20, 96)
    assert x.dtype == torch.float32
    assert target[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    for sample in (0, 3):
        for row in (0, 1, 31):
            for channel in range(3):
                for column in (0, 5, 31):
                    # CIFAR's bytes are planes of 1024 red, green, blue values, each row by row.
                    expected = byte(50_000 + sample, 1024 * channel + 32 * row + column)
                    assert x[row, sample, 32 * channel + column].item() == pytest.approx(expected, abs=1e-7)
    noise = x[32:]
    assert noise[:, 0].mean().item() == pytest.approx(0, abs=0.02)
    assert noise[:, 0].std().item() == pytest.approx(1, abs=0.02)
    # Memory: the images stay bytes.
    assert task.samples.dtype == torch.uint8
    assert task.samples.shape == (60_000, 32, 96)


def test_constant_noise_is_one_block_for_all(fake_cifar10):
    task = Config().build(0, fake_cifar10)
    block = task.batch(0, 2)[0][32:, 0]
    evaluated = [next(task.evaluation(split)) for split in ("validation", "test")]
    for x, _ in (task.batch(0, 3), task.batch(50_000, 2), *evaluated):
        assert torch.equal(x[32:], block[:, None].expand(-1, x.shape[1], -1))
    assert torch.equal(Config().build(0, fake_cifar10).batch(7, 1)[0][32:, 0], block)
    assert not torch.equal(Config().build(1, fake_cifar10).batch(0, 1)[0][32:, 0], block)


def test_fresh_noise_is_every_sample_s_own(fake_cifar10):
    task = Config(noise="fresh").build(0, fake_cifar10)
    blocks = [x[32:, 0] for x, _ in (task.batch(0, 2), task.batch(1, 2), task.batch(25_000, 2))]
    blocks += [task.batch(0, 2)[0][32:, 1]]
    blocks += [next(task.evaluation(split))[0][32:, sample] for split in ("validation", "test") for sample in (0, 1)]
    for i, a in enumerate(blocks):
        assert all(not torch.equal(a, b) for b in blocks[:i])
    # And yet a function of seed and step, and the same at every evaluation.
    assert torch.equal(task.batch(1, 2)[0][32:, 0], blocks[1])
    assert torch.equal(next(task.evaluation("test"))[0][32:, 1], blocks[-1])
    assert "noise=fresh" in task.split_id


@pytest.mark.parametrize(
    ("validation", "train", "batch", "steps", "first"),
    [
        (3000, 47_000, 100, 470, [33869, 41256, 20230, 274]),
        (2000, 48_000, 30, 1600, [36105, 27447, 43253, 23740]),
    ],
)
def test_splits(validation, train, batch, steps, first, fake_cifar10):
    task = Config(validation=validation).build(0, fake_cifar10)
    assert {name: len(part) for name, part in task.splits.items()} == {
        "train": train, "validation": validation, "test": 10_000,
    }  # fmt: skip
    assert torch.equal(torch.cat([task.splits["train"], task.splits["validation"]]).sort()[0], torch.arange(50_000))
    assert torch.equal(task.splits["test"], torch.arange(50_000, 60_000))
    assert task.steps_per_epoch(batch) == steps
    assert task.splits["validation"][:4].tolist() == first
    assert task.split_id.startswith(f"ncifar10/noise=constant/validation={validation}/")
    assert task.split_id != Config(validation=validation).build(1, fake_cifar10).split_id


def test_from_the_archive(tmp_path, monkeypatch):
    made = tmp_path / "made"
    monkeypatch.setattr(ncifar10, "MD5", stand_ins.cifar10(made, 3))
    root = tmp_path / "root"
    source = dataclasses.replace(ncifar10.SOURCES["ncifar10"][0], md5=None)
    monkeypatch.setitem(ncifar10.SOURCES, "ncifar10", (source,))
    stand_ins.pack(root / source.path, made / "cifar-10-batches-py")
    images, labels, files = read(root)
    assert images.shape == (18, 3072)
    assert images[17, :3].tolist() == [(7 * 17 + j) % 251 for j in range(3)]
    assert labels.tolist() == [i % 10 for i in range(18)]
    assert [name for name, _ in files] == [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    assert files[5][1] == stand_ins.sha256(made / "cifar-10-batches-py" / "test_batch")


def test_another_archive_is_refused(tmp_path):
    source = ncifar10.SOURCES["ncifar10"][0]
    stand_ins.cifar10(tmp_path / "made", 1)
    stand_ins.pack(tmp_path / source.path, tmp_path / "made" / "cifar-10-batches-py")
    with pytest.raises(OSError, match=r"cifar-10-python\.tar\.gz: md5 is \w+, not c58f30108f718f92721af3b95e74349a"):
        read(tmp_path)


def test_a_damaged_file_is_named_before_it_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.setattr(ncifar10, "MD5", stand_ins.cifar10(tmp_path, 1))
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(OSError, match=r"data_batch_3: md5 is \w+, not \w+; delete it"):
        read(tmp_path)


def test_refuses():
    for options, message in (
        ({"noise": "none"}, "noise=none: must be one of constant, fresh"),
        ({"validation": 0}, "validation=0: must be at least 1"),
        ({"validation": 50_000}, "validation=50000: must be at most 49999"),
    ):
        with pytest.raises(ValueError, match=message):
            Config(**options)
