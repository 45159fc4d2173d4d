"""What every model promises, whatever its equation."""

import contextlib
import shutil

import pytest
import torch
from torch.utils._pytree import tree_leaves as states

from longwave import kernels
from longwave.kernels import dispatch
from longwave.models import antisymmetric_rnn, cornn, exprnn, gru, indrnn, lem, lstm, rnn, unicornn
from longwave.models.network import Network
from longwave.training.config import choices

COUPLED = {"hidden": 12, "dt": 0.5, "gamma": 1.0, "epsilon": 1.0}
CONFIGS = {
    "cornn": cornn.Config(**COUPLED),
    "cornn separate, implicit": cornn.Config(**COUPLED, parametrisation="separate", damping="implicit"),
    "cornn recurrent, trained": cornn.Config(**COUPLED, parametrisation="recurrent", train_dynamics="unit"),
    "lem": lem.Config(hidden=12),
    "lstm": lstm.Config(hidden=12),
    "lstm chrono": lstm.Config(hidden=12, chrono=6),
    "gru": gru.Config(hidden=12),
    "rnn": rnn.Config(hidden=12),
    "unicornn": unicornn.Config(hidden=12, layers=2, dt=[1.0, 0.5], residual=True),
    "indrnn": indrnn.Config(hidden=12, norm="after", dropout=0.1),
    "indrnn before": indrnn.Config(hidden=12, norm="before"),
    "antisymmetric_rnn": antisymmetric_rnn.Config(hidden=12, epsilon=0.5),
    "antisymmetric_rnn gated": antisymmetric_rnn.Config(hidden=12, epsilon=0.5, gated=True),
    "exprnn": exprnn.Config(hidden=12),
    "dtriv": exprnn.Config(hidden=12, mode="dtriv"),
}
# What their state holds has other shapes: their own files hold them to the same.
OF_THEIR_OWN = {"linoss", "nrde"}


def test_every_model_is_here():
    assert {config.name for config in CONFIGS.values()} | OF_THEIR_OWN == set(choices("model"))


def build(name: str) -> Network:
    torch.manual_seed(0)
    return CONFIGS[name].build(2, 1)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("T", "B"), [(1, 1), (7, 3)])
def test_shapes(name, T, B):
    model = build(name).eval()
    x = torch.randn(T, B, 2)
    sequence, state = model.layer(x)
    assert sequence.shape == (T, B, 12)
    assert all(s.shape == (B, 12) for s in states(state))
    assert torch.equal(states(state)[0], sequence[-1])
    assert model(x).shape == (B, 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_sequence_may_be_cut_and_gone_on_with(name):
    layer = build(name).layer.eval()
    x = torch.randn(12, 3, 2)
    whole, final = layer(x)
    first, state = layer(x[:5])
    second, last = layer(x[5:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    for a, b in zip(states(last), states(final), strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.allclose(layer(x[5:])[0], second)


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_load_across_backends(name, monkeypatch):
    model = build(name).eval()
    x = torch.randn(9, 3, 2)
    assert model.layer.backend() == "cpu"
    expected = model(x)
    torch.manual_seed(1)
    other = CONFIGS[name].build(2, 1).eval()
    assert not torch.allclose(other(x), expected)
    monkeypatch.setattr(dispatch, "_cpu_obstacle", lambda name, dtype: "no compiler")
    other.load_state_dict(model.state_dict())
    assert other.layer.backend() == "reference"
    torch.testing.assert_close(other(x), expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_torch_compile_gives_the_same_loss(name):
    model = build(name)
    x = torch.randn(9, 3, 2)

    def step(function):
        torch.manual_seed(0)
        loss = function(x).square().mean()
        return loss, torch.autograd.grad(loss, list(model.parameters()))

    expected, gradients = step(model)
    torch._dynamo.reset()
    loss, found = step(torch.compile(model, backend="aot_eager"))
    torch.testing.assert_close(loss, expected)
    for a, b in zip(found, gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(not shutil.which("g++"), reason="the default backend of torch.compile needs g++")
@pytest.mark.parametrize("name", sorted({config.name for config in CONFIGS.values()}))
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


@pytest.mark.parametrize("name", CONFIGS)
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


@pytest.mark.parametrize("name", CONFIGS)
def test_autocast_runs_the_recurrence_in_float32(name):
    model = build(name).eval()
    x = torch.randn(9, 3, 2)
    expected, _ = model.layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        sequence, _ = model.layer(x)
    assert sequence.dtype == torch.float32
    assert 0 < (sequence - expected).abs().max() < 0.05


class SaysCuda(torch.Tensor):
    """A CPU tensor that says that it is on CUDA."""

    device = torch.device("cuda")


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_on_cuda_it_is_torchs(name, monkeypatch):
    """The branch, run on a CPU: with its states as here, and no kernel of ours."""
    layer = build(name).layer
    x, before = torch.randn(9, 3, 2), [torch.randn(3, 12) for _ in range(1 + (name == "lstm"))]
    before = tuple(before) if name == "lstm" else before[0]
    expected, final = layer(x, before)
    monkeypatch.delattr(kernels, name)
    sequence, state = layer(x.as_subclass(SaysCuda), before)
    torch.testing.assert_close(sequence.as_subclass(torch.Tensor), expected)
    assert isinstance(state, tuple) == isinstance(final, tuple)
    for a, b in zip(states(state), states(final), strict=True):
        torch.testing.assert_close(a.as_subclass(torch.Tensor), b)


# The stacks learn other problems, in their own files.
@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith(("unicornn", "indrnn"))])
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
