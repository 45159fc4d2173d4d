"""A command that only has to say what is wrong does not wait for libraries that it does not need."""

import subprocess
import sys

import pytest

from longwave import PACKAGE

DEAR = (
    "torch",
    "torch._dynamo",
    "torchvision",
    "sympy",
    "scipy",
    "triton",
    "wandb",
    "matplotlib",
    "plotly",
    "jinja2",
    "optuna",
)


@pytest.mark.parametrize("module", ["longwave.train", "longwave.sweep"])
def test_a_configuration_is_read_without(module):
    program = f"import sys, {module}; print([name for name in {DEAR} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("script", ["train.py", "sweep.py"])
def test_a_script_of_another_checkout_is_refused(script, tmp_path):
    (tmp_path / script).write_text((PACKAGE / script).read_text())
    done = subprocess.run([sys.executable, tmp_path / script, "modl=x"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: this environment has longwave from {PACKAGE}: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_library_is_lazy():
    program = "import sys, longwave; print([name for name in ('torch', 'hydra', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
