import math

import numpy as np
import pytest
import torch

from longwave.models.indrnn import Config, IndRNNLayer
from longwave.training.optimizers import Optimizer
from tests.models import checks


def test_parameters_are_the_papers():
    model = Config(hidden=128, layers=2).build(2, 1)
    assert sum(p.numel() for p in model.parameters()) == 17_281  # "17K"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hidden": 0}, "hidden=0: must be at least 1"),
        ({"layers": 0}, "layers=0: must be at least 1"),
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"magnitude": 0.0}, "magnitude=0.0: must be greater than 0"),
        ({"magnitude": 0.99, "long_memory": True}, "magnitude=0.99: must be greater than 1 where long_memory is true"),
        ({"norm": "batch"}, "norm=batch: must be one of after, before, none"),
        ({"dropout": 1.0}, "dropout=1.0: must be less than 1"),
    ],
)
def test_values_out_of_range(keys, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Config(**keys)


def normalised(frames, values, prefix, training):
    if training:
        mean, variance = frames.mean((0, 1)), frames.var((0, 1))
    else:
        mean, variance = values[f"{prefix}norm.running_mean"], values[f"{prefix}norm.running_var"]
    scaled = (frames - mean) / np.sqrt(variance + 1e-5)
    return scaled * values[f"{prefix}norm.weight"] + values[f"{prefix}norm.bias"]


def transcribed(model, x, layers, norm, training):
    """h = relu(W x + b + u h), then, or before it, batch normalisation over all T * B frames; layer by layer."""
    values = {name: value.clone().numpy() for name, value in model.layer.state_dict().items()}
    below = x.numpy()
    for index in range(layers):
        prefix = f"layers.{index}."
        drive = below @ values[f"{prefix}affine.weight"].T + values[f"{prefix}affine.bias"]
        if norm == "before":
            drive = normalised(drive, values, prefix, training)
        h, sequence = 0, []
        for step in drive:
            h = np.maximum(step + values[f"{prefix}u"] * h, 0)
            sequence.append(h)
        below = np.stack(sequence)
        if norm == "after":
            below = normalised(below, values, prefix, training)
    return below, h


@pytest.mark.parametrize("T", [1, 2, 17])
@pytest.mark.parametrize("norm", ["after", "before", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_equals_a_transcription_of_the_equation(T, norm, training):
    torch.manual_seed(0)
    model = Config(hidden=5, layers=2, norm=norm).build(3, 2).double().train(training)
    for name, value in model.state_dict().items():
        if "running" in name or "norm.weight" in name:
            value.uniform_(0.5, 2)
        elif name.endswith("bias"):
            value.normal_()
    x = torch.randn(T, 4, 3, dtype=torch.float64)
    expected, h = transcribed(model, x, 2, norm, training)
    sequence, (end, finals) = model.layer(x)
    np.testing.assert_allclose(sequence.detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(end.detach().numpy(), expected[-1], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(finals[1][1].detach().numpy(), h, rtol=1e-10, atol=1e-12)


def test_one_sequence_of_one_step():
    x = torch.randn(1, 1, 2)
    layer = IndRNNLayer(2, 3, 1.0)
    torch.testing.assert_close(layer(x)[0], layer.affine(x).relu())
    layer = IndRNNLayer(2, 3, 1.0, norm="after")
    # One number has no variance: in training too, the running statistics are taken, and stay as they are.
    for _ in range(2):
        torch.testing.assert_close(layer(x)[0], layer.affine(x).relu() / math.sqrt(1 + 1e-5))
        layer.eval()


@pytest.mark.parametrize("norm", ["after", "before", "none"])
def test_gradients_in_double(norm):
    torch.manual_seed(0)
    layer = Config(hidden=3, norm=norm).build(2, 1).layer
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            # With bias 0, the layer above a silent one is at the kink of its relu.
            torch.nn.init.normal_(parameter)
    checks.has_the_right_gradients(layer, torch.randn(5, 2, 2))


def test_initialisation():
    torch.manual_seed(0)
    model = Config(hidden=400, layers=3, magnitude=2.0, steps=10, norm="after", long_memory=True).build(30, 50)
    bound = 2 ** (1 / 10)
    for index, layer in enumerate(model.layer.layers):
        limit = math.sqrt(6 / (65 * (400 if index else 30)))
        smallest = 1 / bound if index == 2 else 0
        for parameter, low, high in ((layer.u, smallest, bound), (layer.affine.weight, -limit, limit)):
            near = 0.02 * (high - low)
            assert low <= parameter.min() < low + near
            assert high - near < parameter.max() <= high
            assert abs(parameter.mean() - (low + high) / 2) < 0.1 * (high - low)
        assert not layer.affine.bias.any()
        assert torch.equal(layer.norm.weight, torch.ones(400))
        assert not layer.norm.bias.any()
    assert abs(model.readout.weight.std() / math.sqrt(2 / 400) - 1) < 0.02
    assert model.readout.weight.abs().max() > 3 * math.sqrt(2 / 400)
    assert not model.readout.bias.any()


def test_the_top_layer_begins_as_the_others_do_unless_told():
    torch.manual_seed(0)
    layers = Config(hidden=400, layers=2, magnitude=2.0, steps=10).build(2, 1).layer.layers
    assert all(layer.u.min() < 0.02 for layer in layers)


@pytest.mark.parametrize(("magnitude", "steps", "bound"), [(2.0, 784, 1.0008845), (0.99, 1, 0.99), (5.0, 4, 1.495349)])
def test_u_stays_within_its_bound(magnitude, steps, bound):
    model = Config(hidden=4, magnitude=magnitude, steps=steps).build(2, 1)
    for sign in (1, -1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(100.0 * sign)
        model.after_step(1)
        for layer in model.layer.layers:
            torch.testing.assert_close(layer.u.detach(), torch.full((4,), sign * bound), rtol=1e-6, atol=0)
            assert (layer.affine.weight == 100.0 * sign).all()


def test_u_and_biases_have_no_weight_decay():
    model = Config(layers=2, norm="after").build(2, 1)
    names = {id(p): name for name, p in model.named_parameters()}
    decay = {
        names[id(p)]: group["weight_decay"]
        for group in Optimizer(weight_decay=1e-4).build(model).param_groups
        for p in group["params"]
    }
    assert decay.keys() == set(names.values())
    free = {name for name, value in decay.items() if value == 0}
    layer = {"affine.bias", "u", "norm.bias"}
    assert free == {f"layer.layers.{index}.{name}" for index in (0, 1) for name in layer} | {"readout.bias"}
    assert {value for name, value in decay.items() if name not in free} == {1e-4}


def test_learns_to_add():
    """T = 20: the MSE falls from 0.167 to less than 0.03."""
    torch.manual_seed(0)
    model = Config(hidden=32, magnitude=2.0, steps=20, norm="after").build(2, 1)
    draw, loss = lambda: checks.adding(20), torch.nn.functional.mse_loss
    assert checks.train(model, draw, loss, steps=250, lr=0.01, last=50) < 0.03
