import math

import numpy as np
import pytest
import torch

from longwave.models.unicornn import Config, UnICORNNLayer
from tests.models import checks


@pytest.mark.parametrize(
    ("hidden", "layers", "inputs", "outputs", "parameters"),
    [
        (256, 3, 1, 10, 136_202),  # psMNIST
        (128, 3, 1, 10, 35_338),
        (128, 3, 96, 10, 47_498),  # noise-padded CIFAR-10
        (32, 2, 6, 5, 1_573),  # EigenWorms
        (128, 3, 2, 1, 34_305),  # respiratory and heart rate
        (128, 2, 100, 1, 30_081),  # IMDB, behind the embedding
    ],
)
def test_parameters_are_the_papers(hidden, layers, inputs, outputs, parameters):
    model = Config(hidden=hidden, layers=layers).build(inputs, outputs)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden", 0, "hidden=0: must be at least 1"),
        ("layers", 0, "layers=0: must be at least 1"),
        ("dt", 0, "dt=0: must be a number greater than 0 and at most 100, or a list of one for each layer"),
        ("dt", "fast", "dt=fast: must be a number"),
        ("dt", True, "dt=true: must be a number"),
        ("dt", None, "dt=null: must be a number"),
        ("dt", math.inf, "dt=inf: must be finite"),
        ("dt", [0.1, -0.1, 0.1], r"dt=\[0.1, -0.1, 0.1\]: must be a number greater than 0"),
        ("dt", [0.1, 0.2], r"dt=\[0.1, 0.2\]: must be one number, or a list of 3 \(layers=3\)"),
        ("dt", [], r"dt=\[\]: must be one number, or a list of 3"),
        ("alpha", -1.0, "alpha=-1.0: must be at least 0"),
        ("dropout", 1.0, "dropout=1.0: must be less than 1"),
        ("anchor", -1, "anchor=-1: must be at least 0"),
        ("dt_spread", 0.5, "dt_spread=0.5: must be at least 1"),
        ("dt_spread", math.inf, "dt_spread=inf: must be finite"),
        ("input_initialisation", "broad", "input_initialisation=broad: must be one of released, wide"),
        ("output", "velocity", "output=velocity: must be one of position, deviation"),
    ],
)
def test_values_out_of_range(key, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Config(**{key: value})


def test_dt_is_one_number_or_one_for_each_layer():
    assert Config(dt=1).dt == 1.0
    assert isinstance(Config(dt=1).dt, float)
    assert [layer.dt for layer in Config(layers=3, dt=0.2).build(2, 1).layer.layers] == [0.2, 0.2, 0.2]
    assert [layer.dt for layer in Config(layers=2, dt=[2.81e-5, 1]).build(2, 1).layer.layers] == [2.81e-5, 1.0]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def transcribed(model, x, alpha, steps, residual=False):
    """z -= d (tanh(w y + V y_below + b) + alpha y), then y += d z, with d = dt sigmoid(c); layer by layer."""
    values = {name: value.detach().numpy() for name, value in model.layer.named_parameters()}
    below = x.numpy()
    for index, dt in enumerate(steps):
        weight, bias, w, c = (values[f"layers.{index}.{name}"] for name in ("affine.weight", "affine.bias", "w", "c"))
        y = z = np.zeros((below.shape[1], len(w)))
        d, sequence = dt * sigmoid(c), []
        for step in below:
            z = z - d * (np.tanh(w * y + step @ weight.T + bias) + alpha * y)
            y = y + d * z
            sequence.append(y)
        below = np.stack(sequence) + (below if residual and index else 0)
    return below


@pytest.mark.parametrize("T", [1, 2, 17])
@pytest.mark.parametrize("residual", [False, True])
def test_equals_a_transcription_of_the_equation(T, residual):
    torch.manual_seed(0)
    steps = [0.9, 0.3, 1.4]
    model = Config(hidden=5, layers=3, dt=steps, alpha=0.7, residual=residual).build(3, 2).double().eval()
    torch.nn.init.normal_(model.layer.layers[1].affine.bias)
    x = torch.randn(T, 4, 3, dtype=torch.float64)
    expected = transcribed(model, x, 0.7, steps, residual)
    sequence, (end, finals) = model.layer(x)
    np.testing.assert_allclose(sequence.detach().numpy(), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(end.detach().numpy(), expected[-1], rtol=1e-12, atol=1e-14)
    assert [tuple(part.shape for part in final) for final in finals] == [((4, 5), (4, 5))] * 3
    readout = expected[-1] @ model.readout.weight.detach().numpy().T + model.readout.bias.detach().numpy()
    np.testing.assert_allclose(model(x).detach().numpy(), readout, rtol=1e-12, atol=1e-14)


def test_one_sequence_of_one_step():
    """From zero, y_1 = -d^2 tanh(V x + b)."""
    layer = UnICORNNLayer(2, 3, 0.5, 10.0)
    x = torch.randn(1, 1, 2)
    sequence, _ = layer(x)
    d = 0.5 * layer.c.sigmoid()
    torch.testing.assert_close(sequence[0], -(d**2) * layer.affine(x[0]).tanh())


@pytest.mark.parametrize("residual", [False, True])
def test_gradients_in_double(residual):
    torch.manual_seed(0)
    model = Config(hidden=3, layers=2, dt=[0.9, 1.7], alpha=1.2, dropout=0, residual=residual, anchor=2).build(2, 1)
    checks.has_the_right_gradients(model.layer, torch.randn(5, 2, 2))


def test_initialisation():
    torch.manual_seed(0)
    model = Config(hidden=400, layers=2).build(30, 50)
    for layer, inputs in zip(model.layer.layers, (30, 400), strict=True):
        for parameter, low, high in (
            (layer.w, 0, 1),
            (layer.c, -0.1, 0.1),
            (layer.affine.weight, -math.sqrt(6 / (65 * inputs)), math.sqrt(6 / (65 * inputs))),
        ):
            near = 0.02 * (high - low)
            assert low <= parameter.min() < low + near
            assert high - near < parameter.max() <= high
            assert abs(parameter.mean() - (low + high) / 2) < 0.1 * (high - low)
        assert not layer.affine.bias.any()
    assert abs(model.readout.weight.std() / math.sqrt(2 / 400) - 1) < 0.02
    assert model.readout.weight.abs().max() > 3 * math.sqrt(2 / 400)
    assert not model.readout.bias.any()


def test_spread_and_wide_initialisation():
    torch.manual_seed(0)
    model = Config(hidden=2000, layers=1, dt=0.5, dt_spread=100.0, input_initialisation="wide").build(2, 1)
    layer = model.layer.layers[0]
    d = (layer.dt * layer.c.sigmoid()).log10()
    low, high = math.log10(0.005), math.log10(0.5)
    assert low - 0.001 < d.min() < low + 0.02
    assert high - 0.02 < d.max() < high
    assert abs(d.mean() - (low + high) / 2) < 0.05
    for parameter in (layer.affine.weight, layer.affine.bias):
        assert 2.9 < parameter.abs().max() <= 3
        assert abs(parameter.std() - math.sqrt(3)) < 0.1


def test_the_new_options_are_off_by_default():
    weights = []
    for options in ({}, {"dt_spread": 1.0, "input_initialisation": "released", "output": "position"}):
        torch.manual_seed(0)
        weights.append(Config(hidden=5, **options).build(2, 1).state_dict())
    assert list(weights[0]) == list(weights[1])
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    # Drawn first, and in the same order, so that a wide start has the same w.
    torch.manual_seed(0)
    other = Config(hidden=5, layers=1, dt_spread=10, input_initialisation="wide").build(2, 1).state_dict()
    torch.manual_seed(0)
    plain = Config(hidden=5, layers=1).build(2, 1).state_dict()
    assert torch.equal(other["layer.layers.0.w"], plain["layer.layers.0.w"])


def deviating(**options):
    torch.manual_seed(0)
    return Config(hidden=3, layers=2, dt=[0.9, 1.7], alpha=1.2, dropout=0, output="deviation", **options).build(2, 1)


def test_a_deviation_is_from_the_response_to_the_mean_input():
    model = deviating().double()
    layer, x = model.layer.layers[0], torch.randn(7, 4, 2, dtype=torch.float64)
    layer(x)
    torch.testing.assert_close(layer.mean, x.mean((0, 1)))
    layer(x + 1)
    torch.testing.assert_close(layer.mean, x.mean((0, 1)) + 0.5)
    mean = layer.mean.clone()
    model.eval()
    sequence, final = layer(x)
    assert torch.equal(layer.mean, mean)
    torch.testing.assert_close(sequence[-1], final[0])
    plain = UnICORNNLayer(2, 3, 0.9, 1.2).double()
    plain.load_state_dict(dict(layer.named_parameters()))
    torch.testing.assert_close(sequence, plain(x)[0] - plain(mean.expand(7, 1, 2))[0])
    # A constant mean input deviates by nothing.
    assert not layer(mean.expand(7, 1, 2))[0].any()


def test_deviations_may_be_cut_and_resumed():
    model, x = deviating(residual=True).double(), torch.randn(9, 4, 2, dtype=torch.float64)
    model(x)
    model.eval()
    whole, _ = model.advance(x)
    _, state = model.advance(x[:4])
    torch.testing.assert_close(model.advance(x[4:], state)[0], whole)


def test_gradients_of_deviations_in_double():
    model = deviating(anchor=2, dt_spread=3, input_initialisation="wide")
    model(torch.randn(5, 4, 2))
    checks.has_the_right_gradients(model.layer.eval(), torch.randn(5, 2, 2))


def test_the_readout_of_deviations_is_standardised():
    model, x = deviating(), torch.randn(5, 400, 2)
    features = model.readout.standardise(model.layer(x)[1][0])
    torch.testing.assert_close(features.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.var(0, unbiased=False), torch.ones(3))
    model.reads = "every"
    assert model(x).shape == (5, 400, 1)
    # One sample has no variance: it is standardised by the running means, in training too.
    model.reads = "last"
    assert model(x[:, :1]).isfinite().all()
    mode = model.eval()
    torch.testing.assert_close(mode(x)[:3], mode(x[:, :3]))


def test_theory_of_deviations_changes_nothing():
    model, x = deviating(), torch.randn(5, 4, 2)
    model(x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.layer.theory(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_learns_to_tell_two_tones_apart():
    """Half a sequence of one of two tones, then noise: the loss falls from log 2 = 0.69 to less than 0.1."""
    torch.manual_seed(0)
    n = torch.arange(30).unsqueeze(1)

    def draw():
        label = torch.randint(0, 2, (32,))
        tone = torch.sin((0.3 + 0.3 * label) * n) * (n < 15)
        return (tone + 0.3 * torch.randn(30, 32)).unsqueeze(-1), label

    model = Config(hidden=16, layers=2, dt=0.5, alpha=1.0).build(1, 2)
    loss = checks.train(model, draw, torch.nn.functional.cross_entropy, steps=100, lr=0.01, last=25)
    assert loss < 0.1


def test_theory_gives_stability_and_drift_of_every_layer():
    torch.manual_seed(0)
    model = Config(hidden=6, layers=2, dt=[0.19, 1.0], alpha=30.65, dropout=0.5).build(3, 2)
    x = torch.randn(40, 5, 3)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    found = model.layer.theory(x)
    each = ("least_stability", "stability", "inversion_drift")
    assert list(found) == [f"{name}_{layer}" for layer in (1, 2) for name in each]
    assert all(type(value) is float for value in found.values())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for index, dt in enumerate([0.19, 1.0]):
        w, c = weights[f"layer.layers.{index}.w"].numpy(), weights[f"layer.layers.{index}.c"].numpy()
        expected = (dt * sigmoid(c)) ** 2 * (w + 30.65)
        assert found[f"stability_{index + 1}"] == pytest.approx(max(expected), rel=1e-5)
        assert found[f"least_stability_{index + 1}"] == pytest.approx(min(expected), rel=1e-5)
    # The published steps are far from 4.
    assert 0.2 < found["stability_1"] < 0.4
    assert found["stability_2"] > 4


def test_a_negative_w_is_seen():
    model = Config(hidden=3, layers=1, dt=1.0, alpha=0.0).build(3, 2)
    torch.nn.init.constant_(model.layer.layers[0].w[1:2], -0.5)
    found = model.layer.theory(torch.randn(4, 2, 3))
    assert found["least_stability_1"] < 0 < found["stability_1"]


def test_theory_reaches_the_layer_above_through_the_one_below():
    """The drift of the second layer is that of its own inputs, with and without residual."""
    torch.manual_seed(0)
    x = torch.randn(30, 4, 3)
    for residual in (False, True):
        model = Config(hidden=6, layers=3, dt=1.0, alpha=1.0, residual=residual).build(3, 2)
        layers = model.layer.layers
        first, _ = layers[0](x)
        second, _ = layers[1](first)
        third_input = first + second if residual else second
        with torch.no_grad():
            assert model.layer.theory(x)["inversion_drift_3"] == layers[2].inversion_drift(third_input)


def drift(layer, x):
    """The definition, in NumPy and float32: forward, then y -= d z and z += d (tanh(w y + pre) + alpha y) backwards."""
    pre = layer.affine(x).detach().numpy()
    w, d = layer.w.detach().numpy(), (layer.dt * layer.c.sigmoid()).detach().numpy()
    alpha = np.float32(layer.alpha)
    states = [np.zeros((2, *pre.shape[1:]), np.float32)]
    for drive in pre:
        y, z = states[-1]
        z = z - d * (np.tanh(w * y + drive) + alpha * y)
        states.append(np.stack([y + d * z, z]))
    y, z = states[-1]
    worst = 0.0
    for drive, (true_y, true_z) in zip(pre[::-1], states[-2::-1], strict=True):
        y = y - d * z
        z = z + d * (np.tanh(w * y + drive) + alpha * y)
        worst = max(worst, np.abs(y - true_y).max(), np.abs(z - true_z).max())
    return worst


def test_inversion_drift_is_that_of_float32():
    torch.manual_seed(0)
    layer, x = UnICORNNLayer(3, 64, 0.19, 30.65), torch.randn(784, 2, 3)
    with torch.no_grad():
        # 1e-6 in y and 5e-6 in z were measured for these constants.
        assert 1e-6 < layer.inversion_drift(x) < 2e-5
        assert layer.inversion_drift(x) == pytest.approx(drift(layer, x), rel=0.7)
        # In float32, whatever the type of the weights.
        assert 1e-6 < layer.double().inversion_drift(x.double()) < 2e-5
        # One step is undone but for the rounding of its length.
        assert layer.float().inversion_drift(x[:1]) < 1e-8


def test_inversion_drift_grows_without_a_restoring_force():
    torch.manual_seed(0)
    x = torch.randn(2000, 1, 1)
    held, free = UnICORNNLayer(1, 32, 0.0343, 30.0), UnICORNNLayer(1, 32, 0.0343, 0.0)
    free.load_state_dict(held.state_dict())
    for layer in (held, free):
        layer.affine.weight.data.mul_(10)
        layer.affine.bias.data.fill_(1.0)
    with torch.no_grad():
        assert free.inversion_drift(x) > 3 * held.inversion_drift(x)
