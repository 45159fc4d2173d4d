"""What cannot fit is refused in one line, before it is allocated; what runs out all the same is one line, too."""

import pytest
import torch

from longwave.training import memory, record
from longwave.training.build import build
from longwave.training.config import choices, compose_run
from longwave.training.errors import UserError

SMALL = (
    "task.T=6", "model.hidden=3", "training.batch_size=2", "task.test_samples=10", "training.steps=4",
    "training.target=null",
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("overrides", "needs"),
    [
        # (4 H^2 + 4 H D + 8 H) 16 bytes with Adam's moments, and a batch of 2 x 6 steps of 6 H.
        (["model=lstm", "model.hidden=65536"], "274.9 GB for 17,180,983,297 parameters"),
        (["model=indrnn", "model.hidden=8192", "model.layers=1000"], "GB for 67,"),
        (["task.T=10000000", "model.hidden=1000"], r"for a batch of 2 x 10,000,000 steps"),
        (["training.batch_size=1000000", "task.T=10000"], r"for a batch of 1,000,000 x 10,000 steps"),
    ],
)
def test_what_cannot_fit_is_refused(overrides, needs, fit_here, tmp_path, monkeypatch):
    monkeypatch.setattr("longwave.training.memory.available", lambda device: 8e9)
    with pytest.raises(UserError) as caught:
        fit_here(*SMALL, "recipe=none", *overrides)
    line = str(caught.value)
    assert line.startswith("too large for memory: needs more than ")
    assert " GB, and there are 8.0 GB: " in line
    assert needs in line
    assert len(line.splitlines()) == 1
    assert len(line) < 300
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("model", choices("model"))
@pytest.mark.parametrize("more", [[], ["optimizer=sgd"], ["training.precision=bf16"]])
def test_the_estimate_is_a_lower_bound(model, more):
    chosen = [f"model={model}", "recipe=none", "training.steps=1", "training.batch_size=7", "task.T=40", *more]
    config, _ = compose_run(chosen)
    task, network = build(config)
    least = memory.needed(config, task, CPU)
    assert least.parameters == sum(p.numel() for p in network.parameters())
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    def keep_the_sequence(layer, given, found):
        keep(found[0])

    network.layer.register_forward_hook(keep_the_sequence)
    x = task.batch(0, 7)[0]
    with torch.autograd.graph.saved_tensors_hooks(keep, keep), torch.autocast("cpu", enabled=bool("bf16" in str(more))):
        output = network(x)
    keep(x)
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    bytes_kept = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)
    assert 0 < least.of_batch <= bytes_kept
    optimizer = config.optimizer.build(network)
    output.float().sum().backward()
    optimizer.step()
    moments = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.numel() > 1)
    own = sum(2 * p.nbytes for p in network.parameters())
    # A moment of one number is left out above.
    assert own + moments <= least.of_model <= 1.001 * (own + moments) + 64


@pytest.mark.parametrize(
    "run_out",
    [
        lambda: torch.empty(10**15),
        lambda: torch.empty(2**62, 2**62),
        lambda: bytearray(10**15),
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
    ],
)
def test_running_out_of_memory_is_one_line(run_out, fit_here, monkeypatch, tmp_path):
    monkeypatch.setattr("longwave.training.loop.evaluate", lambda *_: next(run_out()))
    with pytest.raises(UserError, match=r"^out of memory( for [\d.]+ \w+ more)?; choose a smaller model") as caught:
        fit_here(*SMALL)
    assert len(str(caught.value).splitlines()) == 1
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    found = record.read(folder)
    assert (found.status, found.error, found.traceback) == ("failed", f"UserError: {caught.value}", None)


def test_the_data_may_be_too_large():
    with pytest.raises(UserError, match=r"^out of memory"), memory.in_one_line():
        build(compose_run(["task.T=10000000", "task.train_samples=100000000", "training.epochs=null"])[0])


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a bug"), memory.in_one_line():
        raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("own", "limits"),
    [
        # Version 2, also from inside a container, whose path is that of the host.
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "3000\n", "memory.max": "9000\n"}),
        ("0::/nowhere\n", {"memory.max": "3000\n"}),
        ("4:memory:/x\n1:cpu:/\n0::/\n", {"memory/x/memory.limit_in_bytes": "3000\n"}),
        ("4:cpu,memory:/x\n", {"memory/memory.limit_in_bytes": "3000\n"}),
    ],
)
def test_limits_of_control_groups(own, limits, tmp_path):
    (tmp_path / "own").write_text(own)
    for name, limit in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(limit)
    assert min(memory._of_control_groups(tmp_path, tmp_path / "own")) == 3000
    assert list(memory._of_control_groups(tmp_path, tmp_path / "missing")) == []


def test_what_there_is():
    assert 10**8 < memory.available(CPU) < 10**15
