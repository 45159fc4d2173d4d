"""What docs/kernels.md says of adding a cell is all there is to it."""

import os
import re
import shutil
import subprocess
import sys

from longwave import PACKAGE

# The values and gradients of the example, in both types, against its definition.
PROGRAM = """
import importlib.util
import os

import torch

from longwave import kernels
from longwave.benchmarks import cases

assert cases.__file__.startswith({folder!r})
torch.set_flush_denormal(True)
assert kernels.backend_for("leaky", torch.zeros(1)) == "cpu"
for size in cases.SIZES:
    assert not cases.differences(cases.case("leaky", *size))
    assert not cases.excess_errors(cases.case_by_unit("leaky", *size))
example = cases.case("leaky", 4, 2, 3)
keys, values = list(example.inputs), tuple(example.inputs.values())
assert torch.autograd.gradcheck(lambda *values: example.run("cpu", dict(zip(keys, values))), values)
os.environ["TRITON_INTERPRET"] = "1"
for size in ((1, 1, 1), (2, 3, 5), (3, 2, 40)) if importlib.util.find_spec("triton") else ():
    assert not cases.excess_errors(cases.case_by_unit("leaky", *size), "triton")
print("checked")
"""


def test_the_example_is_a_cell(tmp_path):
    folder = tmp_path / "longwave"
    for room in ("kernels", "benchmarks"):
        shutil.copytree(PACKAGE / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "files.py"):
        shutil.copy(PACKAGE / name, folder)
    # A block belongs to the file that the line before it names.
    text = (PACKAGE / "docs" / "kernels.md").read_text()
    printed = dict(re.findall(r"`([\w/]+\.(?:py|c))`:\n\n```\w+\n(.*?)```", text, re.DOTALL))
    example = printed.pop("benchmarks/cases.py")
    cases = folder / "benchmarks" / "cases.py"
    head, last, tail = cases.read_text().rpartition("    else:\n")
    cases.write_text(head + example + last + tail)
    exports = folder / "kernels" / "__init__.py"
    exports.write_text(exports.read_text() + printed.pop("kernels/__init__.py"))
    assert sorted(printed) == [
        f"kernels/leaky/{name}" for name in ("__init__.py", "cpu.c", "reference.py", "triton.py")
    ]
    (folder / "kernels" / "leaky").mkdir()
    for name, code in printed.items():
        (folder / name).write_text(code)

    environment = os.environ | {"OMP_NUM_THREADS": "1", "LONGWAVE_CACHE": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, "-c", PROGRAM.format(folder=str(folder))]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "checked\n"), done.stderr
