"""What docs/extending.md says of adding a model, a task and a recipe is all there is to it."""

import os
import re
import subprocess
import sys

import pytest

from longwave import PACKAGE

# What finds models, tasks or recipes by itself, or lists tables of them.
AFFECTED = [
    "tests/models/test_contract.py",
    "tests/results",
    "tests/tasks/test_batches.py",
    "tests/tasks/test_show.py",
    "tests/test_models_on_tasks.py",
    "tests/test_recipes.py",
    "tests/test_resume.py",
    "tests/test_sweep.py",
    "tests/training/test_config.py",
    "tests/training/test_diagnostics.py",
]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_examples_pass_the_tests_of_the_project(tmp_path):
    """In a copy of the project with the printed files: the fast tests that a model, a task or a recipe can affect."""
    copy = tmp_path / "longwave"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=PACKAGE, capture_output=True, text=True, check=True)
    for name in files.stdout.split("\0")[:-1]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((PACKAGE / name).read_bytes())
    text = (copy / "docs" / "extending.md").read_text()
    printed = re.findall(r"`((?:models|tasks|conf)/[\w/]+\.(?:py|yaml))`:?\n\n```\w+\n(.*?)```", text, re.DOTALL)
    added = {"models/irnn.py", "conf/model/irnn.yaml", "tasks/recall.py", "conf/task/recall.yaml"}
    assert {name for name, _ in printed} == added | {"conf/recipe/irnn/recall.yaml"}
    for name, content in printed:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(content)

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}

    def run(*command):
        done = subprocess.run([sys.executable, *command], cwd=copy, capture_output=True, text=True, env=environment)
        return done.returncode, done.stdout + done.stderr

    code, output = run("train.py", "model=irnn", "task=recall", "model.hidden=0")
    assert (code, output) == (1, "error: model.hidden=0: must be at least 1\n")
    code, output = run("-m", "pytest", "-m", "not slow", "-n", "2", *AFFECTED)
    assert code == 0, output[-5000:]
    assert re.search(r"\d+ passed", output)
