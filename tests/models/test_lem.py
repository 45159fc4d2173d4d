import math

import numpy as np
import pytest
import torch

from longwave.models.lem import LEM, Config


@pytest.mark.parametrize(
    ("hidden", "inputs", "outputs", "parameters"),
    [
        (128, 2, 1, 67_713),  # adding, heart rate
        (128, 1, 10, 68_362),  # sMNIST, psMNIST
        (128, 96, 10, 117_002),  # noisy CIFAR-10
        (32, 6, 5, 5_285),  # EigenWorms
        (16, 1, 1, 1_233),  # FitzHugh-Nagumo
        (128, 80, 12, 109_068),  # Google12
    ],
)
def test_parameters_are_the_papers(hidden, inputs, outputs, parameters):
    model = Config(hidden=hidden).build(inputs, outputs)
    assert sum(p.numel() for p in model.parameters()) == parameters


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("T", [1, 2, 17])
def test_equals_a_transcription_of_the_equation(T):
    """Steps D1 and D2 from the old y, then z from the old y, then y from the new z."""
    torch.manual_seed(0)
    inputs, h, B, dt = 3, 5, 4, 0.7
    layer = LEM(inputs, h, dt=dt).double()
    x = torch.randn(T, B, inputs, dtype=torch.float64)
    p = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    of_x, of_y = (np.split(p[f"{name}.weight"], n) for name, n in (("x", 4), ("y", 3)))
    b_x, b_y = (np.split(p[f"{name}.bias"], n) for name, n in (("x", 4), ("y", 3)))
    y, z = np.zeros((B, h)), np.zeros((B, h))
    expected = []
    for step in x.numpy():
        drive = [step @ v.T + b for v, b in zip(of_x, b_x, strict=True)]
        product = [y @ w.T + b for w, b in zip(of_y, b_y, strict=True)]
        d1 = dt * sigmoid(product[0] + drive[0])
        d2 = dt * sigmoid(product[1] + drive[1])
        z = (1 - d2) * z + d2 * np.tanh(product[2] + drive[2])
        y = (1 - d1) * y + d1 * np.tanh(z @ p["z.weight"].T + p["z.bias"] + drive[3])
        expected.append(y)
    sequence, (last_y, last_z) = layer(x)
    np.testing.assert_allclose(sequence.detach().numpy(), np.stack(expected), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(last_y.detach().numpy(), y, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(last_z.detach().numpy(), z, rtol=1e-12, atol=1e-14)


def test_gradients_in_double():
    torch.manual_seed(0)
    layer = LEM(2, 3, dt=0.6).double()
    x = torch.randn(5, 2, 2, dtype=torch.float64, requires_grad=True)
    state = tuple(torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    names = [name for name, _ in layer.named_parameters()]

    def call(x, y, z, *parameters):
        sequence, final = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, (y, z)))
        return sequence, *final

    assert torch.autograd.gradcheck(call, (x, *state, *layer.parameters()))


def test_initialisation():
    """The cell U(-1/sqrt(h), 1/sqrt(h)), biases too; the readout's weight N(0, 2/h), its bias as the cell."""
    torch.manual_seed(0)
    h, bound = 256, 1 / 16
    model = Config(hidden=h).build(2, 500).requires_grad_(False)
    for name, parameter in model.layer.named_parameters():
        assert 0.97 * bound < parameter.abs().max() <= bound, name
        assert parameter.std() == pytest.approx(bound / math.sqrt(3), rel=0.1), name
    assert model.readout.weight.std() == pytest.approx(math.sqrt(2 / h), rel=0.01)
    assert model.readout.weight.abs().max() > 3 * math.sqrt(2 / h)
    assert 0.97 * bound < model.readout.bias.abs().max() <= bound


@pytest.mark.parametrize(
    ("wrong", "message"), [({"dt": 0.0}, "dt=0.0: must be greater than 0"), ({"hidden": 0}, "hidden=0: ")]
)
def test_what_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Config(**wrong)
