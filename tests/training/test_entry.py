"""The ends of a process that are nobody's mistake leave no traceback."""

import os
import signal
import subprocess
import sys

import pytest

from longwave import PACKAGE


@pytest.mark.parametrize("script", ["train.py", "sweep.py"])
def test_a_closed_pipe(script):
    """As ``--help | head -1`` leaves it."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, PACKAGE / script, "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("script", ["train.py", "sweep.py"])
def test_an_interrupt_during_the_imports(script, tmp_path):
    # In the place of the first library that is imported.
    name = {"train.py": "yaml", "sweep.py": "hydra"}[script]
    (tmp_path / f"{name}.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, PACKAGE / script, "--help"]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        # It is ignored where a shell started the tests in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
