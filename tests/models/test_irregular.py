"""Step sizes that follow the times of the samples, and real times as the time channel of a Neural CDE."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from longwave import LEM, CoRNN, Stacked, UnICORNN, kernels
from longwave.models import cornn, lem, linoss, nrde, unicornn
from longwave.models.irregular import durations
from longwave.tasks.transforms.log_signature import log_signatures
from longwave.training.build import build as build_run
from longwave.training.config import compose_run
from longwave.training.diagnostics import gradient_norms

MODELS = {
    "cornn": cornn.Config(hidden=4, dt=0.5),
    "cornn implicit, trained": cornn.Config(hidden=4, dt=0.5, damping="implicit", train_dynamics="unit"),
    "lem": lem.Config(hidden=4),
    "unicornn": unicornn.Config(hidden=4, layers=2, dt=[1.0, 0.5], residual=True, dropout=0),
    "unicornn deviation": unicornn.Config(hidden=4, layers=2, dt=1.0, output="deviation", dropout=0),
    "linoss": linoss.Config(hidden=4, state=3, dropout=0),
    "linoss imex, last": linoss.Config(hidden=4, state=3, discretisation="imex", pooling="last", block="released"),
}
SPACING = 0.25


def build(name, spacing=SPACING):
    torch.manual_seed(0)
    inputs = 2 + (spacing is not None)
    return dataclasses.replace(MODELS[name], spacing=spacing).build(inputs, 1).double().eval()


def irregular(T, B, seed=0):
    """Increasing times (T, B, 1), which start anywhere."""
    generator = torch.Generator().manual_seed(seed)
    return (0.05 + torch.rand(T, B, 1, generator=generator, dtype=torch.float64)).cumsum(0) - 3


@pytest.mark.parametrize("name", MODELS)
def test_equally_spaced_it_is_the_regular_layer(name):
    regular, timed = build(name, spacing=None), build(name)
    x = torch.randn(11, 3, 2, dtype=torch.float64)
    times = (torch.arange(11, dtype=torch.float64) * SPACING + 5)[:, None, None].expand(11, 3, 1)
    given = torch.cat([times, x], -1)
    (expected, _), (found, _) = regular.layer(x), timed.layer(given)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(timed(given), regular(x), rtol=1e-12, atol=1e-12)
    assert timed.layer.backend == "reference" != regular.layer.backend
    # Twice the spacing is not the same.
    given = torch.cat([times * 2, x], -1)
    assert (timed.layer(given)[0] - expected).abs().max() > 1e-4
    assert all(p.shape == q.shape for p, q in zip(regular.parameters(), timed.parameters(), strict=True))


def test_the_durations():
    times = torch.tensor([5.0, 5.5, 5.5, 7.0, 0.0, 0.0])[:, None, None]
    # One at the first sample; none where the time stands still, or goes back.
    found, last = durations(times, None, 0.5)
    assert found.flatten().tolist() == [1, 1, 0, 3, 0, 0]
    assert last.tolist() == [[0.0]]
    found, _ = durations(times[:2], torch.tensor([[4.0]]), 0.5)
    assert found.flatten().tolist() == [2, 1]


@pytest.mark.parametrize("parametrisation", ["concatenated", "separate", "recurrent"])
def test_a_step_of_dt_is_made_of_halves(parametrisation):
    """Samples half a spacing apart are steps of dt / 2, here written by hand; between them are whole ones."""
    torch.manual_seed(0)
    dt, gamma, epsilon = 0.4, 1.7, 0.6
    options = {"gamma": gamma, "epsilon": epsilon, "parametrisation": parametrisation}
    layer = CoRNN(3, 5, dt=dt, spacing=1.0, **options).double()
    v, bias, w_y, w_z = layer.weights()
    x = torch.randn(4, 2, 2, dtype=torch.float64)
    # Each input twice, at both of its halves; then one whole step.
    times = torch.tensor([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0], dtype=torch.float64)
    x = torch.cat([x[:3].repeat_interleave(2, 0), x[3:]])
    given = torch.cat([times[:, None, None].expand(7, 2, 1), x], -1)
    y, z = torch.zeros(2, 2, 5, dtype=torch.float64)
    expected = []
    for step, drive in zip([dt / 2] * 6 + [dt], x, strict=True):
        force = torch.tanh(drive @ v.T + bias + y @ w_y.T + z @ w_z.T)
        z = z + step * (force - gamma * y - epsilon * z)
        y = y + step * z
        expected.append(y)
    # From time 0, so that the first step is half a one, too.
    zeros = torch.zeros(2, 5, dtype=torch.float64)
    found, (last, _, time) = layer(given, (zeros, zeros, zeros[:, :1]))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, y, rtol=1e-12, atol=1e-12)
    assert time.tolist() == [[4.0], [4.0]]
    # The halves are those of a layer with half the dt.
    half = CoRNN(2, 5, dt=dt / 2, **options).double()
    half.load_state_dict(layer.state_dict())
    torch.testing.assert_close(found[:6], half(x[:6])[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_in_double(name):
    """Of the inputs, the times among them, and of all parameters."""
    layer = build(name).layer
    x = torch.cat([irregular(5, 2), torch.randn(5, 2, 2, dtype=torch.float64)], -1).requires_grad_()
    names = [key for key, _ in layer.named_parameters()]

    def call(x, *parameters):
        sequence, state = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))
        return sequence, *(part for part in tree_leaves(state) if part.is_floating_point())

    assert torch.autograd.gradcheck(call, (x, *layer.parameters()))


@pytest.mark.parametrize("padding", [0.0, "last", "next"], ids=["zeros", "the last time", "any later time"])
@pytest.mark.parametrize("name", MODELS)
def test_padding_does_not_matter(name, padding):
    model = build(name)
    lengths = torch.tensor([9, 4, 1])
    x = torch.randn(9, 3, 2, dtype=torch.float64)
    times = irregular(9, 3) + 4
    behind = torch.arange(9)[:, None] >= lengths
    if padding != 0.0:
        last = times[lengths - 1, torch.arange(3)]
        times = torch.where(behind[..., None], last + (padding == "next"), times)
    else:
        times, x = times.masked_fill(behind[..., None], 0), x.masked_fill(behind[..., None], 0)
    found = model(torch.cat([times, x], -1), lengths)
    expected = [model(torch.cat([times, x], -1)[:n, i : i + 1]) for i, n in enumerate(lengths.tolist())]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-12, atol=1e-12)
    found.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["cornn", "lem", "unicornn"])
def test_in_padding_the_state_stays(name):
    layer = build(name).layer
    x = torch.cat([irregular(6, 2), torch.randn(6, 2, 2, dtype=torch.float64)], -1)
    _, state = layer(x)
    _, padded = layer(torch.cat([x, x[-1:].expand(3, -1, -1)]))
    for a, b in zip(tree_leaves(padded), tree_leaves(state), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", MODELS)
def test_another_backend_is_refused_by_name(name):
    config = dataclasses.replace(MODELS[name], spacing=SPACING)
    layer = type(config.build(3, 1).layer)(3, **config.settings(), backend="cpu")
    message = r"^\w+: backend='cpu' cannot run: only the reference takes a dt for each step$"
    with pytest.raises(RuntimeError, match=message):
        _ = layer.backend
    with pytest.raises(RuntimeError, match=message):
        layer(torch.randn(4, 2, 3))
    with pytest.raises(ValueError, match=r"^spacing=0.25: needs 2 channels or more, of which the first is the time"):
        config.build(1, 1)


@pytest.mark.parametrize("name", MODELS)
def test_the_time_is_no_hidden_state(name):
    """The norms of gradients are those of the regular layer."""
    torch.manual_seed(0)
    # Of one sequence: the regular reference of deviations is one for all.
    x = torch.randn(9, 1, 2, dtype=torch.float64)
    times = (torch.arange(9, dtype=torch.float64) * SPACING)[:, None, None]
    given = {None: x, SPACING: torch.cat([times, x], -1)}
    found = [gradient_norms(build(name, s), one, lambda output: output[:, 0], [0, 1, 5]) for s, one in given.items()]
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_theory_of_unicornn():
    regular, timed = (build("unicornn", spacing).layer for spacing in (None, SPACING))
    x = torch.cat([irregular(6, 2), torch.randn(6, 2, 2, dtype=torch.float64)], -1)
    expected, found = regular.theory(x[..., 1:]), timed.theory(x)
    assert found == {key: value for key, value in expected.items() if "stability" in key}
    assert len(found) == 4


@pytest.mark.parametrize("kind", [CoRNN, LEM, UnICORNN])
def test_layers_on_top_of_each_other_all_have_the_times(kind):
    """Backwards, a step lasts until the later sample."""
    torch.manual_seed(0)
    stack = Stacked(kind, 3, 4, num_layers=2, bidirectional=True, spacing=SPACING).double().eval()
    times, x = irregular(7, 2), torch.randn(7, 2, 2, dtype=torch.float64)
    found, _ = stack(torch.cat([times, x], -1))
    expected = x
    for forwards, backwards in (stack.layers[:2], stack.layers[2:]):
        ahead, _ = forwards(torch.cat([times, expected], -1))
        back, _ = backwards(torch.cat([10 - times, expected], -1).flip(0))
        expected = torch.cat([ahead, back.flip(0)], -1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture
def own_data(tmp_path):
    """The arguments of a run on 20 series with times, and these times (20, 12), from 0 to 100 each."""
    times = irregular(12, 20)[..., 0].T.numpy()
    times = 100 * (times - times[:, :1]) / (times[:, -1:] - times[:, :1])
    x = torch.randn(20, 12, 2, generator=torch.Generator().manual_seed(0)).numpy()
    np.savez(tmp_path / "mine.npz", x=x, y=np.arange(20) % 2, t=times)
    arguments = [f"task.path={tmp_path / 'mine.npz'}", "task=files", "task.time=true", "recipe=none", "debug=fast"]
    return [*arguments, f"data.root={tmp_path}", "model.hidden=4", "training.batch_size=3"], torch.from_numpy(times)


@pytest.mark.parametrize("model", ["cornn", "lem", "linoss", "unicornn"])
def test_real_times_are_step_sizes(model, own_data, fit_here):
    arguments, times = own_data
    chosen = [f"model={model}", *arguments, "model.spacing=0.09"]
    task = build_run(compose_run(chosen)[0])[0]
    x, *_ = task.batch(0, 3)
    # Scaled by one number: the longest series ends at 1.
    assert all((times / 100 - one).abs().max(1).values.min() < 1e-6 for one in x[..., 0].T)
    _, folder = fit_here(*chosen)
    assert json.loads((folder / "record.json").read_text())["backend"] == "reference"


def test_real_times_are_the_time_channel_of_a_neural_cde(own_data, fit_here):
    arguments, times = own_data
    chosen = ["model=nrde", *arguments, "transform.time=false"]
    x, *_ = build_run(compose_run(chosen)[0])[0].batch(0, 3)
    # Behind the first sample, at time 0, the durations between samples.
    assert x.shape == (12, 3, 3)
    assert all((times.diff() / 100 - one).abs().max(1).values.min() < 1e-6 for one in x[1:, :, 0].T)
    _, folder = fit_here(*chosen)
    assert json.loads((folder / "record.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", ["cornn", "lem", "linoss", "unicornn"])
def test_the_kernels_take_a_dt_for_each_step(name, wide):
    """Each sequence as one step after the other, on any backend."""
    torch.manual_seed(0)
    T, B, H = 5, 2, 3
    pre = torch.randn(T, B, H * (4 if name == "lem" else 1), dtype=torch.float64)
    dt = 0.1 + torch.rand(T, B, H if wide else 1, dtype=torch.float64)
    dense, unit = torch.randn(2, H, H, dtype=torch.float64), torch.rand(2, H, dtype=torch.float64)
    arguments = {
        "cornn": lambda dt: (*dense, dt, 1.2, 0.3),
        "lem": lambda dt: (torch.cat([*dense, dense[0]]), dense[1], dt),
        "linoss": lambda dt: (unit[0], dt),
        "unicornn": lambda dt: (*unit, dt, 1.5),
    }[name]
    function = getattr(kernels, name)
    found, final = function(pre, *arguments(dt))
    for b in range(B):
        state = None
        for n in range(T):
            step = dt[n, b] if wide else dt[n, b].item()
            y, state = function(pre[n : n + 1, b : b + 1], *arguments(step), state)
            torch.testing.assert_close(found[n : n + 1, b : b + 1], y, rtol=1e-12, atol=1e-12)
        for part, alone in zip(final, state, strict=True):
            torch.testing.assert_close(part[b : b + 1], alone, rtol=1e-12, atol=1e-12)
    with pytest.raises(
        ValueError, match=rf"^{name}: dt must be a number, .*\(T, B, 1\) or \(T, B, H\), got \(2, 2, 1\)"
    ):
        function(pre, *arguments(dt[:2, :, :1]))


def smooth_path(n, samplings):
    """Samples (n + 1, B, 3) of a smooth path with its time, at times in [0, 1] that are ever farther apart, roughly."""
    generator = torch.Generator().manual_seed(0)
    jitter = 0.8 * torch.rand(n + 1, samplings, generator=generator, dtype=torch.float64) - 0.4
    jitter[[0, -1]] = 0
    u = (torch.arange(n + 1, dtype=torch.float64)[:, None] + jitter) / n
    times = (u + u**2) / 2
    return torch.stack([times, (5 * times).sin(), (7 * times).cos() + times**2], -1)


# Of the solver on a line between two samples, and of the line itself, which is of order 2.
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("rk4", 2)])
def test_a_neural_cde_depends_on_the_path_and_not_on_its_samples(solver, order):
    """With real times as a channel of the path; not with the number of the sample in their place."""
    torch.manual_seed(0)
    model = nrde.Config(hidden=5, multiplier=2, layers=1, depth=1, solver=solver).build(3, 2).double()
    for parameter in model.layer.field.parameters():
        nn.init.normal_(parameter, std=0.4)

    def output(path, time=False):
        with torch.no_grad():
            return model(log_signatures(path, depth=1, step=1, time=time))

    times = torch.linspace(0, 1, 8193, dtype=torch.float64)
    regular = torch.stack([times, (5 * times).sin(), (7 * times).cos() + times**2], -1).unsqueeze(1)
    limit = output(regular)
    errors = [(output(smooth_path(n, 8)) - limit).square().mean().sqrt().item() for n in (32, 128, 512)]
    orders = [math.log(coarse / fine, 4) for coarse, fine in itertools.pairwise(errors)]
    assert orders == pytest.approx([order] * 2, abs=0.15)
    by_number = output(smooth_path(512, 8)[..., 1:], time=True) - output(regular[..., 1:], time=True)
    assert by_number.square().mean().sqrt() > 5 * errors[-1]
