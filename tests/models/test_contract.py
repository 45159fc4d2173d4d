"""What every model promises, whatever its equation; a model is found by its file in conf/model."""

import contextlib
import functools
import shutil

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, unpack_sequence
from torch.utils._pytree import tree_leaves as states

from longwave import kernels
from longwave.kernels import dispatch
from longwave.models import antisymmetric_rnn, cornn, exprnn, indrnn, lem, linoss, lstm, nrde, unicornn
from longwave.models.layer import Layer
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
    # The first of two inputs is the time, which goes back where it is random.
    "cornn irregular": cornn.Config(hidden=12, dt=0.5, spacing=1.0),
    "lem irregular": lem.Config(hidden=12, spacing=1.0),
    "unicornn irregular": unicornn.Config(hidden=12, layers=2, dt=1.0, residual=True, spacing=1.0),
    "unicornn deviation, irregular": unicornn.Config(hidden=12, layers=2, output="deviation", dropout=0, spacing=1.0),
    "linoss irregular": linoss.Config(hidden=12, state=3, spacing=1.0),
}
NAMES = [*choices("model"), *VARIANTS]
# Dynamics that get somewhere in few steps, where the defaults do not.
SETTINGS = {"cornn": ["model.dt=0.5"], "unicornn": ["model.dt=1"], "antisymmetric_rnn": ["model.epsilon=0.5"]}


def build(name: str, seed: int = 0, inputs: int = 2) -> Network:
    """A model with 12 units and 1 output."""
    torch.manual_seed(seed)
    return (VARIANTS[name] if name in VARIANTS else config_of(name)).build(inputs, 1)


@functools.cache
def config_of(name: str):
    overrides = ["task=adding", "recipe=none", "training.steps=1", "model.hidden=12", *SETTINGS.get(name, [])]
    return compose_run([f"model={name}", *overrides])[0].model


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


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_one_sequence_without_a_batch(name, batch_first):
    layer = build(name).layer.eval().double()
    layer.batch_first = batch_first
    x = torch.randn(9, 2, dtype=torch.float64)
    expected, final = layer(x.unsqueeze(1 - batch_first))
    first, state = layer(x[:4])
    second, state = layer(x[4:], state)
    assert first.shape == (4, 12)
    torch.testing.assert_close(torch.cat([first, second]), expected.squeeze(1 - batch_first))
    for a, b in zip(states(state), states(final), strict=True):
        torch.testing.assert_close(a, b.squeeze(0))
    torch.testing.assert_close(layer.step(x[0])[0], first[0])


def test_a_sequence_of_another_shape_is_refused():
    for shape in ((3,), (1, 2, 3, 2)):
        with pytest.raises(ValueError, match=r"^x must be \(T, B, D\), or \(T, D\) for one sequence, got "):
            build("lem").layer(torch.randn(shape))


@pytest.mark.parametrize("lengths", [[4, 7, 1, 7, 2], [5], [3, 3], [6, 1, 1]], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_packed_sequence_is_each_sequence_alone(name, lengths):
    """Outputs, final states and gradients; and from these states once more."""
    layer = build(name).layer.eval().double()
    sequences = [torch.randn(n, 2, dtype=torch.float64, requires_grad=True) for n in lengths]
    batch = pack_sequence(sequences, enforce_sorted=False)
    first, state = layer(batch)
    second, final = layer(batch, state)
    found = zip(unpack_sequence(first), unpack_sequence(second), strict=True)
    losses = [torch.stack([a.square().sum() + b.square().sum() for a, b in found]).sum(), 0.0]
    for number, (x, a, b) in enumerate(zip(sequences, unpack_sequence(first), unpack_sequence(second), strict=True)):
        expected, alone = layer(x.unsqueeze(1))
        torch.testing.assert_close(a, expected.squeeze(1))
        again, last = layer(x.unsqueeze(1), alone)
        torch.testing.assert_close(b, again.squeeze(1))
        for one, whole in ((alone, state), (last, final)):
            for part, parts in zip(states(one), states(whole), strict=True):
                torch.testing.assert_close(parts[number], part[0] if part.dim() else part.view(1))
        losses[1] = losses[1] + expected.square().sum() + again.square().sum()
    leaves = [p for p in [*layer.parameters(), *sequences] if p.requires_grad]
    gradients = [torch.autograd.grad(loss, leaves, allow_unused=True) for loss in losses]
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_a_packed_batch_of_one_length_trains_as_a_padded_one(name):
    """With the same masks, statistics and running means."""
    layer, other = build(name).layer.double(), build(name).layer.double()
    x = torch.randn(6, 4, 2, dtype=torch.float64)
    torch.manual_seed(1)
    expected, final = layer(x)
    torch.manual_seed(1)
    # Frame by frame, dropout draws in the same order.
    found, state = other(pack_padded_sequence(x, [6] * 4))
    torch.testing.assert_close(found.data.view_as(expected), expected)
    for a, b in zip(states(state), states(final), strict=True):
        torch.testing.assert_close(a, b.expand_as(a))
    for key, value in layer.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value)


@pytest.mark.parametrize("name", ["indrnn after", "indrnn before", "linoss", "unicornn deviation"])
def test_statistics_of_a_packed_batch_are_of_its_frames(name):
    layer, whole = build(name).layer, build(name).layer
    x = torch.randn(5, 2, 2)
    layer(pack_padded_sequence(x, [5, 2]))
    # The first that is normalised: its mean over 7 frames.
    if name == "unicornn deviation":
        torch.testing.assert_close(layer.layers[0].mean, torch.cat([x[:, 0], x[:2, 1]]).mean(0))
        assert layer.layers[0].batches == 1
        return
    norms = [next(m for m in one.modules() if isinstance(m, torch.nn.BatchNorm1d)) for one in (layer, whole)]
    assert norms[0].num_batches_tracked == 1
    seen = []
    norms[1].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    whole.eval()(pack_padded_sequence(x, [5, 2]))
    assert len(seen[0]) == 7
    torch.testing.assert_close(norms[0].running_mean, 0.1 * seen[0].mean(0))


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


# The last is 5 s of graphs, each of which the two before it have.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "unicornn deviation, irregular")) for name in NAMES]
)
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
    loss, found = step(torch.compile(model, backend="aot_eager"))
    torch.testing.assert_close(loss, expected)
    for a, b in zip(found, gradients, strict=True):
        torch.testing.assert_close(a, b)


def on_a_kernel(name: str, inputs: int = 2) -> Layer:
    """The layer; skips where torch computes it."""
    layer = build(name, inputs=inputs).layer.eval()
    if layer.backend == "torch":
        pytest.skip("torch computes it")
    return layer


def on_the_reference(layer: Layer) -> Layer:
    layer.use("reference")
    return layer


@pytest.mark.parametrize("name", NAMES)
def test_the_backend_may_be_changed(name):
    layer = build(name).layer
    layer.use("reference")
    # A layer that calls no kernel is plain PyTorch.
    plain = layer.operation is None and type(layer).backend is Layer.backend
    assert layer.backend == ("torch" if plain else "reference")


def gradients_of_gradients(layer: Layer, x: torch.Tensor):
    (gradient,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), x)


@pytest.mark.parametrize("inputs", [2, 20])
@pytest.mark.parametrize("name", NAMES)
def test_vmap(name, inputs):
    """On every backend; of the kernels by PyTorch, call by call."""
    layer = on_a_kernel(name, inputs)
    x = torch.randn(3, 5, 2, inputs)
    found = torch.func.vmap(lambda x: layer(x)[0])(x)
    torch.testing.assert_close(found, torch.stack([layer(one)[0] for one in x]))


@pytest.mark.parametrize("inputs", [2, 20])
@pytest.mark.parametrize("name", NAMES)
def test_the_reference_has_every_derivative(name, inputs):
    if name == "nrde adjoint":
        pytest.skip("the adjoint method has none but the gradient")
    layer = on_the_reference(on_a_kernel(name, inputs).double())
    x = torch.randn(3, 2, inputs, dtype=torch.float64)

    def function(x):
        return layer(x)[0]

    expected = torch.autograd.functional.jacobian(function, x)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(function)(x), expected)
    squared = torch.func.vmap(torch.func.grad(lambda x: layer(x)[0].square().sum()))(x.unsqueeze(0))
    torch.testing.assert_close(squared[0], 2 * (expected * function(x)[..., None, None, None]).sum((0, 1, 2)))
    # Of |g|^2 by reverse over reverse, and as 2 H g by forward over reverse.
    gradient = torch.func.grad(lambda x: layer(x)[0].square().sum())
    _, product = torch.func.jvp(gradient, (x,), (gradient(x),))
    torch.testing.assert_close(gradients_of_gradients(layer, x.requires_grad_())[0], 2 * product)


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_says_what_has_the_other_derivatives(name):
    layer, x = build(name).layer.eval(), torch.randn(3, 2, 2)
    use = "use adjoint=False" if name == "nrde adjoint" else "use backend='reference'"
    if layer.backend != "cpu":
        pytest.skip("it has no C kernel")
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        with pytest.raises(RuntimeError, match=rf"^\w+: no .*torch.func .* forward mode.*; {use}$"):
            transform(lambda x: layer(x)[0])(x)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match=rf"forward mode.*; {use}$"):
        layer(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
    with pytest.raises(RuntimeError, match=rf"^\w+: no second derivatives.*; {use}$"):
        gradients_of_gradients(layer, x.requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_gradients(name):
    """As in ``torch.autograd.functional.jacobian(vectorize=True)``."""
    layer, x = on_a_kernel(name), torch.randn(3, 2, 2)
    expected = torch.autograd.functional.jacobian(lambda x: layer(x)[0], x)
    found = torch.autograd.functional.jacobian(lambda x: layer(x)[0], x, vectorize=True)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_backend_is_an_argument(name, monkeypatch):
    layer = build(name).layer
    if layer.backend == "torch":
        pytest.skip("torch computes it")
    same = type(layer)(2, 12, backend="reference").eval()
    assert same.backend == "reference"
    monkeypatch.setattr(dispatch, "_cpu_obstacle", None)  # it is not asked for
    assert same(torch.randn(3, 2, 2))[0].shape == (3, 2, 12)
    with pytest.raises(ValueError, match=r"^\w+: backend='fast': must be one of auto, reference, cpu, triton$"):
        type(layer)(2, 12, backend="fast")(torch.randn(3, 2, 2))


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
        # Of a Neural RDE all is in that of the weights.
        assert torch.equal(sequence, expected) == name.startswith("nrde")


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


# They learn other problems, in their own files; the time, the first number here, is no input.
OTHERS = ("unicornn", "indrnn", "linoss", "nrde", "cornn irregular", "lem irregular")


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(OTHERS)])
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
