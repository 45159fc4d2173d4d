"""What docs/extending.md says of adding a model is all there is to it."""

import json
import os
import re
import shutil
import subprocess
import sys

from longwave import PACKAGE


def test_the_example_is_a_model(tmp_path):
    tmp_path = tmp_path / "longwave"
    tmp_path.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path.parent)}
    for name in (
        "__init__.py",
        "pyproject.toml",
        "conf",
        "kernels",
        "models",
        "results",
        "tasks",
        "training",
        "train.py",
    ):
        source = PACKAGE / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    text = (PACKAGE / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (schema,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "models" / "irnn.py").write_text(code)
    (tmp_path / "conf" / "model" / "irnn.yaml").write_text(schema)
    small = ["task.T=6", "model.hidden=3", "training.steps=3", "tracking=none", "threads=1"]
    command = [sys.executable, tmp_path / "train.py", "model=irnn", "task=adding", *small]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert folder.name.startswith("irnn-adding-seed0")
    assert json.loads((folder / "record.json").read_text())["backend"] == "torch.nn.RNN"
    done = subprocess.run([*command, "model.hidden=0"], capture_output=True, text=True, env=environment)
    assert done.stderr.strip() == "error: model.hidden=0: must be 1 or more"
