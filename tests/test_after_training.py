"""docs/after-training.md, as printed: one command after the other, and its snippets."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from longwave import PACKAGE
from longwave.training.config import compose_run

PAGE = PACKAGE / "docs" / "after-training.md"
TEXT = PAGE.read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
LINES = "".join(text for kind, text in BLOCKS if not kind).splitlines()
COMMANDS = [line for line in LINES if not line.startswith("error: ")]
SNIPPETS = "\n".join(text for kind, text in BLOCKS if kind == "python")
PACKAGES = {"onnx": ("onnx", "onnxscript"), "safetensors": ("safetensors",)}


def test_the_run_has_the_identity_of_the_page():
    config, _ = compose_run(COMMANDS[0].split()[2:])
    assert f"outputs/runs/cornn-adding-seed0-{config.identity()}`" in TEXT
    others = set(re.findall(r"\b[0-9a-f]{10}\b", TEXT))
    assert others == {config.identity()}


@pytest.mark.slow
def test_every_command(tmp_path):
    environment = os.environ | {"LONGWAVE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"

    def run(*command, **more):
        done = subprocess.run(*command, cwd=PACKAGE, env=environment, capture_output=True, text=True, **more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    outputs = {}
    for command in COMMANDS:
        to = command.rpartition("--to ")[2]
        if any(importlib.util.find_spec(name) is None for name in PACKAGES.get(to, ())):
            continue
        more = " tracking=none threads=1" if "train.py" in command else ""
        outputs[command] = run([*("bash", "-c"), command + more])
    # Of each kind, what it is for.
    trained, evaluated, of_test, streamed, fine_tuned, *exports = outputs.values()
    assert "record: " in trained
    assert evaluated == of_test
    assert re.match(r"test mse: \S+, as in the record\npredictions: ", evaluated)
    assert [line.split()[0] for line in streamed.splitlines()] == ["1", "2", "3"]
    assert "starting from the weights of " in fine_tuned
    assert exports[0].count("model.") >= 1
    run([sys.executable, "-c", SNIPPETS])


def test_the_console_commands():
    for name in ("evaluate", "export"):
        command = [sys.executable, "-m", "longwave", name, "nowhere", *(["--to", "onnx"] if name == "export" else [])]
        done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
        assert done.returncode == 1
        assert done.stderr.startswith("error: nowhere: no run there, nor in ")
        assert len(done.stderr.splitlines()) == 1
