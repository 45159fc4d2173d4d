"""What docs/extending.md says of adding a model, a task and a recipe is all there is to it."""

import os
import re
import subprocess
import sys

import pytest

from longwave import PACKAGE, new
from longwave.training.errors import UserError

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


LETTERS = "a name has small letters, digits and single underscores, and begins with a letter"
NAMES = ("a", "leaky_rnn", "lstm_2", "a" * 30, "_".join("a" * 15))


def test_the_page_has_an_example_of_each():
    added = {"models/irnn.py", "conf/model/irnn.yaml", "tasks/recall.py", "conf/task/recall.yaml"}
    assert set(new.examples()) == added | {"conf/recipe/irnn/recall.yaml"}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_well_formed(name, tmp_path):
    written = new.files("model", [name]) | new.files("task", [name]) | new.files("recipe", ["cornn", "uea"])
    folders = ("models", "conf/model", "tasks", "conf/task", "conf/recipe/cornn")
    assert [path.relative_to(PACKAGE).parent.as_posix() for path in written] == [*folders]
    for path, text in written.items():
        # But for the docstring, which says what it was.
        assert not re.search(r"\b(irnn|recall|IRNN|Recall)\b", text.split('"""', 2)[-1])
        copy = tmp_path / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    settings = ["--config", str(PACKAGE / "pyproject.toml"), "--no-cache", str(tmp_path)]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, *settings], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    for room in ("models", "tasks"):
        names = {}
        exec(compile(written[PACKAGE / room / f"{name}.py"], name, "exec", dont_inherit=True), names)
        assert names["Config"]().name == name
        assert new.camel(name) in names


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        ("model", ["cornn"], "cornn: models/cornn.py exists; choose another name"),
        ("model", ["stack"], "stack: models/stack.py exists; choose another name"),
        ("task", ["adding"], "adding: tasks/adding.py exists; choose another name"),
        ("recipe", ["cornn", "adding"], "cornn/adding: conf/recipe/cornn/adding.yaml exists; choose another name"),
        ("recipe", ["corn", "adding"], "corn: there is no such model; add it with: python -m longwave.new model corn"),
        ("recipe", ["cornn", "add"], "add: there is no such task; add it with: python -m longwave.new task add"),
        ("model", ["config"], "config: its class Config would clash with another in the file"),
        ("task", ["tensor"], "tensor: its class Tensor would clash with another in the file"),
        ("model", ["null"], "null: means something else to Python or Hydra; choose another name"),
        ("task", ["lambda"], "lambda: means something else to Python or Hydra; choose another name"),
        ("model", ["a" * 31], f"{'a' * 31}: a name has at most 30 characters"),
        *(
            (
                "model",
                [name],
                f"{shown}: {LETTERS}",
            )
            for name, shown in (
                ("", "''"),
                ("../x", "../x"),
                ("My", "My"),
                ("2x", "2x"),
                ("a__b", "a__b"),
                ("a\nb", "a\\nb"),
                ("é", "é"),
                ("b-c", "b-c"),
            )
        ),
    ],
)
def test_a_name_that_cannot_be_is_refused(kind, names, message):
    with pytest.raises(UserError) as error:
        new.files(kind, names)
    assert str(error.value) == message
    with pytest.raises(SystemExit, match=f"^error: {re.escape(message)}$"):
        new.main([kind, *names])


def test_an_installed_wheel_is_not_added_to(tmp_path):
    with pytest.raises(UserError, match=r"is no checkout: install one with `pip install -e .`, and add to that$"):
        new.files("model", ["mine"], tmp_path)


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
    for name, content in new.examples().items():
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(content)

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}

    def run(*command):
        done = subprocess.run([sys.executable, *command], cwd=copy, capture_output=True, text=True, env=environment)
        return done.returncode, done.stdout + done.stderr

    for words in (["model", "leaky_rnn"], ["task", "copy_first"], ["recipe", "leaky_rnn", "copy_first"]):
        code, output = run("-m", "longwave.new", *words)
        assert code == 0, output
        assert output.endswith(f" task={words[-1]}\n") or words[0] != "recipe"
    code, output = run("-m", "longwave", "new", "model", "leaky_rnn")
    assert (code, output) == (1, "error: leaky_rnn: models/leaky_rnn.py exists; choose another name\n")
    code, output = run("train.py", "model=leaky_rnn", "task=copy_first", "model.hidden=0")
    assert (code, output) == (1, "error: model.hidden=0: must be at least 1\n")
    code, output = run("train.py", "model=irnn", "task=recall", "model.hidden=0")
    assert (code, output) == (1, "error: model.hidden=0: must be at least 1\n")
    code, output = run("-m", "pytest", "-m", "not slow", "-n", "2", *AFFECTED)
    assert code == 0, output[-5000:]
    assert re.search(r"\d+ passed", output)
