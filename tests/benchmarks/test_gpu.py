"""The benchmark on a GPU, at small sizes on the CPU."""

import functools
import hashlib
import importlib
import itertools
import json
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from longwave import CONF, PACKAGE, home
from longwave.benchmarks import cases, gpu, gpu_cases, gpu_check, gpu_report, gpu_speed, gpu_train
from longwave.kernels import library
from longwave.kernels.operation import OPERATIONS

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(tmp_path, capsys):
    """Calls main(), and gives its status, what it wrote, and what it printed."""

    def call(*arguments: str):
        status = gpu.main(["--small", "--out", str(tmp_path), *arguments])
        return status, json.loads((tmp_path / "gpu.json").read_text()), capsys.readouterr().out

    return call


def test_check_and_speed(run):
    status, found, printed = run("check", "speed", "--only", "indrnn")
    assert status == 0
    check, speed = found["check"], found["speed"]
    rows = [(row["what"], row["mode"]) for row in check["results"]]
    assert rows == list(itertools.product(["indrnn 1 x 1 x 3", "indrnn 9 x 2 x 5"], ["fp32", "bf16"]))
    for row in check["results"]:
        assert row["ok"]
        assert row["same_bits"]
        assert set(row["errors"]) == {*("output 0", "output 1"), *(f"gradient of {k}" for k in ("pre", "u", "state_h"))}
    assert [row["what"] for row in speed["results"]] == ["rates", *["indrnn 9 x 2 x 5"] * 2, "indrnn compiled"]
    row = speed["results"][1]
    assert all(row[f"{who} {what}"] > 0 for who in ("fused", "eager") for what in ("forward", "both"))
    assert row["microseconds a step"] == 1e3 * row["fused both"] / 9
    # pre and y; and y, with the gradients of y and pre.
    for key, sequences in (("forward", 2), ("both", 5)):
        expected = 1e3 * sequences * 9 * 2 * 5 * 4 / speed["rates"]["copy"] / row[f"fused {key}"]
        assert row[f"share of the bound, {key}"] == pytest.approx(expected)
    for part in (check, speed):
        assert part["environment"]["torch"] in torch.__version__
        assert part["environment"]["interpreted"]
        assert part["skipped"] == []
    assert "check indrnn 9 x 2 x 5 mode=fp32 ok=True" in printed
    assert "train" not in found


def test_a_part_keeps_those_of_before(run):
    _, before, _ = run("check", "--only", "indrnn")
    _, after, _ = run("speed", "--only", "indrnn", "--minutes", "0")
    assert after["check"] == before["check"]
    assert after["speed"]["results"] == []


def shifted(y):
    return y * (1 + 1e-4)


def noisy(y):
    return y + 1e-9 * torch.randn_like(y)


def unwritten(y):
    written = torch.empty_like(y)
    written[:-1] = y[:-1]
    return written


def steep(y):
    return y + 1e-4 * (y - y.detach())


@pytest.mark.parametrize("damage", [shifted, noisy, unwritten, steep])
def test_what_is_wrong_is_found(run, monkeypatch, damage):
    module = importlib.import_module("longwave.kernels.indrnn.triton")
    kernel = module.indrnn

    def wrong(*arguments):
        y, final = kernel(*arguments)
        return damage(y), final

    monkeypatch.setattr(module, "indrnn", wrong)
    status, found, printed = run("check", "--only", "indrnn")
    assert status == 1
    row = found["check"]["results"][2]
    assert (row["what"], row["mode"], row["ok"]) == ("indrnn 9 x 2 x 5", "fp32", False)
    assert row["same_bits"] == (damage not in (noisy, unwritten))
    assert "FAILED indrnn 9 x 2 x 5 fp32" in printed


def test_the_rival_of_linoss_is_the_same_function():
    size = (9, 2, 5)
    example = cases.case("linoss", *size).to(torch.float32)
    zeros = {key: torch.zeros_like(value) for key, value in example.inputs.items() if key.startswith("state_")}
    example.inputs |= zeros
    torch.manual_seed(0)
    found = gpu_speed.scan_passes(example, size)["both"]()
    torch.manual_seed(0)
    cotangent, leaves = torch.randn(size), [example.inputs[key] for key in ("pre", "a", "dt")]
    torch.testing.assert_close(found, torch.autograd.grad(example.run("reference")[0], leaves, cotangent))


def test_what_is_wrong_is_not_timed():
    report = gpu_report.Report(None, torch.device("cpu"))
    report.start("check", time.monotonic() + 60)
    report.add({"what": "imex_linoss 1 x 1 x 3", "ok": False})
    report.start("speed", time.monotonic() + 60)
    items = {item.what: item for item in gpu_speed.speeds(report, True, None)}
    report.each([items["linoss 9 x 2 x 5"], items["linoss by length"]])
    assert report.content["speed"]["results"] == []
    assert [entry["reason"] for entry in report.content["speed"]["skipped"]] == ["the check found it wrong"] * 2


def test_what_raises_is_one_line_and_the_others_follow(run, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no\nlaunch")

    monkeypatch.setattr(importlib.import_module("longwave.kernels.indrnn.triton"), "indrnn", broken)
    status, found, _ = run("check", "--only", "indrnn")
    assert status == 1
    failed = {"ok": False, "failed": "RuntimeError: no launch"}
    sizes = ["indrnn 1 x 1 x 3", "indrnn 9 x 2 x 5"]
    assert found["check"]["results"] == [{"what": what} | failed for what in sizes]


def test_what_the_time_does_not_allow_is_named(run, monkeypatch):
    status, found, printed = run("check", "--only", "indrnn", "--minutes", "0")
    assert (status, found["check"]["results"]) == (0, [])
    sizes = ["indrnn 1 x 1 x 3", "indrnn 9 x 2 x 5"]
    assert found["check"]["skipped"] == [{"what": what, "reason": "no time left"} for what in sizes]
    assert "check indrnn 1 x 1 x 3 skipped: no time left" in printed


def test_every_result_is_in_the_file_at_once_and_a_long_one_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report, "GRACE", 0.1)
    report = gpu_report.Report(tmp_path / "gpu.json", torch.device("cpu"))

    def written() -> dict:
        return json.loads((tmp_path / "gpu.json").read_text())["speed"]

    def long():
        yield {"number": 1}
        assert written()["results"] == [{"what": "long", "number": 1}]
        time.sleep(60)

    report.start("speed", time.monotonic() + 1)
    began = time.monotonic()
    report.each([gpu_report.Item("long", long, 0.1), gpu_report.Item("short", lambda: iter([{"number": 2}]))])
    assert time.monotonic() - began < 5
    assert written()["results"] == [{"what": "long", "number": 1}, {"what": "short", "number": 2}]
    assert written()["skipped"] == [{"what": "long", "reason": "took too long"}]


def test_a_kernel_that_never_ends_ends_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report, "GRACE", 0.1)
    monkeypatch.setattr(gpu_report, "STUCK", 0.1)
    codes = []
    monkeypatch.setattr(gpu_report.os, "_exit", codes.append)
    report = gpu_report.Report(tmp_path / "gpu.json", torch.device("cpu"))
    report.start("check", time.monotonic() + 0.1)

    def busy():
        # Some seconds that no signal interrupts.
        hashlib.pbkdf2_hmac("sha256", b"", b"", 3_000_000)
        yield {}

    report.each([gpu_report.Item("busy", busy)])
    assert codes == [1]
    reasons = [entry["reason"] for entry in report.content["check"]["skipped"]]
    assert reasons == ["stuck, which ended the process", "took too long"]


def test_the_card_is_described(monkeypatch):
    card = SimpleNamespace(name="Card", major=9, minor=0, multi_processor_count=132, total_memory=8, uuid="12-34")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)

    def process(command, **options):
        if command[0] == "git":
            raise OSError
        assert command[:3] == ["nvidia-smi", "-i", "GPU-12-34"]
        assert command[3].startswith("--query-gpu=driver_version,clocks.sm,")
        return subprocess.CompletedProcess(command, 0, "580.1, 345 MHz, 1980 MHz, 1593 MHz, 2619 MHz, 700.00 W\n")

    monkeypatch.setattr(gpu_report.subprocess, "run", process)
    found = gpu_report.environment(torch.device("cuda"))
    assert (found["device"], found["architecture"], found["multiprocessors"]) == ("Card", "sm_90", 132)
    assert (found["driver_version"], found["clocks.sm"], found["clocks.max.sm"]) == ("580.1", "345 MHz", "1980 MHz")
    assert "triton" in found
    assert "commit" not in found


def test_every_operation_with_a_triton_kernel_and_every_model_is_checked(monkeypatch):
    fused = {name for name, op in OPERATIONS.items() if (library.FOLDER / op.folder / "triton.py").exists()}
    assert {"linoss", "unicornn", "indrnn", "cornn"} <= fused
    device = torch.device("cpu")
    names = [item.what for item in gpu_check.checks(device, False, None)]
    for name in fused:
        for size in (*gpu_cases.ODD, *gpu_cases.full_sizes(name)):
            assert f"{name} {' x '.join(map(str, size))}" in names
    assert {"cornn 5000 x 50 x 128", "unicornn 17984 x 8 x 32", "implicit_cornn 1 x 17 x 96"} <= set(names)
    assert {"nrde 1 x 1 x 5", "nrde 70 x 181 x 32"} <= set(names)
    for path in (CONF / "model").glob("*.yaml"):
        assert {f"model {path.stem}", f"model {path.stem}, compiled"} <= set(names)
    timed = [item.what for item in gpu_speed.speeds(gpu_report.Report(None, device), False, None)]
    assert {*fused, "nrde"} <= {what.split()[0] for what in timed}


def test_sizes_that_nobody_listed_have_a_usual_one():
    listed = set(gpu_cases.FULL)
    assert all(gpu_cases.full_sizes(name) for name in OPERATIONS)
    assert listed <= {*gpu_cases.FUNCTIONS, "nrde"}


def test_products_are_in_the_precision_of_the_mode():
    before = torch.get_float32_matmul_precision()
    for mode in gpu_cases.MODES:
        with gpu_cases.products(mode):
            tf32 = mode.name == "tf32"
            assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32
    assert torch.get_float32_matmul_precision() == before


def test_training(tmp_path, monkeypatch):
    """The headline trains; what needs data that are not there says so."""
    monkeypatch.setenv("LONGWAVE_DATA", str(tmp_path / "nothing"))
    report = gpu_report.Report(None, torch.device("cpu"))
    report.start("train", time.monotonic() + 600)
    items = list(gpu_train.runs(report, True, tmp_path))
    recipes = {f"{path.parent.name}/{path.stem}" for path in (CONF / "recipe").glob("*/smnist*.yaml")}
    assert len(recipes) > 10
    assert {item.what for item in items[2:]} == {f"an epoch of {recipe}" for recipe in recipes}
    # One whose file names model and task, and one whose name does.
    report.each(items[:4])
    assert not report.failures
    (row,) = report.content["train"]["results"]
    assert (row["what"], row["status"], row["steps"]) == ("model=cornn task=adding task.T=9", "finished", 4)
    assert row["milliseconds a step"] == 1e3 * row["seconds"] / 4
    skipped = report.content["train"]["skipped"]
    epochs = ["an epoch of cornn/smnist", "an epoch of cornn/smnist_128"]
    assert [entry["what"] for entry in skipped] == ["model=unicornn task=psmnist training.epochs=1", *epochs]
    assert all("train-images-idx3-ubyte" in entry["reason"] for entry in skipped)


def test_a_run_that_the_time_ends_is_reported(tmp_path):
    item = next(iter(gpu_train.runs(gpu_report.Report(None, torch.device("cpu")), True, tmp_path)))
    given = [*item.run.args[0], "training.steps=100000"]
    report = gpu_report.Report(tmp_path / "gpu.json", torch.device("cpu"))
    report.start("train", time.monotonic() + 3)
    report.each([gpu_report.Item("headline", functools.partial(gpu_train.whole_run, given))])
    (row,) = report.content["train"]["results"]
    assert row["status"] == "interrupted"
    assert 0 < row["steps"] < 100_000
    assert report.content["train"]["skipped"] == [{"what": "headline", "reason": "took too long"}]


def test_seconds_per_epoch(fake_mnist, monkeypatch, tmp_path):
    monkeypatch.setenv("LONGWAVE_DATA", str(fake_mnist))
    items = gpu_train.runs(gpu_report.Report(None, torch.device("cpu")), True, tmp_path)
    (item,) = (item for item in items if item.what == "an epoch of lstm/smnist_128")
    (row,) = item.run()
    assert row["seconds"] == pytest.approx(row["milliseconds a step"] * row["steps"] / 1e3)
    assert row["steps"] > 100


# Nothing of it may be needed.
FOREIGN = "hydra omegaconf wandb rich filelock pydantic annotated_types orjson matplotlib plotly scipy tabulate yaml"
BARE = """
import importlib.machinery, os, runpy, sys

foreign, checkout, out = sys.argv[1].split(), *sys.argv[2:4]

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name == "longwave" or name.partition(".")[0] in foreign
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[:] = [importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter, Finder]
sys.path.insert(0, os.path.join(checkout, "benchmarks"))
sys.argv = [os.path.join(checkout, "benchmarks", "gpu.py"), "--small", "--only", "indrnn", "--out", out]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code
import longwave
from longwave.benchmarks import gpu_check
assert longwave.PACKAGE.name == "checkout", longwave.PACKAGE
for path in (longwave.CONF / "model").glob("*.yaml"):
    importlib.import_module(f"longwave.models.{path.stem}").Config()
(row,) = gpu_check.train_two_steps(gpu_check.torch.device("cpu"), "indrnn", False)
assert row["ok"]
"""


def test_torch_triton_and_a_checkout_of_any_name_are_enough(tmp_path):
    checkout = tmp_path / "checkout"
    hidden = shutil.ignore_patterns(".*", "tests", "docs", "results", "outputs", "__pycache__")
    shutil.copytree(PACKAGE, checkout, ignore=hidden)
    command = [sys.executable, "-c", BARE, FOREIGN, str(checkout), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert all(row["ok"] for row in found["check"]["results"])
    assert len(found["speed"]["results"]) == 3
    # What torch.compile itself needs.
    missing = "ModuleNotFoundError: No module named 'filelock'"
    assert found["speed"]["skipped"] == [{"what": "indrnn compiled", "reason": missing}]
    assert found["train"]["results"] == []
    assert {entry["reason"] for entry in found["train"]["skipped"]} <= {
        f"ModuleNotFoundError: No module named '{name}'" for name in FOREIGN.split()
    }


def test_without_a_card_it_says_how_to_run(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        gpu.main([])
    assert end.value.code == 2
    assert "no CUDA device here; --small runs on the CPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["speeds"])
    assert "'speeds': must be one of check, speed, train" in capsys.readouterr().err
    assert not (home() / "benchmarks" / "gpu.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_operations_and_models(run):
    status, found, printed = run("check", "speed", "--minutes", "60")
    assert status == 0, printed
    assert found["check"]["skipped"] == found["speed"]["skipped"] == []
