import math
import re

import numpy as np
import pytest
import torch
from torch import nn

import kernels
from models.cornn import DAMPINGS, PARAMETRISATIONS, Config, CoRNN


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
    layer = CoRNN(inputs, h, dt, gamma, epsilon, parametrisation=parametrisation, damping=damping).double()
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


@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_gradients_in_double(parametrisation, damping):
    """Of everything, dt, gamma and epsilon included."""
    torch.manual_seed(0)
    options = {"parametrisation": parametrisation, "damping": damping, "train_dynamics": True}
    layer = CoRNN(2, 3, 0.3, 1.5, 0.7, **options).double()
    x = torch.randn(5, 2, 2, dtype=torch.float64, requires_grad=True)
    state = tuple(torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    names = [name for name, _ in layer.named_parameters()]
    assert {"raw.dt", "raw.gamma", "raw.epsilon"} <= set(names)

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
    layer = CoRNN(2, 128, 0.1, 1.0, 1.0, parametrisation=parametrisation)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}
    assert parameters.keys() == FAN_IN[parametrisation].keys()
    for name, parameter in parameters.items():
        bound = 1 / math.sqrt(FAN_IN[parametrisation][name])
        assert 0.95 * bound < parameter.abs().max() <= bound
        assert parameter.std() == pytest.approx(bound / math.sqrt(3), rel=0.15)


@pytest.mark.parametrize(("dt", "gamma", "epsilon"), [(0.016, 94.5, 9.5), (0.042, 2.7, 4.7), (0.9, 0.01, 1e-3)])
def test_trained_dynamics_start_where_they_are_configured(dt, gamma, epsilon):
    torch.manual_seed(0)
    fixed = Config(hidden=6, dt=dt, gamma=gamma, epsilon=epsilon).build(2, 1)
    torch.manual_seed(0)
    trained = Config(hidden=6, dt=dt, gamma=gamma, epsilon=epsilon, train_dynamics=True).build(2, 1)
    assert [v.item() for v in trained.layer.dynamics()] == pytest.approx([dt, gamma, epsilon], rel=1e-6)
    assert fixed.layer.dynamics() == (dt, gamma, epsilon)
    x = torch.randn(9, 4, 2)
    torch.testing.assert_close(trained(x), fixed(x))
    assert sum(p.numel() for p in trained.parameters()) == sum(p.numel() for p in fixed.parameters()) + 3


def test_trained_dynamics_move_and_stay_in_their_bounds():
    torch.manual_seed(0)
    layer = CoRNN(2, 4, 0.1, 1.0, 1.0, train_dynamics=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    before = torch.stack(layer.dynamics()).detach()
    layer(torch.randn(20, 8, 2))[0].square().sum().backward()
    optimizer.step()
    assert (torch.stack(layer.dynamics()) != before).all()
    for far in (-10.0, 10.0):
        for raw in layer.raw.values():
            raw.data.fill_(far)
        dt, gamma, epsilon = layer.dynamics()
        assert 0 < dt < 1
        assert min(gamma, epsilon) > 0


def test_trained_dynamics_are_not_decayed():
    model = Config(hidden=3, train_dynamics=True).build(2, 1)
    rest, own = model.groups()
    assert [id(p) for p in own.parameters] == [id(p) for p in model.layer.raw.values()]
    assert (own.lr, own.weight_decay) == (1.0, 0.0)
    assert len(list(rest.parameters)) + 3 == len(list(model.parameters()))
    assert len(Config(hidden=3).build(2, 1).groups()) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"parametrisation": "joint"}, "parametrisation=joint: must be one of concatenated, separate, recurrent"),
        ({"damping": "none"}, "damping=none: must be one of explicit, implicit"),
        ({"train_dynamics": True, "dt": 1.0}, "dt=1.0: must be from 1e-06 to 1 - 1e-06 where train_dynamics=true"),
        ({"train_dynamics": True, "gamma": 0.0}, "gamma=0.0: must be 1e-06 or more where train_dynamics=true"),
        ({"train_dynamics": True, "epsilon": 0.0}, "epsilon=0.0: must be 1e-06 or more where train_dynamics=true"),
        ({"dt": 0.0}, "dt=0.0: must be > 0"),
        ({"gamma": -1.0}, "gamma=-1.0: must be >= 0"),
    ],
)
def test_what_is_refused(wrong, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Config(**wrong)


def test_what_is_only_refused_where_it_is_trained():
    Config(dt=1.5, gamma=0.0, epsilon=0.0)


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_theory_of_known_matrices(parametrisation):
    layer = CoRNN(1, 2, 0.1, 1.0, 1.0, parametrisation=parametrisation)
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
        layer = CoRNN(2, 128, 0.06, 66.0, 15.0)
        norms.append(layer.theory(torch.zeros(1, 1, 2))["norm_w"])
    found = layer.theory(torch.zeros(1, 1, 2))
    assert (found["determinant"], found["trace"]) == pytest.approx((0.1, 0.8624))
    assert found["stable"] == 1
    assert np.mean(norms) == pytest.approx(4.5, abs=0.1)
    assert (found["dt"], found["gamma"], found["epsilon"]) == (0.06, 66.0, 15.0)


def test_theory_says_nothing_of_r_where_dt_is_1_or_more():
    for dt in (1.0, 1.5):
        assert math.isnan(CoRNN(1, 3, dt, 1.0, 1.0).theory(torch.zeros(1, 1, 1))["r"])


@pytest.mark.parametrize("damping", DAMPINGS)
def test_theory_of_stability_is_that_of_the_step(damping):
    """Determinant, trace and eigenvalues of the linear map that the kernel makes of (y, z) where W = Wz = 0."""
    rng, seen = np.random.default_rng(0), set()
    for _ in range(200):
        dt, gamma, epsilon = rng.uniform(0.1, 1.5), rng.uniform(0, 8), rng.uniform(0, 4)
        layer = CoRNN(1, 1, dt, gamma, epsilon, damping=damping).double()
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
    layer = CoRNN(1, 3, 0.1, 1.0, 1.0, train_dynamics=True)
    with torch.no_grad():
        layer.raw["dt"].fill_(0.0)
    found = layer.theory(torch.zeros(1, 1, 1))
    assert found["dt"] == 0.5
    assert not any(isinstance(value, torch.Tensor) for value in found.values())


def test_reads_out_the_last_position():
    torch.manual_seed(0)
    model = Config(hidden=4).build(2, 3)
    x = torch.randn(6, 5, 2)
    sequence, (y, _) = model.layer(x)
    assert isinstance(model.readout, nn.Linear)
    assert torch.equal(model(x), model.readout(y))
    torch.testing.assert_close(y, sequence[-1])
