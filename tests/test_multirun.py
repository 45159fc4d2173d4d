"""A grid on Hydra's launchers: every job a run of its own, one failure does not stop the others."""

import importlib.util
import json

import pytest

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


def test_the_objective_is_returned_to_sweepers(fit_here):
    objective, folder = fit_here(*SMALL[:-1])
    record = json.loads((folder / "record.json").read_text())
    assert objective == record["objective"]["value"]
    again, _ = fit_here(*SMALL[:-1])
    assert again == objective
