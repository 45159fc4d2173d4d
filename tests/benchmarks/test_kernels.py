"""What the benchmark of the kernels says where there is nothing to say: red tests, no torch.compile, one operation."""

import json
import subprocess
import sys

import pytest
import torch

from longwave.benchmarks import kernels as benchmark
from longwave.training.record import Git
from tests.kernels.cases import EVERY_EQUATION

SIZES = [benchmark.Size("indrnn", 3, 2, 4), benchmark.Size("cornn", 3, 2, 4, target=2, by_length=True)]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Calls main() on two small cases, and gives what it printed and what it wrote, None for no file."""
    path = tmp_path / "kernels.json"
    (tmp_path / "benchmarks").mkdir()
    default = tmp_path / "benchmarks" / "kernels.json"
    monkeypatch.setattr(benchmark, "PACKAGE", tmp_path)
    monkeypatch.setattr(benchmark, "SIZES", SIZES)
    monkeypatch.setattr(benchmark, "LENGTHS", (2, 3))
    monkeypatch.setattr(benchmark, "rates", lambda: (1e9, 1e9))
    # It sets the whole process up, which other tests are run in.
    monkeypatch.setattr(benchmark, "set_up_process", lambda threads: None)
    benchmark.green.cache_clear()

    def call(*arguments: str, to_default: bool = False):
        where = [] if to_default else ["--json", str(path)]
        monkeypatch.setattr(sys, "argv", ["kernels", "--seconds", "0", *where, *arguments])
        benchmark.main()
        written = default if to_default else path
        return capsys.readouterr().out, json.loads(written.read_text()) if written.exists() else None

    yield call
    benchmark.green.cache_clear()


def make_red(monkeypatch, *selections: str):
    """Has pytest fail for what these select, and pass for the rest, without running it."""

    def pytest_run(command, **options):
        assert command[1:4] == ["-m", "pytest", "-q"]
        return subprocess.CompletedProcess(command, 1 if command[-1] in selections else 0)

    monkeypatch.setattr(benchmark.subprocess, "run", pytest_run)
    monkeypatch.setattr(benchmark, "git", lambda: None)


def test_no_speed_where_the_tests_of_the_operation_are_red(run, monkeypatch):
    make_red(monkeypatch, benchmark.tests_of("indrnn"))
    printed, written = run("--compile", "0")
    (line,) = [line for line in printed.splitlines() if "indrnn" in line]
    assert "red" in line
    assert "x" not in line.replace("indrnn", "")
    red, green = written["rows"]
    assert red == vars(SIZES[0]) | {"green": False}
    assert green["green"]
    assert green["speedup"] == green["reference"] / green["fused"] > 0
    assert list(green["microseconds_a_step"]) == ["2", "3"]
    assert f"{green['speedup']:.1f}x" in printed


def test_no_speed_where_shared_tests_are_red(run, monkeypatch):
    make_red(monkeypatch, benchmark.SHARED)
    monkeypatch.setattr(benchmark, "measure", None)
    _, written = run("--compile", "0")
    assert written["rows"] == [vars(size) | {"green": False} for size in SIZES]


def selected(selection: str) -> set[str]:
    command = [sys.executable, "-m", "pytest", "tests/kernels", "--collect-only", "-k", selection]
    done = subprocess.run(command, cwd=benchmark.PACKAGE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return {line.removeprefix("tests/kernels/") for line in done.stdout.splitlines() if "::" in line}


def test_every_test_decides_on_a_speed():
    shared, cornn = selected(benchmark.SHARED), selected(benchmark.tests_of("cornn"))
    for test in (
        "test_operations.py::test_gradcheck[cornn]",
        "test_operations.py::test_gradcheck[implicit_cornn]",
        "test_triton.py::test_values_and_gradients[cornn-1-1-1]",
    ):
        assert test in cornn
    assert not [test for test in cornn if "[unicornn" in test or "[gru" in test]
    # An operation's own tests that no parameter names are everybody's.
    for test in (
        "test_operations.py::test_unicornn_keeps_little",
        "test_operations.py::test_unicornn_anchors[256]",
        "test_triton.py::test_anchors[0]",
        "test_vector.py::test_within_3_ulp[torch.float32-tanh]",
        "test_threads.py::test_without_openmp",
        "test_linear.py::test_is_torchs_in_value_and_gradients[True-1-1-shape0]",
    ):
        assert test in shared
    # What is neither is another operation's by its first parameter: none is lost.
    others = selected("test") - shared - cornn
    firsts = {test.partition("[")[2].rstrip("]").partition("-")[0] for test in others}
    assert firsts == set(EVERY_EQUATION) - {"cornn", "implicit_cornn", "input_cornn"}
    parameters = {parameter for test in shared for parameter in test.partition("[")[2].rstrip("]").split("-")}
    assert not parameters & set(EVERY_EQUATION)


def test_only_writes_nothing_by_itself(run, monkeypatch):
    make_red(monkeypatch)
    printed, written = run("--compile", "0", "--only", "cornn", to_default=True)
    assert "cornn" in printed
    assert "indrnn" not in printed
    assert written is None
    _, written = run("--compile", "0", "--only", "cornn")
    assert [row["name"] for row in written["rows"]] == ["cornn"]
    _, written = run("--compile", "0", to_default=True)
    assert [row["name"] for row in written["rows"]] == ["indrnn", "cornn"]


def test_where_it_was_measured_is_written(run, monkeypatch):
    make_red(monkeypatch)
    monkeypatch.setattr(benchmark, "git", lambda: Git(commit="abc", dirty=False))
    _, written = run("--compile", "0", "--only", "cornn")
    environment = written["environment"]
    assert environment["device"].startswith("cpu (")
    assert environment["threads"] == torch.get_num_threads()
    assert environment["git"]["commit"] == "abc"
    assert environment["options"] == {"only": "cornn", "seconds": 0, "compile": 0}


@pytest.mark.parametrize(
    ("outcome", "limit", "found", "reason"),
    [
        (None, 0, (None, None), "not tried"),
        (subprocess.TimeoutExpired("", 1), 60, (None, None), "not compiled within 60 s"),
        ((0, "61.0 0.5\n", ""), 60, (None, 61.0), "not compiled within 60 s"),
        ((1, "", "Traceback\nValueError: no\n"), 60, (None, None), "failed: ValueError: no"),
        ((-9, "", ""), 60, (None, None), "failed: exit code -9"),
        ((0, "a line\n12.5 0.5\n", "a warning"), 60, (0.5, 12.5), None),
    ],
    ids=str,
)
def test_why_there_is_no_compiled(run, monkeypatch, outcome, limit, found, reason):
    make_red(monkeypatch)
    tests = benchmark.subprocess.run

    def process(command, **options):
        if "pytest" in command:
            return tests(command, **options)
        if isinstance(outcome, Exception):
            raise outcome
        return subprocess.CompletedProcess(command, *outcome)

    monkeypatch.setattr(benchmark.subprocess, "run", process)
    printed, written = run("--compile", str(limit), "--only", "cornn")
    (row,) = written["rows"]
    assert (row["compiled"], row["compile_seconds"]) == found
    assert row["no_compiled"] == reason
    assert (f"(1) {reason}" in printed) == (reason is not None)


def test_torch_compile_is_timed(monkeypatch, capsys):
    monkeypatch.setattr(benchmark.torch, "compile", lambda function, **options: function)
    benchmark.one_compiled(SIZES[0])
    compile_seconds, seconds = map(float, capsys.readouterr().out.split())
    assert seconds > 0
    assert abs(compile_seconds) < 10
