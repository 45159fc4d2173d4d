"""The benchmark of the kernels where there is no figure: wrong values, no torch.compile, one operation."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torchdiffeq

from longwave.benchmarks import cases
from longwave.benchmarks import kernels as benchmark
from longwave.kernels.operation import Operation
from longwave.training.record import Git

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
    monkeypatch.setattr(cases, "SIZES", [(3, 2, 4), (17, 3, 32)])
    monkeypatch.setattr(benchmark, "git", lambda: None)
    benchmark.disagreements.cache_clear()

    def call(*arguments: str, to_default: bool = False):
        where = [] if to_default else ["--json", str(path)]
        monkeypatch.setattr(sys, "argv", ["kernels", "--seconds", "0", *where, *arguments])
        benchmark.main()
        written = default if to_default else path
        return capsys.readouterr().out, json.loads(written.read_text()) if written.exists() else None

    yield call
    benchmark.disagreements.cache_clear()


@pytest.mark.parametrize("slope", [0, 1e-9], ids=["value", "gradient"])
def test_no_speed_where_the_kernel_is_wrong(run, monkeypatch, slope):
    kernel = Operation.kernel

    def wrong(self, pre, *arguments):
        y, *final = kernel(self, pre, *arguments)
        if self.name == "indrnn":
            y = y + slope * (pre - pre.detach()) if slope else y * (1 + 1e-10)
        return [y, *final]

    monkeypatch.setattr(Operation, "kernel", wrong)
    printed, written = run("--compile", "0")
    (line,) = [line for line in printed.splitlines() if line.split()[1:2] == ["indrnn"]]
    assert "(1)" in line
    assert "x" not in line.replace("indrnn", "")
    tensor = "gradient of pre" if slope else "output 0"
    assert f"(1) disagrees with the reference: indrnn, (T, B, H) = (3, 2, 4): {tensor}: differs by" in printed
    red, green = written["rows"]
    assert red == vars(SIZES[0]) | {"green": False}
    assert green["green"]
    assert green["speedup"] == green["reference"] / green["fused"] > 0
    assert list(green["microseconds_a_step"]) == ["2", "3"]
    assert f"{green['speedup']:.1f}x" in printed


def test_every_option_of_an_operation_decides(run, monkeypatch):
    checked = []
    monkeypatch.setattr(cases, "differences", lambda example, backend: [])
    monkeypatch.setattr(cases, "excess_errors", lambda example, backend: ["output 0: wrong"])
    monkeypatch.setattr(cases, "case_by_unit", lambda equation, *size: checked.append((equation, size)))
    found = {name: benchmark.disagreements(name) for name in set(cases.FUNCTIONS.values())}
    assert len(checked) == 2 * len(cases.FUNCTIONS) == len(set(checked))
    for equation in ("cornn", "implicit_cornn", "input_cornn"):
        assert f"{equation}, (T, B, H) = (17, 3, 32): output 0: wrong" in found["cornn"]
    assert len(found["cornn"]) == 6


def test_only_writes_nothing_by_itself(run):
    printed, written = run("--compile", "0", "--only", "cornn", to_default=True)
    assert "cornn" in printed
    assert "indrnn" not in printed
    assert written is None
    _, written = run("--compile", "0", "--only", "cornn")
    assert [row["name"] for row in written["rows"]] == ["cornn"]
    _, written = run("--compile", "0", to_default=True)
    assert [row["name"] for row in written["rows"]] == ["indrnn", "cornn"]


def test_where_it_was_measured_is_written(run, monkeypatch):
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
    def process(command, **options):
        if isinstance(outcome, Exception):
            raise outcome
        return subprocess.CompletedProcess(command, *outcome)

    # Not for all: a kernel may have yet to be compiled.
    stand_in = SimpleNamespace(run=process, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(benchmark, "subprocess", stand_in)
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


class Linear(torch.nn.Module):
    """torchcde.LinearInterpolation, whose derivative at a whole number is that before it."""

    def __init__(self, path):
        super().__init__()
        self.slopes = path.diff(dim=1)
        self.interval = torch.tensor([0.0, path.shape[1] - 1])

    def derivative(self, t):
        return self.slopes[:, int(t)]


def cdeint(X, func, z0, t, adjoint, method, options):
    def field(t, z):
        return (func(t, z) @ X.derivative(t).unsqueeze(-1)).squeeze(-1)

    assert isinstance(func, torch.nn.Module)
    assert not adjoint
    # Just inside of a step, where torchcde's takes the block before it: to have the same numbers here.
    options = options | {"perturb": True}
    return torchdiffeq.odeint(field, z0, t, method=method, options=options).permute(1, 0, 2)


def test_torchcde_solves_the_same_equation(monkeypatch):
    monkeypatch.setattr(benchmark, "TORCHCDE", "torch")
    stand_in = SimpleNamespace(LinearInterpolation=Linear, cdeint=cdeint)
    monkeypatch.setitem(sys.modules, "torchcde", stand_in)
    contenders = benchmark.contenders(benchmark.Size("nrde", 3, 2, 4))
    assert list(contenders) == ["fused", "reference", "torch"]
    fused, *others = (contender() for contender in contenders.values())
    assert len(fused) == 7
    for gradients in others:
        torch.testing.assert_close(gradients, fused)


def test_without_torchcde_the_rival_is_said_to_be_another(run, monkeypatch):
    monkeypatch.setattr(benchmark, "SIZES", [benchmark.Size("nrde", 3, 2, 4, 5, "reference")])
    monkeypatch.setattr(cases, "NRDE_SIZES", [(2, 3, 5, 7)])
    printed, written = run("--compile", "0")
    (row,) = written["rows"]
    assert row["green"]
    assert row["speedup"] == row["reference"] / row["fused"] > 0
    assert "torchcde is not installed: the speed-up is that over the reference" in printed
    monkeypatch.setattr(cases, "excess_errors", lambda example, backend: ["output 0: wrong"])
    benchmark.disagreements.cache_clear()
    printed, written = run("--compile", "0")
    assert written["rows"][0]["green"] is False
    assert "disagrees with the reference: {}, (T, B, H, D) = (2, 3, 5, 7): output 0: wrong" in printed
