import itertools
import json

import numpy as np
import pytest
import torch
import torchdiffeq
from torch import nn

from longwave.models.nrde import SOLVERS, Config, channels_of
from longwave.tasks.transforms.log_signature import log_signatures, lyndon_words

PAPER = {"tied": True, "repeat_last": True, "readout_lr": 10}


def sequence(T, B, channels, depth=2, step=3, scale=1.0, seed=0):
    """Transformed random walks (T, B, D) in double precision."""
    steps = np.random.default_rng(seed).normal(size=(1 + (T - 1) * step, B, channels - 1))
    walk = torch.from_numpy(scale * steps.cumsum(0))
    if T == 1:
        return log_signatures(torch.cat([walk, walk]), depth, 1)[:1]
    return log_signatures(walk, depth, step, backend="torch")


def build(channels=3, depth=2, outputs=2, seed=0, **settings):
    torch.manual_seed(seed)
    inputs = sum(len(lyndon_words(channels, length)) for length in range(1, depth + 1))
    config = Config(**{"hidden": 4, "multiplier": 2, "layers": 3, "depth": depth} | settings)
    return config.build(inputs, outputs).double()


# hidden, multiplier, layers, channels with time, outputs, and the parameters at depth 1, 2, 3 (Morrill et al.).
@pytest.mark.parametrize(
    ("hidden", "multiplier", "layers", "channels", "outputs", "parameters"),
    [
        (32, 3, 2, 7, 5, (34_629, 99_813, 447_461)),
        (64, 3, 3, 3, 1, (86_913, 123_969, 222_785)),
        (64, 2, 2, 3, 1, (49_921, 74_689, 140_737)),
    ],
    ids=["EigenWorms", "RR and SpO2", "HR"],
)
def test_parameters_are_the_papers(hidden, multiplier, layers, channels, outputs, parameters):
    settings = {"hidden": hidden, "multiplier": multiplier, "layers": layers, **PAPER}
    found = [build(channels, depth, outputs, **settings) for depth in (1, 2, 3)]
    assert tuple(sum(p.numel() for p in model.parameters()) for model in found) == parameters


def test_parameters_of_the_neural_cde_of_log_neural_cdes():
    """166,789 on EigenWorms with time, which is printed beside LinOSS's table."""
    model = build(7, 1, 5, hidden=128, multiplier=1, layers=3)
    assert sum(p.numel() for p in model.parameters()) == 166_789


def test_untied_layers_have_parameters_of_their_own():
    width = 8
    tied, untied = build(tied=True, layers=4), build(tied=False, layers=4)
    counts = [sum(p.numel() for p in model.parameters()) for model in (tied, untied)]
    assert counts[1] - counts[0] == 2 * (width * width + width)
    state = tied.state_dict()
    for i in (1, 2):
        for kind in ("weight", "bias"):
            state[f"layer.field.inner.{i}.{kind}"] = state[f"layer.field.inner.0.{kind}"]
    untied.load_state_dict(state)
    x = sequence(5, 3, 3)
    torch.testing.assert_close(tied(x), untied(x))
    untied.layer.field.inner[2].weight.data += 0.1
    assert not torch.allclose(tied(x), untied(x))


def transcription(layer, layers):
    """h_0 and dh/dt of the model, in NumPy."""
    weights = {name: p.detach().numpy() for name, p in layer.named_parameters()}

    def linear(name, v):
        return v @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def derivative(h, logsig):
        z = linear("field.first", h)
        for i in range(layers - 1):
            z = linear(f"field.inner.{0 if layer.field.repeats == layers - 1 else i}", np.maximum(z, 0))
        matrix = linear("field.last", np.tanh(z)).reshape(len(h), h.shape[1], logsig.shape[1])
        return np.einsum("bhd,bd->bh", matrix, logsig)

    return lambda x: linear("initial", x), derivative


def euler(f, h):
    return h + f(h)


def heun(f, h):
    return h + (f(h) + f(h + f(h))) / 2


def three_eighths(f, h):
    k1 = f(h)
    k2 = f(h + k1 / 3)
    k3 = f(h - k1 / 3 + k2)
    k4 = f(h + k1 - k2 + k3)
    return h + (k1 + 3 * k2 + 3 * k3 + k4) / 8


STEPS = {"euler": euler, "heun": heun, "rk4": three_eighths}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("T", "B", "layers", "tied"), [(1, 2, 2, False), (2, 1, 1, False), (6, 3, 3, True), (6, 3, 3, False)]
)
def test_equals_a_transcription_of_the_equation(solver, T, B, layers, tied):
    layer = build(solver=solver, layers=layers, tied=tied).layer
    x = sequence(T, B, 3)
    initial, derivative = transcription(layer, layers)
    h = initial(x[0, :, :3].numpy())
    expected = [h]
    for logsig in x[1:].numpy():
        h = STEPS[solver](lambda h, logsig=logsig: derivative(h, logsig), h)
        expected.append(h)
    found, final = layer(x)
    np.testing.assert_allclose(found.detach().numpy(), np.stack(expected), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(final.detach().numpy(), h, rtol=1e-11, atol=1e-13)


class Controlled(nn.Module):
    """dh/dt = F(h) logsig_k, k = floor(t), for torchdiffeq; behind the last block its log-signature holds on."""

    def __init__(self, field, blocks):
        super().__init__()
        self.field, self.blocks = field, blocks

    def forward(self, t, h):
        return self.field(h, self.blocks[min(int(t), len(self.blocks) - 1)])


@pytest.mark.parametrize(("solver", "theirs"), [("euler", "euler"), ("heun", "heun2"), ("rk4", "rk4")])
@pytest.mark.parametrize("adjoint", [False, True])
def test_equals_torchdiffeq(solver, theirs, adjoint):
    layer = build(solver=solver, adjoint=adjoint).layer
    x = sequence(6, 2, 3)
    weights = torch.randn(6, 2, 4, dtype=torch.float64)
    times = torch.arange(6, dtype=torch.float64)
    # The ends of a step are evaluated just inside of it, where the control jumps.
    settings = {"method": theirs, "options": {"step_size": 1.0, "perturb": True}}
    solve = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint
    expected = solve(Controlled(layer.field, x[1:]), layer.initial(x[0, :, :3]), times, **settings)
    found, _ = layer(x)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((s * weights).sum(), list(layer.parameters())) for s in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_last_block_twice_is_torchdiffeq_one_step_too_far():
    layer = build(repeat_last=True, tied=True).layer
    x = sequence(6, 2, 3)
    settings = {"method": "rk4", "options": {"step_size": 1.0, "perturb": True}}
    times = torch.arange(7, dtype=torch.float64)
    expected = torchdiffeq.odeint(Controlled(layer.field, x[1:]), layer.initial(x[0, :, :3]), times, **settings)
    found, final = layer(x)
    torch.testing.assert_close(found, expected[:6])
    torch.testing.assert_close(final, (expected[6], expected[5]))


def gradients(adjoint, solver, x, **settings):
    """Of the last state with regard to the parameters, the sequence and the state that it starts from."""
    layer = build(adjoint=adjoint, solver=solver, **settings).layer
    x, state = x.clone().requires_grad_(), torch.randn(x.shape[1], 4, dtype=torch.float64).requires_grad_()
    found, final = layer(x, state)
    loss = found[0].sum() + (final[0] if settings.get("repeat_last") else final).square().sum()
    return torch.autograd.grad(loss, [*layer.field.parameters(), x, state])


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
@pytest.mark.parametrize("repeat_last", [False, True])
def test_the_adjoint_method_errs_by_what_the_solver_does(solver, order, repeat_last):
    """Halving the steps (with it the control) brings the gradients together, by 2^order and more."""
    errors = []
    for scale in (0.02, 0.01):
        x = scale * sequence(4, 2, 3)
        pairs = zip(*(gradients(adjoint, solver, x, repeat_last=repeat_last) for adjoint in (False, True)), strict=True)
        errors.append(max((a - b).abs().max().item() / a.abs().max().item() for a, b in pairs))
    assert errors[0] < 0.02**order * 20
    assert errors[1] < errors[0] / 2**order * 1.1


@pytest.mark.parametrize(("backend", "times"), [("reference", 10), ("cpu", 5)])
def test_the_adjoint_method_keeps_the_ends_of_the_blocks_only(backend, times):
    x = sequence(40, 2, 3)

    def kept(adjoint):
        sizes = []
        layer = build(adjoint=adjoint).layer
        layer.requested = backend
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()), lambda t: t):
            layer(x)
        return sum(sizes)

    parameters = sum(p.numel() for p in build().layer.parameters())
    assert kept(adjoint=True) <= 2 * x.numel() + 40 * 2 * 4 + parameters
    assert kept(adjoint=False) > times * kept(adjoint=True)


def test_the_adjoint_method_notices_parameters_that_have_changed():
    """The C kernel has a copy of them: its gradients are those at the parameters that it was called with."""
    x, found = sequence(4, 2, 3), []
    for backend, change in (("reference", 1), ("cpu", 1), ("cpu", 0)):
        layer = build(adjoint=True).layer
        layer.requested = backend
        _, final = layer(x)
        with torch.no_grad():
            layer.field.first.weight += change
        if backend == "cpu":
            found.append(torch.autograd.grad(final.sum(), list(layer.parameters())))
            continue
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            final.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(("solver", "tied"), [("rk4", True), ("heun", False)])
def test_gradients_in_double(solver, tied):
    layer = build(channels=2, hidden=2, multiplier=1, layers=3, tied=tied, solver=solver, repeat_last=True).layer
    names = [name for name, _ in layer.named_parameters()]
    x = sequence(2, 2, 2).requires_grad_()
    state = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    def call(x, state, *parameters):
        for start in (None, state):
            found, final = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, start))
            yield from (found, *final)

    assert torch.autograd.gradcheck(lambda *a: tuple(call(*a)), (x, state, *layer.parameters()))


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("repeat_last", [False, True])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_sequence_may_be_cut_and_gone_on_with(adjoint, repeat_last, at):
    layer = build(adjoint=adjoint, repeat_last=repeat_last).layer
    x = sequence(7, 3, 3)
    whole, final = layer(x)
    first, state = layer(x[:at])
    second, end = layer(x[at:], state)
    assert (len(first), len(second)) == (at, 7 - at)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(end, final)


@pytest.mark.parametrize("adjoint", [False, True])
def test_a_sequence_without_blocks(adjoint):
    model = build(adjoint=adjoint, repeat_last=True)
    x = sequence(1, 2, 3)
    found, final = model.layer(x)
    expected = model.layer.initial(x[0, :, :3])
    torch.testing.assert_close(found, expected.unsqueeze(0))
    torch.testing.assert_close(final, (expected, expected))
    model(x).sum().backward()
    assert model.layer.initial.weight.grad.any()


def test_the_readout_learns_faster_where_asked_to():
    model = build(**PAPER)
    rest, readout = model.groups()
    assert (readout.lr, [*map(id, readout.parameters)]) == (10, [*map(id, model.readout.parameters())])
    assert rest.lr == 1
    assert sum(len(group.parameters) for group in (rest, readout)) == len([*model.parameters()])


def test_channels_follow_from_the_size_of_the_log_signature():
    for channels, depth in itertools.product(range(1, 9), (1, 2, 3)):
        size = sum(len(lyndon_words(channels, length)) for length in range(1, depth + 1))
        # With one channel there is nothing but its increment, whatever the depth.
        assert channels_of(size, depth) == channels
    with pytest.raises(ValueError, match=r"^depth=2: no log-signature of this depth has 7 components$"):
        channels_of(7, 2)


def test_depth_1_of_single_increments_is_the_neural_cde():
    """dh = F(h) dX along the straight pieces of X: no more than a CDE of the path itself."""
    layer = build(depth=1, solver="euler").layer
    path = torch.from_numpy(np.random.default_rng(1).normal(size=(9, 2, 3)))
    found, _ = layer(log_signatures(path, 1, 1, time=False))
    h = layer.initial(path[0])
    for increment in path.diff(dim=0):
        h = h + layer.field(h, increment)
    torch.testing.assert_close(found[-1], h)


@pytest.mark.parametrize("adjoint", [False, True])
def test_compiled_and_in_bfloat16_it_is_the_same(adjoint):
    model = build(adjoint=adjoint).float()
    x = sequence(5, 3, 3).float()
    expected = model(x)
    expected.square().sum().backward()
    gradient = model.layer.field.first.weight.grad.clone()
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled, expected)
    compiled.square().sum().backward()
    torch.testing.assert_close(model.layer.field.first.weight.grad, gradient)
    with torch.autocast("cpu", torch.bfloat16):
        sequence_, final = model.layer(x)
    assert final.dtype == sequence_.dtype == torch.float32
    torch.testing.assert_close(model.readout(final), expected)


@pytest.mark.parametrize("adjoint", [False, True])
def test_learns_which_way_a_path_turns(adjoint):
    """The sign of the area is in the log-signature of depth 2; the end points say nothing."""
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 25)[:, None]
    sign, phase = rng.choice([-1.0, 1.0], 64), rng.uniform(0, 2 * np.pi, 64)
    loops = torch.from_numpy(np.stack([np.cos(sign * angle + phase), np.sin(sign * angle + phase)], -1)).float()
    x = log_signatures(loops, 2, 8)
    target = torch.from_numpy(sign > 0).long()
    model = build(hidden=8, solver="rk4", adjoint=adjoint).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_trains_and_chooses_its_transform(fit_here):
    small = [
        "task.T=20",
        "model.hidden=3",
        "training.batch_size=4",
        "debug=fast",
        "transform.depth=2",
        "transform.step=5",
    ]
    _, folder = fit_here("model=nrde", "task=adding", *small)
    record = json.loads((folder / "record.json").read_text())
    assert record["status"] == "finished"
    assert record["config"]["model"]["depth"] == 2
    assert record["data"]["split_id"].endswith("/log_signature/depth=2/step=5/time=True")


def test_wrong_settings():
    for key, value, message in [
        ("hidden", 0, r"^hidden=0: must be at least 1$"),
        ("multiplier", 0, r"^multiplier=0: must be at least 1$"),
        ("layers", 0, r"^layers=0: must be at least 1$"),
        ("depth", 0, r"^depth=0: nrde reads log-signatures of depth 1, 2 or 3; choose transform=log_signature$"),
        ("solver", "midpoint", r"^solver=midpoint: must be one of euler, heun, rk4$"),
        ("readout_lr", 0.0, r"^readout_lr=0\.0: must be greater than 0$"),
    ]:
        with pytest.raises(ValueError, match=message):
            Config(**{key: value})


@pytest.mark.parametrize("settings", [{}, PAPER, {"repeat_last": True, "adjoint": True, "solver": "heun"}])
def test_each_series_is_read_at_its_own_end(settings):
    model, x, lengths = build(**settings), sequence(7, 5, 3), torch.tensor([7, 3, 2, 5, 7])
    for i, length in enumerate(lengths):
        x[length:, i] = 0
    outputs = model(x, lengths)
    alone = [model(x[:length, i : i + 1]) for i, length in enumerate(lengths)]
    torch.testing.assert_close(outputs, torch.cat(alone), rtol=1e-12, atol=1e-12)
    found, expected = (
        torch.autograd.grad(out.square().sum(), list(model.parameters())) for out in (outputs, torch.cat(alone))
    )
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
