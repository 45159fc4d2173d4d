"""What docs/kernels.md says of adding a cell is all there is to it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_example_is_a_cell(tmp_path):
    """The files as printed pass the tests that every operation passes: values and gradients against the reference."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LONGWAVE_CACHE": str(tmp_path / "cache")}
    tmp_path = tmp_path / "longwave"
    environment["PYTHONPATH"] = f"{tmp_path.parent}{os.pathsep}{tmp_path}"
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels")
    shutil.copy(ROOT / "__init__.py", tmp_path)
    shutil.copytree(ROOT / "tests" / "kernels", tmp_path / "tests" / "kernels")
    (tmp_path / "tests" / "__init__.py").touch()
    # A block belongs to the file that the line before it names.
    printed = dict(
        re.findall(r"`([\w/]+\.(?:py|c))`:\n\n```\w+\n(.*?)```", (ROOT / "docs" / "kernels.md").read_text(), re.DOTALL)
    )
    example = printed.pop("tests/kernels/cases.py")
    cases = tmp_path / "tests" / "kernels" / "cases.py"
    head, last, tail = cases.read_text().rpartition("    else:\n")
    cases.write_text(head + example + last + tail)
    exports = tmp_path / "kernels" / "__init__.py"
    exports.write_text(exports.read_text() + printed.pop("kernels/__init__.py"))
    assert sorted(printed) == [f"kernels/leaky/{name}" for name in ("__init__.py", "cpu.c", "reference.py")]
    (tmp_path / "kernels" / "leaky").mkdir()
    for name, code in printed.items():
        (tmp_path / name).write_text(code)

    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        "tests/kernels",
        "-k",
        "leaky",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for test in ("float64_equals_reference[leaky-(257, 3, 5)]", "gradcheck[leaky]"):
        assert f"::test_{test} PASSED" in done.stdout
