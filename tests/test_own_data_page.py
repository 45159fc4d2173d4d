"""Every command of docs/own-data.md works as it stands, here with a tiny budget."""

import re
import shlex
import subprocess
import sys

import pytest

from longwave import PACKAGE
from longwave.tasks.files import Config

PAGE = (PACKAGE / "docs" / "own-data.md").read_text()
COMMANDS = re.findall(r"^python .*$", PAGE, re.MULTILINE)
TRAIN = [command for command in COMMANDS if " train.py " in command]


def test_the_page_has_them():
    assert len(COMMANDS) == 5
    assert set(re.findall(r"task\.(\w+)", PAGE)) <= set(Config.__dataclass_fields__)


@pytest.mark.parametrize("command", [command for command in TRAIN if " -m " not in command])
def test_a_run(command, fit_here, tmp_path, monkeypatch):
    monkeypatch.setenv("LONGWAVE_DATA", str(tmp_path))
    words = shlex.split(command)[2:]
    _, folder = fit_here(*words, "training.steps=2", "model.hidden=4")
    assert (folder / "record.json").exists()


def test_the_picture(tmp_path):
    (command,) = [command for command in COMMANDS if " tasks.show " in command]
    words = shlex.split(command)[1:]
    subprocess.run([sys.executable, *words, "--out", tmp_path / "x.png"], cwd=PACKAGE, check=True, capture_output=True)
    assert (tmp_path / "x.png").exists()


@pytest.mark.slow
def test_the_table(train_process):
    (command,) = [command for command in TRAIN if " -m " in command]
    words = shlex.split(command)[2:]
    done = train_process.run(*words, "training.steps=2", "model.hidden=4", "tracking=none")
    assert done.returncode == 0, done.stdout
    assert len(train_process.runs()) == 25
    table = done.stdout[done.stdout.index("gestures (") :]
    for model in ("cornn", "lstm", "gru", "lem", "linoss"):
        assert re.search(rf"^{model} \(no recipe\) .*± .* \(5\)", table, re.MULTILINE)
        # Rows with the same values share one note: "cornn (no recipe), gru (no recipe): folds 0: 50, ...".
        folds = r"folds 0: \S+, 1: \S+, 2: \S+, 3: \S+, 4: \S+\.$"
        assert re.search(rf"^([^:\n]*, )?{model} \(no recipe\)(, [^:\n]*)?: {folds}", table, re.MULTILINE)
