"""What every model promises, whatever its equation; a model is found by its file in conf/model."""

import contextlib
import shutil

import pytest
import torch
from torch.utils._pytree import tree_leaves as states

from longwave import kernels
from longwave.kernels import dispatch
from longwave.models import antisymmetric_rnn, cornn, exprnn, indrnn, linoss, lstm, nrde, unicornn
from longwave.models.network import Network
from longwave.training.config import choices, compose_run

# Beside each model with its defaults, what it may be instead.
VARIANTS = {
    "cornn separate, implicit": cornn.Config(hidden=12, dt=0.5, parametrisation="separate", damping="implicit"),
    "cornn recurrent, trained": cornn.Config(hidden=12, dt=0.5, parametrisation="recurrent", train_dynamics="unit"),
    "lstm chrono": lstm.Config(hidden=12, chrono=6),
    "unicornn residual": unicornn.Config(hidden=12, layers=2, dt=[1.0, 0.5], residual=True),
    "unicornn deviation": unicornn.Config(hidden=12, layers=2, dt=1.0, output="deviation", dropout=0),
    "indrnn after": indrnn.Config(hidden=12, norm="after", dropout=0.1),
    "indrnn before": indrnn.Config(hidden=12, norm="before"),
    "antisymmetric_rnn gated": antisymmetric_rnn.Config(hidden=12, epsilon=0.5, gated=True),
    "dtriv": exprnn.Config(hidden=12, mode="dtriv"),
    "linoss imex, last": linoss.Config(hidden=12, state=3, discretisation="imex", pooling="last"),
    "nrde adjoint": nrde.Config(hidden=12, adjoint=True, solver="heun"),
}
NAMES = [*choices("model"), *VARIANTS]
# Dynamics that get somewhere in few steps, where the defaults do not.
SETTINGS = {"cornn": ["model.dt=0.5"], "unicornn": ["model.dt=1"], "antisymmetric_rnn": ["model.epsilon=0.5"]}


def build(name: str, seed: int = 0) -> Network:
    """A model with 2 inputs, 12 units and 1 output."""
    if name in VARIANTS:
        config = VARIANTS[name]
    else:
        overrides = ["task=adding", "recipe=none", "training.steps=1", "model.hidden=12", *SETTINGS.get(name, [])]
        config = compose_run([f"model={name}", *overrides])[0].model
    torch.manual_seed(seed)
    return config.build(2, 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("T", "B"), [(1, 1), (7, 3)])
def test_shapes(name, T, B):
    model = build(name).eval()
    x = torch.randn(T, B, 2)
    sequence, state = model.layer(x)
    assert sequence.shape == (T, B, 12)
    assert model(x).shape == (B, 1)
    # The state begins with what is read at the end.
    torch.testing.assert_close(states(state)[0], model.layer.ends(sequence, torch.full((B,), T)))


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_on_one_step_of_one_sample(name):
    """The last batch of an epoch may have one sample, whose statistics have no variance."""
    model = build(name).train()
    model(torch.randn(1, 1, 2)).sum().backward()
    assert all(p.isfinite().all() and (p.grad is None or p.grad.isfinite().all()) for p in model.parameters())
    assert all(buffer.isfinite().all() for buffer in model.buffers())


@pytest.mark.parametrize("name", NAMES)
def test_a_sequence_may_be_given_in_parts(name):
    layer = build(name).layer.eval()
    x = torch.randn(12, 3, 2)
    whole, final = layer(x)
    first, state = layer(x[:5])
    second, last = layer(x[5:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    for a, b in zip(states(last), states(final), strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.allclose(layer(x[5:])[0], second)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_steps_give_the_sequence(name, batch_first):
    layer = build(name).layer.eval()
    layer.batch_first = batch_first
    x = torch.randn(3, 9, 2) if batch_first else torch.randn(9, 3, 2)
    whole, final = layer(x)
    outputs, state = [], None
    for step in x.unbind(int(batch_first)):
        output, state = layer.step(step, state)
        outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs, int(batch_first)), whole)
    for a, b in zip(states(state), states(final), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_batch_first(name):
    model = build(name).eval()
    layer, x = model.layer, torch.randn(9, 3, 2)
    lengths = torch.tensor([9, 4, 1])
    sequence, state = layer(x)
    ends, theory = layer.ends(sequence, lengths), layer.theory(x)
    layer.batch_first = True
    other, last = layer(x.transpose(0, 1))
    assert torch.equal(other, sequence.transpose(0, 1))
    assert all(torch.equal(a, b) for a, b in zip(states(last), states(state), strict=True))
    assert torch.equal(layer.ends(other, lengths), ends)
    assert layer.theory(x.transpose(0, 1)) == theory


@pytest.mark.parametrize("name", NAMES)
def test_weights_load_across_backends(name, monkeypatch):
    model, other = build(name).eval(), build(name, seed=1).eval()
    if model.layer.backend != "cpu":
        pytest.skip("it has no C kernel")
    x = torch.randn(9, 3, 2)
    expected = model(x)
    assert not torch.allclose(other(x), expected)
    monkeypatch.setattr(dispatch, "_cpu_obstacle", lambda name, dtype: "no compiler")
    other.load_state_dict(model.state_dict())
    assert other.layer.backend in ("reference", "scan")
    torch.testing.assert_close(other(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_torch_compile_gives_the_same_loss(name):
    model = build(name)
    x = torch.randn(9, 3, 2)

    def step(function):
        torch.manual_seed(0)
        loss = function(x).square().mean()
        return loss, torch.autograd.grad(loss, list(model.parameters()))

    expected, gradients = step(model)
    # Again from the same running means.
    model = build(name)
    torch._dynamo.reset()
    loss, found = step(torch.compile(model, backend="aot_eager"))
    torch.testing.assert_close(loss, expected)
    for a, b in zip(found, gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="the default backend of torch.compile needs g++")
@pytest.mark.parametrize("name", choices("model"))
def test_torch_compile_as_a_user_calls_it(name):
    """With the default backend, which compiles C++: some seconds each."""
    # Dropout draws otherwise there.
    model = build(name).eval()
    x = torch.randn(9, 3, 2)
    parameters = list(model.parameters())
    expected = model(x).square().mean()
    gradients = torch.autograd.grad(expected, parameters)
    torch._dynamo.reset()
    loss = torch.compile(model)(x).square().mean()
    torch.testing.assert_close(loss, expected)
    for a, b in zip(torch.autograd.grad(loss, parameters), gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_moves_to_another_device_whole(name, monkeypatch):
    """The other device is meta: it computes shapes, and refuses whatever was left behind."""
    # There is none there.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    model = build(name).eval()
    kept = {key: value.shape for key, value in model.state_dict().items()}
    moved = build(name).eval().to("meta")
    assert {key: value.shape for key, value in moved.state_dict().items()} == kept
    assert all(tensor.is_meta for tensor in [*moved.parameters(), *moved.buffers()])
    assert moved(torch.randn(9, 3, 2, device="meta")).shape == (3, 1)


# LinOSS has a readout in bfloat16 behind each recurrence: see its own file.
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("linoss")])
def test_autocast_runs_the_recurrence_in_float32(name):
    model = build(name).eval()
    x = torch.randn(9, 3, 2)
    expected, _ = model.layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        sequence, _ = model.layer(x)
    assert (sequence - expected).abs().max() < 0.05
    # What torch computes by itself is in the type that it chooses.
    if model.layer.backend != "torch":
        assert sequence.dtype == torch.float32
        assert not torch.equal(sequence, expected)


class SaysCuda(torch.Tensor):
    """A CPU tensor that says that it is on CUDA."""

    device = torch.device("cuda")


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_on_cuda_it_is_torchs(name, batch_first, monkeypatch):
    """The branch, run on a CPU: with its states as here, and no kernel of ours."""
    layer = build(name).layer
    layer.batch_first = batch_first
    x, before = torch.randn(9, 3, 2), [torch.randn(3, 12) for _ in range(1 + (name == "lstm"))]
    before = tuple(before) if name == "lstm" else before[0]
    x = x.transpose(0, 1).contiguous() if batch_first else x
    expected, final = layer(x, before)
    monkeypatch.delattr(kernels, name)
    sequence, state = layer(x.as_subclass(SaysCuda), before)
    torch.testing.assert_close(sequence.as_subclass(torch.Tensor), expected)
    assert isinstance(state, tuple) == isinstance(final, tuple)
    for a, b in zip(states(state), states(final), strict=True):
        torch.testing.assert_close(a.as_subclass(torch.Tensor), b)


# They learn other problems, in their own files.
STACKS = ("unicornn", "indrnn", "linoss", "nrde")


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(STACKS)])
def test_learns(name):
    """Recalls the first of five numbers N(0, 1), in 120 steps to below 0.1; whoever says 0 has 1."""
    model = build(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    x, losses = torch.randn(5, 64, 2), []
    for _ in range(120):
        loss = (model(x)[:, 0] - x[0, :, 0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.7
    assert max(losses[-5:]) < 0.1
