import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from longwave import kernels
from longwave.models.cornn import Config, CoRNN

DAMPINGS = ("explicit", "implicit")
PARAMETRISATIONS = ("concatenated", "separate", "recurrent")


@pytest.mark.parametrize(
    ("hidden", "inputs", "outputs", "parametrisation", "parameters"),
    [
        (128, 2, 1, "concatenated", 33_281),  # adding
        (256, 1, 10, "concatenated", 134_154),  # sMNIST, psMNIST
        (128, 1, 10, "concatenated", 34_314),
        (128, 96, 10, "separate", 46_474),  # noisy CIFAR-10
        (64, 9, 1, "concatenated", 8_897),  # HAR-2
        (128, 100, 1, "recurrent", 45_825),  # IMDB, without the embedding
    ],
)
def test_parameters_are_the_papers(hidden, inputs, outputs, parametrisation, parameters):
    model = Config(hidden=hidden, parametrisation=parametrisation).build(inputs, outputs)
    assert sum(p.numel() for p in model.parameters()) == parameters


def affine(layer: CoRNN):
    """V x + b + W y + Wz z of a layer in NumPy, as its parametrisation lays it out in the released code."""
    p = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    if layer.parametrisation == "concatenated":
        return lambda x, y, z: np.concatenate([x, z, y], axis=1) @ p["affine.weight"].T + p["affine.bias"]
    if layer.parametrisation == "separate":
        return lambda x, y, z: x @ p["input.weight"].T + p["input.bias"] + y @ p["y.weight"].T + z @ p["z.weight"].T
    return lambda x, y, z: (
        x @ p["input.weight"].T + p["input.bias"] + np.concatenate([z, y], axis=1) @ p["recurrent.weight"].T
    )


@pytest.mark.parametrize("T", [1, 17])
@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_equals_a_transcription_of_the_equation(parametrisation, damping, T):
    """z += dt (tanh(W y + Wz z + V x + b) - gamma y - epsilon z), the last z old or new, then y += dt z."""
    torch.manual_seed(0)
    inputs, h, B, dt, gamma, epsilon = 3, 5, 4, 0.3, 1.7, 0.4
    layer = CoRNN(
        inputs, h, dt=dt, gamma=gamma, epsilon=epsilon, parametrisation=parametrisation, damping=damping
    ).double()
    x = torch.randn(T, B, inputs, dtype=torch.float64)
    act = affine(layer)
    y, z = np.zeros((B, h)), np.zeros((B, h))
    expected = []
    for step in x.numpy():
        before, force = z, np.tanh(act(step, y, z))
        if damping == "explicit":
            z = before + dt * (force - gamma * y - epsilon * before)
        else:
            z = (before + dt * (force - gamma * y)) / (1 + epsilon * dt)
            np.testing.assert_allclose(z, before + dt * (force - gamma * y - epsilon * z), rtol=1e-12, atol=1e-14)
        y = y + dt * z
        expected.append(y)
    sequence, (last_y, last_z) = layer(x)
    np.testing.assert_allclose(sequence.detach().numpy(), np.stack(expected), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(last_y.detach().numpy(), y, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(last_z.detach().numpy(), z, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("train_dynamics", ["shared", "unit"])
@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_gradients_in_double(parametrisation, damping, train_dynamics):
    """Of everything, gamma and epsilon included."""
    torch.manual_seed(0)
    options = {"parametrisation": parametrisation, "damping": damping, "train_dynamics": train_dynamics}
    layer = CoRNN(2, 3, dt=0.3, gamma=1.5, epsilon=0.7, **options).double()
    x = torch.randn(5, 2, 2, dtype=torch.float64, requires_grad=True)
    state = tuple(torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    names = [name for name, _ in layer.named_parameters()]
    assert {"logarithms.gamma", "logarithms.epsilon"} <= set(names)

    def call(x, y, z, *parameters):
        sequence, final = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, (y, z)))
        return sequence, *final

    assert torch.autograd.gradcheck(call, (x, *state, *layer.parameters()))


# The number of inputs of the Linear that each parameter belongs to, with 2 inputs and 128 units.
FAN_IN = {
    "concatenated": {"affine.weight": 258, "affine.bias": 258},
    "separate": {"input.weight": 2, "input.bias": 2, "y.weight": 128, "z.weight": 128},
    "recurrent": {"input.weight": 2, "input.bias": 2, "recurrent.weight": 256},
}


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_initialisation_is_that_of_its_linear_maps(parametrisation):
    torch.manual_seed(0)
    layer = CoRNN(2, 128, parametrisation=parametrisation)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}
    assert parameters.keys() == FAN_IN[parametrisation].keys()
    for name, parameter in parameters.items():
        bound = 1 / math.sqrt(FAN_IN[parametrisation][name])
        assert 0.95 * bound < parameter.abs().max() <= bound
        assert parameter.std() == pytest.approx(bound / math.sqrt(3), rel=0.15)


@pytest.mark.parametrize("train_dynamics", ["shared", "unit"])
@pytest.mark.parametrize(("dt", "gamma", "epsilon"), [(0.016, 94.5, 9.5), (0.042, 2.7, 4.7), (0.9, 0.01, 1e-3)])
def test_trained_dynamics_start_at_what_is_configured(train_dynamics, dt, gamma, epsilon):
    torch.manual_seed(0)
    fixed = Config(hidden=6, dt=dt, gamma=gamma, epsilon=epsilon).build(2, 1)
    torch.manual_seed(0)
    trained = Config(hidden=6, dt=dt, gamma=gamma, epsilon=epsilon, train_dynamics=train_dynamics).build(2, 1)
    count = {"shared": 1, "unit": 6}[train_dynamics]
    for found, value in zip(trained.layer.dynamics()[1:], (gamma, epsilon), strict=True):
        assert found.numel() == count
        torch.testing.assert_close(found, torch.full_like(found, value))
    assert trained.layer.dynamics()[0] == dt
    assert fixed.layer.dynamics() == (dt, gamma, epsilon)
    x = torch.randn(9, 4, 2)
    torch.testing.assert_close(trained(x), fixed(x))
    assert sum(p.numel() for p in trained.parameters()) == sum(p.numel() for p in fixed.parameters()) + 2 * count


@pytest.mark.parametrize("train_dynamics", ["shared", "unit"])
def test_trained_dynamics_move_and_stay_in_their_bounds(train_dynamics):
    torch.manual_seed(0)
    layer = CoRNN(2, 4, dt=0.1, train_dynamics=train_dynamics)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    before = torch.stack(layer.dynamics()[1:]).detach()
    layer(torch.randn(20, 8, 2))[0].square().sum().backward()
    optimizer.step()
    assert (torch.stack(layer.dynamics()[1:]) != before).all()
    for far in (-10.0, 10.0):
        for logarithm in layer.logarithms.values():
            logarithm.data.fill_(far)
        _, gamma, epsilon = layer.dynamics()
        assert (gamma > 0).all()
        assert (epsilon > 0).all()
        # Beyond 2 the velocity grows.
        assert (epsilon * 0.1 <= 1.5 + 1e-6).all()
    layer.damping = "implicit"
    assert (layer.dynamics()[2] > 1000).all()


def test_trained_dynamics_are_not_decayed():
    model = Config(hidden=3, train_dynamics="unit").build(2, 1)
    rest, own = model.groups()
    assert [id(p) for p in own.parameters] == [id(p) for p in model.layer.logarithms.values()]
    assert (own.lr, own.weight_decay) == (1.0, 0.0)
    assert len(list(rest.parameters)) + 2 == len(list(model.parameters()))
    assert len(Config(hidden=3).build(2, 1).groups()) == 1


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_initialisations_by_name(parametrisation):
    def weights(**options):
        torch.manual_seed(0)
        config = Config(hidden=128, gamma=90.0, parametrisation=parametrisation, **options)
        return [w.detach() for w in config.build(2, 1).layer.weights()]

    v, bias, w_y, w_z = weights()
    wide = weights(input_initialisation="wide")
    for found, before in ((wide[0], v), (wide[1], bias)):
        assert not torch.equal(found, before)
        assert 2.5 < found.abs().max() <= 3
        assert found.std() == pytest.approx(3 / math.sqrt(3), rel=0.2)
    assert torch.equal(wide[2], w_y)
    assert torch.equal(wide[3], w_z)
    critical = weights(recurrent_initialisation="critical")
    assert torch.linalg.eigvals(critical[2]).abs().max() == pytest.approx(90.0, rel=0.15)
    for found, before in ((critical[0], v), (critical[1], bias), (critical[3], w_z)):
        assert torch.equal(found, before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"parametrisation": "joint"}, "parametrisation=joint: must be one of concatenated, separate, recurrent"),
        ({"damping": "none"}, "damping=none: must be one of explicit, implicit"),
        ({"train_dynamics": "all"}, "train_dynamics=all: must be one of none, shared, unit"),
        ({"train_dynamics": "shared", "gamma": 0.0}, "gamma=0.0: must be greater than 0 where train_dynamics=shared"),
        ({"train_dynamics": "unit", "epsilon": 0.0}, "epsilon=0.0: must be greater than 0 where train_dynamics=unit"),
        (
            {"train_dynamics": "unit", "epsilon": 16.0, "dt": 0.1},
            "epsilon=16.0: must be at most 1.5 / dt = 15 where train_dynamics=unit",
        ),
        ({"input_initialisation": "wider"}, "input_initialisation=wider: must be one of pytorch, wide"),
        ({"recurrent_initialisation": "edge"}, "recurrent_initialisation=edge: must be one of pytorch, critical"),
        ({"dt": 0.0}, "dt=0.0: must be greater than 0"),
        ({"gamma": -1.0}, "gamma=-1.0: must be at least 0"),
    ],
)
def test_what_is_refused(wrong, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Config(**wrong)


def test_what_is_only_refused_where_it_is_trained():
    Config(dt=1.5, gamma=0.0, epsilon=0.0)
    Config(dt=0.1, epsilon=18.0)
    Config(dt=0.1, epsilon=18.0, damping="implicit", train_dynamics="unit")


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_theory_of_known_matrices(parametrisation):
    layer = CoRNN(1, 2, dt=0.1, parametrisation=parametrisation)
    _, _, w_y, w_z = layer.weights()
    with torch.no_grad():
        w_y.copy_(torch.tensor([[1.0, -2.0], [0.5, 0.0]]))
        w_z.copy_(torch.tensor([[1.0, 1.0], [-4.5, 0.0]]))
    found = layer.theory(torch.zeros(3, 2, 1))
    assert (found["norm_w"], found["norm_wz"]) == (3.0, 4.5)
    # max(0.1 (1 + 3) / 1.1, 0.1 4.5 / 1.1)
    assert found["eta"] == pytest.approx(0.45 / 1.1)
    assert 0.1 ** found["r"] == pytest.approx(found["eta"])
    with torch.no_grad():
        w_y.mul_(2)
    assert layer.theory(torch.zeros(3, 2, 1))["eta"] == pytest.approx(0.7 / 1.1)
    assert all(type(value) is float for value in found.values())


def test_theory_of_the_adding_problem():
    """eps dt = 0.9 and gamma dt^2 = 0.2376; the mean norm of the default initialisation is 4.5 (simulated)."""
    torch.manual_seed(0)
    norms = []
    for _ in range(20):
        layer = CoRNN(2, 128, dt=0.06, gamma=66.0, epsilon=15.0)
        norms.append(layer.theory(torch.zeros(1, 1, 2))["norm_w"])
    found = layer.theory(torch.zeros(1, 1, 2))
    assert (found["determinant"], found["trace"]) == pytest.approx((0.1, 0.8624))
    assert found["stable"] == 1
    assert np.mean(norms) == pytest.approx(4.5, abs=0.1)
    assert (found["dt"], found["gamma"], found["epsilon"]) == (0.06, 66.0, 15.0)


def test_theory_says_nothing_of_r_where_dt_is_1_or_more():
    for dt in (1.0, 1.5):
        assert math.isnan(CoRNN(1, 3, dt=dt).theory(torch.zeros(1, 1, 1))["r"])


@pytest.mark.parametrize("damping", DAMPINGS)
def test_theory_of_stability_is_that_of_the_step(damping):
    """Determinant, trace and eigenvalues of the linear map that the kernel makes of (y, z) where W = Wz = 0."""
    rng, seen = np.random.default_rng(0), set()
    for _ in range(200):
        dt, gamma, epsilon = rng.uniform(0.1, 1.5), rng.uniform(0, 8), rng.uniform(0, 4)
        layer = CoRNN(1, 1, dt=dt, gamma=gamma, epsilon=epsilon, damping=damping).double()
        # The step from (1, 0) and from (0, 1), less the one from (0, 0): columns of the map.
        zero, ends = torch.zeros(1, 1, dtype=torch.float64), []
        for y, z in ((1.0, 0.0), (0.0, 1.0)):
            _, state = kernels.cornn(zero[None], zero, zero, dt, gamma, epsilon, (zero + y, zero + z), damping)
            ends.append([s.item() for s in state])
        step = np.array(ends).T
        found = layer.theory(zero[None])
        assert found["determinant"] == pytest.approx(np.linalg.det(step))
        assert found["trace"] == pytest.approx(np.trace(step))
        radius = np.abs(np.linalg.eigvals(step)).max()
        if abs(radius - 1) > 1e-9:
            assert found["stable"] == (radius < 1)
            seen.add(found["stable"])
    assert seen == {0.0, 1.0}


def test_theory_follows_what_is_trained():
    layer = CoRNN(1, 3, dt=0.1, train_dynamics="unit")
    with torch.no_grad():
        layer.logarithms["gamma"].copy_(torch.tensor([1.0, 2.0, 6.0]).log())
    found = layer.theory(torch.zeros(1, 1, 1))
    assert found["gamma"] == pytest.approx(3.0)
    assert found["stable"] == 1
    # One unit beyond gamma dt^2 <= 4 - 2 epsilon dt = 3.8 is enough.
    with torch.no_grad():
        layer.logarithms["gamma"][0] = math.log(381.0)
    assert layer.theory(torch.zeros(1, 1, 1))["stable"] == 0
    assert all(type(value) is float for value in found.values())


def test_reads_out_the_last_position():
    torch.manual_seed(0)
    model = Config(hidden=4).build(2, 3)
    x = torch.randn(6, 5, 2)
    sequence, (y, _) = model.layer(x)
    assert isinstance(model.readout, nn.Linear)
    assert torch.equal(model(x), model.readout(y))
    torch.testing.assert_close(y, sequence[-1])
