"""A grid on Hydra's launchers: every job a run of its own, one failure does not stop the others."""

import importlib.util
import json
import logging
import re
import sys

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra

from longwave import PACKAGE, train
from longwave.training import progress
from longwave.training.command import parse

SMALL = (
    "task=adding", "task.T=6", "task.test_samples=10", "model.hidden=3", "training.batch_size=2", "training.steps=4",
    "training.target=null", "tracking=none",
)  # fmt: skip

LAUNCHERS = {
    "basic": ((), None),
    "joblib": (("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), "hydra_plugins.hydra_joblib_launcher"),
    "submitit_local": (("hydra/launcher=submitit_local",), "hydra_plugins.hydra_submitit_launcher"),
    "ray": (("hydra/launcher=ray",), "hydra_plugins.hydra_ray_launcher"),
}


def installed(module: str | None) -> bool:
    try:
        return module is None or importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


# Workers of a launcher of its own are processes that import everything once more.
@pytest.fixture(
    params=["basic", *(pytest.param(name, marks=pytest.mark.slow) for name in LAUNCHERS if name != "basic")]
)
def launcher(request) -> tuple[str, ...]:
    overrides, module = LAUNCHERS[request.param]
    if not installed(module):
        pytest.skip(f"{module} is not installed: pip install -e .[{request.param.split('_')[0]}]")
    return overrides


def test_a_grid(launcher, train_process):
    done = train_process.run("-m", "model=cornn,lstm", "seed=0,1", *SMALL, *launcher)
    assert done.returncode == 0, done.stdout
    names = ["-".join(folder.name.split("-")[:3]) for folder in train_process.runs()]
    assert names == ["cornn-adding-seed0", "cornn-adding-seed1", "lstm-adding-seed0", "lstm-adding-seed1"]
    records = [json.loads((folder / "record.json").read_text()) for folder in train_process.runs()]
    assert {record["status"] for record in records} == {"finished"}
    assert records[0]["command"].startswith("python train.py ")
    assert "model=cornn" in records[0]["command"]
    # The table, last, and the comparison of its rows.
    _, told, shown = done.stdout.partition("adding, T = 6: mse")
    assert told
    shown, told, compared = shown.partition("Compared")
    assert told
    for part in (shown, compared):
        # Ray passes on what its workers print, each line behind their name, even below the table.
        rows = re.findall(r"^(\w+/adding) ", part, re.MULTILINE)
        assert rows == ["cornn/adding", "lstm/adding"]
    assert shown.count("(2)") == 2


def test_one_failure_does_not_stop_the_others_and_is_told(launcher, train_process):
    sgd = "optimizer=sgd", "training.clip_norm=null"
    done = train_process.run("-m", "optimizer.lr=0.01,1000,0.02", *sgd, *SMALL, *launcher)
    assert done.returncode == 1
    assert "error: the " in done.stdout
    assert "Traceback" not in done.stdout
    if not launcher:
        assert "job 1 failed: the " in done.stdout
    statuses = {}
    for folder in train_process.runs():
        record = json.loads((folder / "record.json").read_text())
        statuses[record["config"]["optimizer"]["lr"]] = record["status"]
    assert statuses == {0.01: "finished", 1000: "failed", 0.02: "finished"}
    # The table has those that finished.
    shown = done.stdout.rpartition("adding, T = 6: mse")[2]
    assert ("optimizer.lr=0.01" in shown, "optimizer.lr=1000" in shown) == (True, False)


@pytest.fixture
def train_here(tmp_path, monkeypatch):
    """``train.py`` in this process: ``train_here("-m", ...)``."""

    def call(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [str(PACKAGE / "train.py"), f"output={tmp_path}", *arguments])
        monkeypatch.setattr(BasicSweeper, "validate_batch_is_legal", BasicSweeper.validate_batch_is_legal)
        GlobalHydra.instance().clear()
        train.main()

    yield call
    GlobalHydra.instance().clear()
    handlers = logging.getLogger().handlers
    for handler in [handler for handler in handlers if isinstance(handler, progress.ConsoleHandler)]:
        logging.getLogger().removeHandler(handler)


def test_no_job_is_composed_more_often_than_needed(train_here, compositions, monkeypatch):
    monkeypatch.setattr(train, "train", lambda *_: 0.0)
    train_here("-m", "model=cornn,lstm", "seed=0,1,2,3,4", *SMALL)
    # The launcher's of each job, Hydra's two of its own, and one of each model to check the command line.
    assert len(compositions) == 10 + 2 + 2


def test_the_table_of_a_multirun_has_its_runs_alone(train_here, capsys):
    train_here("-m", "model=lstm", "seed=0", *SMALL)
    capsys.readouterr()
    # One of them is finished already, and one is asked for twice.
    train_here("-m", "model=cornn", "seed=1,0,1", *SMALL)
    shown = capsys.readouterr().out.rpartition("adding, T = 6: mse")[2]
    (line,) = [line for line in shown.partition("Compared")[0].splitlines() if "/adding " in line]
    assert line.startswith("cornn/adding ")
    assert "(2)" in line
    train_here("-m", "model=cornn,lstm", "seed=0", *SMALL)
    shown = capsys.readouterr().out.rpartition("adding, T = 6: mse")[2].partition("Compared")[0]
    assert [line.split()[0] for line in shown.splitlines() if "/adding " in line] == ["cornn/adding", "lstm/adding"]


def test_what_hydra_shows_has_no_table():
    asked = ("-m", "seed=0,1", *SMALL)
    assert [config.seed for config in parse(asked).configs] == [0, 1]
    assert not parse([*asked, "--cfg", "job"]).configs
    assert not parse(SMALL).configs
    # The seeds that a sweeper chooses are not known.
    assert not parse(["-m", "seed=0,1", "optimizer.lr=interval(0.1,0.2)", *SMALL]).configs


def test_the_objective_is_returned_to_sweepers(fit_here):
    objective, folder = fit_here(*SMALL[:-1])
    record = json.loads((folder / "record.json").read_text())
    assert objective == record["objective"]["value"]
    again, _ = fit_here(*SMALL[:-1])
    assert again == objective
