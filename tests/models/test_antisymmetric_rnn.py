import math

import numpy as np
import pytest
import torch

from longwave.models.antisymmetric_rnn import AntisymmetricRNN, Config
from tests.models import checks


@pytest.mark.parametrize(
    ("gated", "inputs", "parameters"),
    [
        # "36k" and "37k", which are quoted for noise-padded CIFAR-10, are those of three inputs, not of its 96.
        (False, 3, 36_234),
        (True, 3, 37_258),
        (False, 96, 60_042),
        (True, 96, 84_874),
    ],
)
def test_parameters(gated, inputs, parameters):
    model = Config(hidden=256, gated=gated).build(inputs, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden", 0, "hidden=0: must be at least 1"),
        ("epsilon", 0.0, "epsilon=0.0: must be greater than 0"),
        ("gamma", -0.1, "gamma=-0.1: must be at least 0"),
    ],
)
def test_values_out_of_range(key, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Config(**{key: value})


@pytest.mark.parametrize("T", [1, 2, 17])
@pytest.mark.parametrize("gated", [False, True])
def test_equals_a_transcription_of_the_equation(T, gated):
    """h += epsilon tanh(A h + V x + b), A antisymmetric but for -gamma I; gated, times sigmoid(A h + U x + c)."""
    torch.manual_seed(0)
    h, B, epsilon, gamma = 5, 4, 0.3, 0.2
    layer = AntisymmetricRNN(3, h, gated=gated, epsilon=epsilon, gamma=gamma).double()
    torch.nn.init.normal_(layer.affine.bias)
    x = torch.randn(T, B, 3, dtype=torch.float64)
    weight, bias = layer.affine.weight.detach().numpy(), layer.affine.bias.detach().numpy()
    entries = iter(layer.upper.tolist())
    matrix = -gamma * np.eye(h)
    for row in range(h):
        for column in range(row + 1, h):
            matrix[row, column] = next(entries)
            matrix[column, row] = -matrix[row, column]
    state, expected = np.zeros((B, h)), []
    for step in x.numpy():
        product, drive = state @ matrix.T, step @ weight.T + bias
        gate = 1 / (1 + np.exp(-(product + drive[:, :h]))) if gated else 1
        state = state + epsilon * gate * np.tanh(product + drive[:, -h:])
        expected.append(state)
    sequence, final = layer(x)
    np.testing.assert_allclose(sequence.detach().numpy(), np.stack(expected), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(final.detach().numpy(), state, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gated", [False, True])
def test_one_sequence_of_one_step_and_one_unit(gated):
    """A single unit has no antisymmetric part, and from zero h_1 = epsilon (gate) tanh(V x + b)."""
    layer = AntisymmetricRNN(2, 1, gated=gated, epsilon=0.3, gamma=0.1)
    assert layer.upper.numel() == 0
    x = torch.randn(1, 1, 2)
    drive = layer.affine(x)[0]
    expected = 0.3 * drive[:, -1:].tanh() * (drive[:, :1].sigmoid() if gated else 1)
    torch.testing.assert_close(layer(x)[0][0], expected)


def test_neither_grows_nor_decays():
    """All eigenvalues of the Jacobian's matrix have the real part -gamma."""
    torch.manual_seed(0)
    layer = AntisymmetricRNN(2, 7, epsilon=0.1, gamma=0.05).double()
    # Linear in the state where tanh is: the response to a tiny state is epsilon A times it.
    states = 1e-6 * torch.eye(7, dtype=torch.float64)
    stepped, _ = layer(torch.zeros(1, 7, 2, dtype=torch.float64), states)
    matrix = ((stepped[0] - states) / (0.1 * 1e-6)).T.detach()
    torch.testing.assert_close(torch.linalg.eigvals(matrix).real, torch.full((7,), -0.05, dtype=torch.float64))


def test_weights_are_all_there_is_to_the_state_dict():
    layer = {"layer.upper", "layer.affine.weight", "layer.affine.bias"}
    assert set(Config(hidden=5).build(2, 1).state_dict()) == layer | {"readout.weight", "readout.bias"}


@pytest.mark.parametrize("gated", [False, True])
def test_gradients_in_double(gated):
    torch.manual_seed(0)
    layer = Config(hidden=4, gated=gated, epsilon=0.4, gamma=0.3).build(2, 1).layer
    checks.has_the_right_gradients(layer, torch.randn(5, 2, 2))


@pytest.mark.parametrize("gated", [False, True])
def test_initialisation(gated):
    torch.manual_seed(0)
    layer = Config(hidden=300, gated=gated).build(30, 1).layer
    for parameter, deviation in ((layer.upper, 1 / math.sqrt(300)), (layer.affine.weight, 1 / math.sqrt(30))):
        assert abs(parameter.std() / deviation - 1) < 0.03
        assert abs(parameter.mean()) < 0.03 * deviation
        assert parameter.abs().max() > 3 * deviation
    assert not layer.affine.bias.any()


def test_learns_to_add():
    """T = 20: the MSE falls from 0.167 to less than 0.03."""
    torch.manual_seed(0)
    model = Config(hidden=32, gated=True, epsilon=0.5).build(2, 1)
    draw, loss = lambda: checks.adding(20), torch.nn.functional.mse_loss
    assert checks.train(model, draw, loss, steps=300, lr=0.02, last=50) < 0.03
