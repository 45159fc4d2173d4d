"""The wheel, installed outside any checkout: one import name, layers as a library, the console command."""

import os
import shutil
import subprocess
import sys

import pytest

from longwave import PACKAGE

pytestmark = pytest.mark.slow

SMALL = (
    "model=cornn", "task=adding", "task.T=10", "task.test_samples=20", "model.hidden=3", "training.steps=4",
    "training.target=null", "curriculum=none", "tracking=none", "threads=1",
)  # fmt: skip

LAYERS = """
import sys
import longwave
assert "torch" not in sys.modules, "import longwave imports torch"
import torch
from longwave import CoRNN, UnICORNN, LEM, LinOSS, IndRNN, ExpRNN, AntisymmetricRNN, NeuralRDE, kernels
for kind in (CoRNN, UnICORNN, LEM, LinOSS, IndRNN, ExpRNN, AntisymmetricRNN, NeuralRDE):
    layer = kind(3, 8)
    assert isinstance(layer, torch.nn.Module)
    sequence, state = layer(torch.randn(5, 2, 3))
    assert sequence.shape == (5, 2, 8), (kind, sequence.shape)
assert kernels.backend_for("cornn", torch.zeros(1)) in ("cpu", "reference")
print(longwave.__path__[0])
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of installed packages with nothing in it but the wheel; its dependencies come from this environment."""
    root = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".*", "outputs", "data", "build", "dist", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(PACKAGE, root / "source", ignore=left_out)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", root, root / "source"]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = root.glob("longwave-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", root / "site", wheel], check=True, capture_output=True)
    return root / "site"


@pytest.fixture
def run(site, tmp_path):
    def call(*command: str) -> str:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("LONGWAVE")}
        environment |= {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def test_one_name_is_installed(site):
    names = {path.name for path in site.iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"longwave", "bin"}
    for needed in ("conf/train.yaml", "kernels/dense.h", "kernels/cornn/cpu.c", "results/page.html"):
        assert (site / "longwave" / needed).exists(), needed
    assert list((site / "longwave" / "results" / "published").glob("*.yaml"))


def test_layers_are_a_library(site, run):
    assert run(sys.executable, "-c", LAYERS).strip() == str(site / "longwave")


def test_the_console_command(site, run, tmp_path):
    longwave = (sys.executable, str(site / "bin" / "longwave"))
    assert "test: mse" in run(*longwave, "train", *SMALL)
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert "is finished already" in run(*longwave, "train", *SMALL)
    assert "runs are finished" in run(*longwave, "sweep", "table=adding_200", "dry_run=true", "tracking=none")
    assert "MNIST" in run(*longwave, "download", "--list")
    run(*longwave, "show", "adding", "T=20")
    assert (tmp_path / "outputs" / "show" / "adding.png").exists()
    assert f"collected {folder.name}\n" in run(*longwave, "collect")
    assert (tmp_path / "outputs" / "records" / f"{folder.name}.json").exists()
    assert f"collected {folder.name}: forced" in run(*longwave, "collect", "--publish", "--force")
    assert (tmp_path / "results" / "runs" / f"{folder.name}.json").exists()
    assert "the same" in run(*longwave, "repeat", folder.name, "tracking=none")
    assert "adding, T = 10" in run(*longwave, "tables", "--runs", "outputs/runs")
    run(*longwave, "report")
    assert (tmp_path / "results" / "report.html").exists()
