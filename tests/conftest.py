"""What several tests need: composed configurations, training in this process and in real ones, data or a stand-in."""

import gc
import hashlib
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from longwave import PACKAGE, train
from longwave.kernels.library import cache
from longwave.tasks import fitzhugh_nagumo, imdb, mnist, ncifar10
from longwave.tasks.base import data_root
from longwave.training.config import _choose, _compose_recipe, compose_run
from tests import archives, stand_ins

# One thread: several small processes on a few cores otherwise wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    """``torch.compile`` gives up on code it has compiled eight times; the operations of a backend share code."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def freeze() -> None:
    """Takes from garbage collection what has been imported: every run collects, and would look at it, 0.2 s each."""
    if len(gc.get_objects()) > 50_000:
        gc.collect()
        gc.freeze()


@pytest.fixture
def fit_here(tmp_path):
    """Trains in this process: ``fit_here("task.T=10", ...)`` gives (objective, folder of the run)."""

    def call(*overrides: str, output: Path = tmp_path / "outputs"):
        config, recipe = compose_run(["tracking=none", f"output={output}", *overrides])
        freeze()
        objective = train.train(config, recipe, "python train.py")
        return objective, run_folder(config)

    return call


def run_folder(config) -> Path:
    name = f"{config.model.name}-{config.task.name}-seed{config.seed}-{config.identity()}"
    return Path(config.output) / "runs" / name


class TrainProcess:
    """``train.py`` as a user starts it, in another process and from another folder."""

    def __init__(self, folder: Path):
        self.output = folder / "outputs"
        self.folder = folder

    def arguments(self, *overrides: str) -> list[str]:
        return [sys.executable, str(PACKAGE / "train.py"), f"output={self.output}", "threads=1", *overrides]

    def environment(self, **extra: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
        # The C kernels that are compiled already serve another home, too.
        own = {"OMP_NUM_THREADS": "1", "HOME": str(self.folder), "COLUMNS": "200", "LONGWAVE_CACHE": str(cache())}
        return kept | own | extra

    def start(self, *overrides: str, **extra: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.arguments(*overrides),
            cwd=self.folder,
            env=self.environment(**extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *overrides: str, **extra: str) -> subprocess.CompletedProcess:
        process = self.start(*overrides, **extra)
        out, _ = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout=out)

    def runs(self) -> list[Path]:
        return sorted((self.output / "runs").glob("*")) if (self.output / "runs").exists() else []


class SweepProcess(TrainProcess):
    """``sweep.py`` likewise."""

    def arguments(self, *overrides: str) -> list[str]:
        return [sys.executable, str(PACKAGE / "sweep.py"), f"output={self.output}", *overrides]


@pytest.fixture
def small_batches(monkeypatch):
    """Evaluates a few samples at once, so that a data set has several batches."""
    monkeypatch.setattr("longwave.tasks.base.ArrayTask.evaluation_batch", 20)
    monkeypatch.setattr("longwave.tasks.ncifar10.NoisyCIFAR10.evaluation_batch", 3)


@pytest.fixture
def train_process(tmp_path) -> TrainProcess:
    return TrainProcess(tmp_path)


@pytest.fixture
def sweep_process(tmp_path) -> SweepProcess:
    return SweepProcess(tmp_path)


@pytest.fixture
def compositions(monkeypatch) -> list:
    """What Hydra composes, one after another."""
    composed = []
    compose = ConfigLoaderImpl._load_configuration_impl

    def counting(loader, config_name, overrides, **kwargs):
        composed.append((config_name, overrides))
        return compose(loader, config_name=config_name, overrides=overrides, **kwargs)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counting)
    _choose.cache_clear()
    _compose_recipe.cache_clear()
    return composed


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The data root with the real MNIST; skips where it is not there."""
    root = data_root()
    if not all((root / "MNIST" / "raw" / name).exists() for name in mnist.SHA256):
        pytest.skip(f"MNIST is not in {root}: set LONGWAVE_DATA, or run `python train.py task=smnist` once online")
    return root


@pytest.fixture(scope="session")
def fake_mnist_files(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Files in MNIST's format whose pixel j of image i is (7 i + j) mod 256, and their checksums."""
    root = tmp_path_factory.mktemp("fake")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    sums = {}
    for part, count in (("train", 60000), ("t10k", 10000)):
        index = np.arange(count)
        # Bytes wrap at 256 by themselves.
        pixels = (7 * index).astype(np.uint8)[:, None] + np.arange(784).astype(np.uint8)
        labels = (index % 10).astype(np.uint8)
        for name, header, content in (
            (f"{part}-images-idx3-ubyte", struct.pack(">IIII", 2051, count, 28, 28), pixels),
            (f"{part}-labels-idx1-ubyte", struct.pack(">II", 2049, count), labels),
        ):
            data = header + content.tobytes()
            (raw / name).write_bytes(data)
            sums[name] = hashlib.sha256(data).hexdigest()
    return root, sums


@pytest.fixture
def fake_mnist(fake_mnist_files, monkeypatch) -> Path:
    root, sums = fake_mnist_files
    monkeypatch.setattr(mnist, "SHA256", sums)
    return root


@pytest.fixture(scope="session")
def mnist_images(fake_mnist_files) -> tuple[torch.Tensor, torch.Tensor]:
    root, sums = fake_mnist_files
    with pytest.MonkeyPatch.context() as m:
        m.setattr(mnist, "SHA256", sums)
        return mnist.read(root)


@pytest.fixture
def read_mnist(fake_mnist, mnist_images, monkeypatch) -> Path:
    """The same, whose 55 MB are read and verified once in all tests."""
    monkeypatch.setattr(mnist, "read", lambda root: mnist_images)
    return fake_mnist


@pytest.fixture(scope="session")
def uea_root(tmp_path_factory) -> Path:
    """A data root with a few real data sets of the archives; skips where they are not there."""
    real = data_root() / "uea_small"
    if not real.exists():
        pytest.skip(f"no real data sets of the archives in {real}")
    root = tmp_path_factory.mktemp("uea")
    # What is noted beside the files, and the cache, do not belong there.
    shutil.copytree(real, root / "uea")
    return root


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The data root with the real data sets; what is not there is skipped by the test that needs it."""
    return data_root()


@pytest.fixture(scope="session")
def cifar10_images() -> torch.Tensor:
    """60,000 images in CIFAR-10's layout: byte j of image i is (7 i + j) mod 251."""
    values = (np.arange(3072 + 250) % 251).astype(np.uint8)
    return torch.from_numpy(np.lib.stride_tricks.sliding_window_view(values, 3072)[7 * np.arange(60_000) % 251])


@pytest.fixture
def fake_cifar10(cifar10_images, monkeypatch, tmp_path) -> Path:
    """Those images with labels i mod 10, in place of the files, which would be 184 MB."""
    found = cifar10_images, torch.arange(60_000) % 10, ()
    monkeypatch.setattr(ncifar10, "read", lambda root: found)
    return tmp_path


@pytest.fixture(scope="session")
def fake_har(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("har")
    stand_ins.har(root)
    return root


@pytest.fixture(scope="session")
def fake_archives(tmp_path_factory) -> Path:
    """A data root with made-up EigenWorms and BIDMC, of the official number of short series."""
    root = tmp_path_factory.mktemp("archives")
    archives.eigenworms(root)
    archives.bidmc(root)
    return root


@pytest.fixture(scope="session")
def imdb_files(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("imdb")
    stand_ins.imdb(root, 30)
    stand_ins.glove(root)
    return root


@pytest.fixture
def fake_imdb(imdb_files, monkeypatch) -> Path:
    """60 training and 60 test reviews, and vectors of width 50 and 100 of some of their words."""
    monkeypatch.setattr(imdb, "REVIEWS", 30)
    return imdb_files


@pytest.fixture(scope="session")
def fake_ptb(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("ptb")
    stand_ins.ptb(root)
    return root


@pytest.fixture(scope="session")
def neurons_root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("neurons")


@pytest.fixture
def few_neurons(neurons_root, monkeypatch) -> Path:
    """FitzHugh-Nagumo with 4, 3 and 5 series, which are kept."""
    monkeypatch.setattr(fitzhugh_nagumo, "SIZES", {"train": 4, "validation": 3, "test": 5})
    return neurons_root
