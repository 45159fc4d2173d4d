"""W&B offline, read back from the files that it writes; online, from what it is told."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from PIL import Image

from longwave.training import loop, tracking
from longwave.training.config import compose_run
from longwave.training.errors import Interrupted, Pruned, UserError
from tests.stand_ins import SHORT
from tests.wandb_server import wandb_server

SMALL = (
    "task=adding", "task.T=6", "model.hidden=3", "training.batch_size=2", "task.test_samples=10", "training.steps=6",
    "training.log_every=1", "training.evaluate_every=2", "training.target=null",
)  # fmt: skip


def records(path):
    """The records of a ``.wandb`` file: LevelDB's log format, blocks of 32 KiB after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if position + 7 + length > len(data):
            return  # the rest of it is not written yet
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        # 1 is a whole record, 2, 3, 4 its first, middle and last part.
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def read(folder):
    """What a dashboard would show of one offline run."""
    (path,) = folder.glob("*.wandb")
    # W&B's process writes the end of the file after it has answered.
    deadline = time.monotonic() + 3
    while (found := _read(path)).exit is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _read(path):
    found = SimpleNamespace(history=[], summary={}, config={}, metrics={}, artifacts=[], exit=None, preempting=False)
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            found.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        elif kind == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            entry = {key: value for key, value in items.items() if not key.startswith("_")}
            found.history.append({"step": record.history.step.num or items["_step"], **entry})
        elif kind == "summary":
            for item in record.summary.update:
                found.summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        elif kind == "metric":
            found.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
        elif kind == "preempting":
            found.preempting = True
        elif kind == "exit":
            found.exit = record.exit.exit_code
    return found


def as_shown(history, metric="test/mse"):
    """The history as W&B has it: the metric stands first in the order of the names, which is W&B's."""
    return [{key if key in ("step", metric) else f"watch/{key}": line[key] for key in line} for line in history]


def read_history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def offline_runs(output):
    return sorted((output / "wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_mtime_ns)


@pytest.fixture
def track_here(fit_here, tmp_path, monkeypatch):
    """Trains in this process with W&B as it is without an account; gives the folder of the run."""
    for name in [name for name in os.environ if name.startswith("WANDB") and name != "WANDB_SERVICE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: fit_here(*arguments, "tracking=wandb")[1]


def test_offline_without_an_account(track_here, tmp_path, caplog):
    caplog.set_level("INFO")
    kept = [track_here(*SMALL, "recipe=cornn/adding_paper", f"seed={seed}") for seed in (0, 1)]
    assert "wandb leet" in caplog.text
    assert not [entry for entry in caplog.records if entry.levelname == "WARNING"]
    folders = offline_runs(tmp_path / "outputs")
    assert len(folders) == 2
    assert f"wandb sync {tmp_path / 'outputs' / 'wandb'}" in caplog.text
    # Lists show the beginning of a name only.
    assert [folder.name[28:40] for folder in folders] == ["T6-cornn-s0-", "T6-cornn-s1-"]
    shown = [read(folder) for folder in folders]
    assert [s.run.display_name for s in shown] == ["T6-cornn-s0-adding-h3", "T6-cornn-s1-adding-h3"]
    assert shown[0].run.run_id != shown[1].run.run_id
    # The group is everything but the seed.
    assert shown[0].run.run_group == shown[1].run.run_group != ""
    one = shown[1]
    assert (one.run.project, one.run.job_type, list(one.run.tags)) == ("longwave", "train", ["cornn", "adding"])
    assert one.config["model"]["hidden"] == 3
    assert one.config["recipe"] == "cornn/adding_paper"
    assert one.exit == 0
    folder = kept[1]
    assert one.history == as_shown(read_history(folder))
    assert min(set().union(*one.history) - {"step"}) == "test/mse"
    assert min(key for key in one.summary if not key.startswith("_")) == "final/test/mse"
    assert one.metrics["test/mse"].summary.min
    record = json.loads((folder / "record.json").read_text())
    assert one.summary["run/status"] == "finished"
    assert one.summary["final/test/mse"] == record["metrics"]["test"]["mse"]
    assert one.summary["published/key"] == "cornn/adding"
    # A curve is all that the paper has of it.
    assert one.summary["verdict"] == "no published number"
    assert one.artifacts == []
    assert one.summary["run/parameters"] == record["parameters"]
    assert not (tmp_path / "wandb").exists()


def test_a_resumed_run_is_linked_to_the_one_before(track_here, tmp_path, monkeypatch):
    arguments = (*SMALL, "training.steps=150", "training.checkpoint_seconds=0")
    train_step = loop.Trainer.train_step

    def stopped(trainer):
        if trainer.state.step == 70:
            os.kill(os.getpid(), signal.SIGTERM)
        train_step(trainer)

    with monkeypatch.context() as m:
        m.setattr(loop.Trainer, "train_step", stopped)
        with pytest.raises(Interrupted):
            track_here(*arguments)
    track_here(*arguments)
    first, second = (read(folder) for folder in offline_runs(tmp_path / "outputs"))
    assert (first.exit, first.preempting) == (143, True)
    assert first.summary["run/status"] == "interrupted"
    assert (second.exit, second.preempting) == (0, False)
    assert second.config["resumed_from"] == first.run.run_id
    assert second.run.run_id == f"{first.run.run_id}-2"
    assert second.run.run_group == first.run.run_group
    # Together they are the whole history, each step once.
    steps = [entry["step"] for entry in first.history + second.history]
    assert steps == list(range(1, 151))


def test_a_failed_run_is_shown_as_failed(track_here, tmp_path):
    with pytest.raises(UserError, match=r"^the "):
        track_here(*SMALL, "optimizer=sgd", "optimizer.lr=1000", "training.clip_norm=null")
    (folder,) = offline_runs(tmp_path / "outputs")
    shown = read(folder)
    assert (shown.exit, shown.preempting) == (1, False)
    assert shown.summary["run/status"] == "failed"


def test_artifacts(track_here, tmp_path, caplog):
    arguments = (*SMALL, "recipe=lem/adding", "model=lem", "tracking.artifacts=true")
    kept = [track_here(*arguments, f"seed={seed}") for seed in (0, 1)]
    assert not [entry for entry in caplog.records if entry.levelname == "WARNING"]
    first, second = (read(folder) for folder in offline_runs(tmp_path / "outputs"))
    assert first.summary["published/value"] == 5.3e-5
    assert first.summary["verdict"].startswith("other protocol (")
    checkpoint, data = first.artifacts
    assert (checkpoint.type, data.type, data.name) == ("model", "dataset", "adding-data")
    assert [entry.path for entry in checkpoint.manifest.contents] == ["checkpoint.pt"]
    assert checkpoint.manifest.contents[0].size == (kept[0] / "checkpoint.pt").stat().st_size
    assert checkpoint.name != second.artifacts[0].name
    # The same data are the same artifact, whoever was trained on them; the files themselves are not in it.
    assert [entry.path for entry in data.manifest.contents] == ["data.json"]
    assert data.digest == second.artifacts[1].digest
    record = json.loads((kept[0] / "record.json").read_text())
    assert json.loads(data.metadata) == record["data"]


def test_what_shows_a_run_does_not_end_it(fit_here, monkeypatch, caplog):
    import wandb

    run = FakeRun(logged=0)
    run.resumed, run.sync_dir = False, "somewhere"

    def dead(entry, step):
        raise BrokenPipeError("the helper process is gone")

    run.log = dead
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    _, folder = fit_here(*SMALL, "tracking=wandb", "tracking.mode=offline")
    assert json.loads((folder / "record.json").read_text())["status"] == "finished"
    assert caplog.text.count("W&B failed (BrokenPipeError: the helper process is gone)") == 1


def test_none_writes_nothing(fit_here, tmp_path, caplog):
    caplog.set_level("INFO")
    fit_here(*SMALL, "tracking=none")
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["runs"]
    assert caplog.text
    assert "W&B" not in caplog.text


def test_online_that_cannot_be_reached(fit_here, monkeypatch, caplog):
    import wandb

    modes = []

    def unreachable(**arguments):
        modes.append(arguments["mode"])
        if arguments["mode"] == "online":
            raise wandb.errors.CommError("no network")
        fake = FakeRun(logged=0)
        fake.resumed, fake.sync_dir = False, "somewhere"
        return fake

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", unreachable)
    monkeypatch.setattr(tracking, "_retry_at", 0.0)
    fit_here(*SMALL, "tracking=wandb")
    assert modes == ["online", "offline"]
    assert "W&B cannot be reached (no network); logging offline" in caplog.text
    with pytest.raises(UserError, match=r"W&B cannot start \(tracking\.mode=online\): no network"):
        fit_here(*SMALL, "tracking=wandb", "tracking.mode=online", "seed=1")
    monkeypatch.setenv("WANDB_MODE", "garbage")
    with pytest.raises(UserError, match=r"WANDB_MODE=garbage: must be one of online, offline, disabled"):
        fit_here(*SMALL, "tracking=wandb", "seed=2")


class FakeRun:
    """Remembers what it is told, as a W&B run that had logged up to ``logged`` before its process died."""

    url, resumed = "https://wandb.example/run", True

    def __init__(self, logged):
        self.summary, self.entries, self.metrics, self.finished = {}, [], [], None
        self.starting_step = logged + 1

    def define_metric(self, *arguments, **options):
        self.metrics.append((arguments, options))

    def log(self, entry, step):
        self.entries.append({"step": step, **entry})

    def finish(self, exit_code=0):
        self.finished = exit_code


def test_online_a_resumed_run_goes_on_and_no_step_is_shown_twice(fit_here, monkeypatch):
    import wandb

    told, run = {}, FakeRun(logged=4)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", lambda **arguments: told.update(arguments) or run)
    _, folder = fit_here(*SMALL, "tracking=wandb", "tracking.entity=us", "tracking.tags=[mine]")
    assert (told["mode"], told["resume"], told["entity"]) == ("online", "allow", "us")
    assert told["tags"] == ["cornn", "adding", "mine"]
    assert told["id"] == (folder / "wandb_id").read_text()
    assert [entry["step"] for entry in run.entries] == [5, 6]
    assert run.finished == 0


def test_gradients_are_curves_and_a_picture(fit_here, monkeypatch):
    import wandb

    run = FakeRun(logged=0)
    run.resumed, run.sync_dir = False, "somewhere"
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    _, folder = fit_here(*SMALL, "tracking=wandb", "tracking.mode=offline", "diagnostics=gradients")
    assert [entry["step"] for entry in run.entries if "watch/gradients/lag_5" in entry] == [0, 2, 4, 6]
    assert run.entries[-1].keys() == {"watch/gradients", "step"}
    assert run.entries[-1]["step"] == 6
    with Image.open(folder / "gradients.png") as drawn:
        assert run.entries[-1]["watch/gradients"].image.tobytes() == drawn.tobytes()


def test_a_confusion_matrix_is_a_picture(fit_here, monkeypatch, tmp_path):
    import wandb

    told, run = {}, FakeRun(logged=0)
    run.resumed, run.sync_dir = False, "somewhere"
    monkeypatch.setattr(wandb, "init", lambda **arguments: told.update(arguments) or run)
    data = ["task=files", *SHORT["files"], "task.title=of mine/2", "task.folds=5", "task.fold=2"]
    small = ["model=cornn", "model.hidden=4", "training.steps=2", "tracking=wandb", "tracking.mode=offline"]
    _, folder = fit_here(*data, *small)
    assert told["name"] == "of_mine_2-cornn-s0-f2-files-h4"
    assert run.entries[-1].keys() == {"watch/confusion", "step"}
    with Image.open(folder / "confusion.png") as drawn:
        assert run.entries[-1]["watch/confusion"].image.tobytes() == drawn.tobytes()
    assert run.summary["final/test/auroc"] >= 0


@pytest.mark.parametrize(("mode", "environment", "expected"), [
    ("offline", "online", "offline"), ("auto", "offline", "offline"), ("online", "offline", "online"),
])  # fmt: skip
def test_mode(mode, environment, expected, fit_here, monkeypatch):
    import wandb

    told = {}
    fake = FakeRun(logged=0)
    fake.sync_dir = "somewhere"
    monkeypatch.setenv("WANDB_MODE", environment)
    monkeypatch.setattr(wandb, "init", lambda **arguments: told.update(arguments) or fake)
    fit_here(*SMALL, "tracking=wandb", f"tracking.mode={mode}")
    assert told["mode"] == expected


@pytest.mark.parametrize(("overrides", "expected"), [
    (("model=cornn", "task=adding", "task.T=500"), "T500-cornn-s0-adding-h128"),
    (("model=lem", "task=smnist", "seed=3"), "smnist-lem-s3-h128"),
    (("model=lem", "task=uea", "task.dataset=Heartbeat", "training.steps=1"), "Heartbeat-lem-s0-uea-h128"),
])  # fmt: skip
def test_a_name_begins_with_what_differs(overrides, expected):
    config, _ = compose_run(list(overrides))
    record = SimpleNamespace(model=config.model.name, task=config.task.name, seed=config.seed, config=config.as_dict())
    assert tracking._title(SimpleNamespace(record=record)) == expected


def test_a_pruned_run_is_not_failed(track_here, tmp_path, monkeypatch):
    def pruned(trainer):
        raise Pruned("others were better")

    monkeypatch.setattr(loop.Trainer, "train_step", pruned)
    with pytest.raises(Pruned):
        track_here(*SMALL)
    (folder,) = offline_runs(tmp_path / "outputs")
    shown = read(folder)
    assert shown.preempting
    assert shown.exit != 0


def test_a_service_that_does_not_start_does_not_stop_a_run(track_here, tmp_path, monkeypatch, caplog):
    import wandb

    init, modes = wandb.init, []

    def broken(**arguments):
        modes.append(arguments["mode"])
        if arguments["mode"] != "disabled":
            raise OSError("no such file: wandb-core")
        return init(**arguments)

    monkeypatch.setattr(wandb, "init", broken)
    folder = track_here(*SMALL)
    assert modes == ["offline", "disabled"]
    assert json.loads((folder / "record.json").read_text())["status"] == "finished"
    assert caplog.text.count("W&B cannot start (no such file: wandb-core); the run continues without it") == 1


@pytest.fixture
def logged_in(track_here, monkeypatch):
    """Trains in this process with the real client, logged in at the server of an address; waits are short."""
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(tracking, "INIT_SECONDS", 2)
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 3)
    monkeypatch.setattr(tracking, "_retry_at", 0.0)

    def call(url, *arguments):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        return track_here(*SMALL, *arguments)

    yield call
    wandb.teardown()


def client_of(server):
    return {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "f" * 40, "NO_PROXY": "127.0.0.1"}


def upload(server, *arguments):
    environment = os.environ | client_of(server) | {"WANDB_ERROR_REPORTING": "false"}
    subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *map(str, arguments)], env=environment, check=True, timeout=60
    )


def assert_kept_offline(output, *folders):
    """Of each run there is one offline copy, whole, and nothing of the attempt to log it online."""
    kept = offline_runs(output)
    assert len(kept) == len(folders) == len(list((output / "wandb").glob("*run-*-*")))
    for shown, folder in zip(map(read, kept), folders, strict=True):
        assert json.loads((folder / "record.json").read_text())["status"] == "finished"
        assert shown.history == as_shown(read_history(folder))
        assert shown.exit == 0
        assert shown.run.run_id == (folder / "wandb_id").read_text()


def test_refused_connections_are_waited_for_once(logged_in, tmp_path, caplog):
    with wandb_server() as server:
        pass
    folders = [logged_in(server.url, f"seed={seed}") for seed in (0, 1)]
    assert caplog.text.count("W&B cannot be reached") == 1
    assert_kept_offline(tmp_path / "outputs", *folders)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["stall", "500", "drop", "deny"])
def test_a_process_that_finds_the_server_broken(fault, train_process):
    with wandb_server(fault) as server:
        began = time.monotonic()
        done = train_process.run(*SMALL, "tracking=wandb", **client_of(server))
        # 5 s are the client's own, for the login.
        assert time.monotonic() - began < tracking.INIT_SECONDS + 30
    assert done.returncode == 0, done.stdout
    assert "logging offline" in done.stdout
    assert "Traceback" not in done.stdout
    assert_kept_offline(train_process.output, *train_process.runs())


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["stall", "500", "drop", "refuse"])
def test_a_server_that_breaks_in_mid_run(fault, logged_in, tmp_path, monkeypatch, caplog):
    train_step = loop.Trainer.train_step
    with wandb_server() as server:

        def breaks(trainer):
            if trainer.state.step == 3:
                server.fault = fault
                if fault == "refuse":
                    server.close()
            train_step(trainer)

        monkeypatch.setattr(loop.Trainer, "train_step", breaks)
        began = time.monotonic()
        folder = logged_in(server.url)
        assert time.monotonic() - began < tracking.FINISH_SECONDS + 10
        assert server.runs
    assert json.loads((folder / "record.json").read_text())["status"] == "finished"
    (kept,) = (tmp_path / "outputs" / "wandb").glob("run-*-*")
    assert f"`wandb sync --include-online {kept}`" in caplog.text
    assert read(kept).history == as_shown(read_history(folder))
    with wandb_server() as server:
        upload(server, "--include-online", kept)
        assert len(server.history) == len(read_history(folder))


@pytest.mark.slow
def test_online_and_an_interrupted_run_is_preempted(logged_in, monkeypatch, caplog):
    caplog.set_level("INFO")
    train_step = loop.Trainer.train_step

    def stopped(trainer):
        if trainer.state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        train_step(trainer)

    with wandb_server() as server:
        with monkeypatch.context() as m:
            m.setattr(loop.Trainer, "train_step", stopped)
            with pytest.raises(Interrupted):
                logged_in(server.url)
        assert server.exits == [143]
        assert server.preempted
        folder = logged_in(server.url)
        assert server.exits == [143, 0]
        assert {told["name"] for told in server.runs} == {(folder / "wandb_id").read_text()}
        assert f"W&B: {server.url}" in caplog.text
    shown = [{key: value for key, value in entry.items() if not key.startswith("_")} for entry in server.history]
    history = as_shown(read_history(folder))
    assert [{"step": line["_step"], **entry} for line, entry in zip(server.history, shown, strict=True)] == history


@pytest.mark.slow
def test_one_command_uploads_all_offline_runs(track_here, tmp_path):
    folders = [track_here(*SMALL, f"seed={seed}") for seed in (0, 1)]
    with wandb_server() as server:
        for expected in (2, 0):
            before = len(server.exits)
            upload(server, tmp_path / "outputs" / "wandb")
            assert len(server.exits) - before == expected
        assert {told["name"] for told in server.runs} == {(folder / "wandb_id").read_text() for folder in folders}
        assert len(server.history) == sum(len(read_history(folder)) for folder in folders)
