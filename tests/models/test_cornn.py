import math

import numpy as np
import pytest
import torch

from models.cornn import Config, CoRNN


@pytest.mark.parametrize(
    ("hidden", "inputs", "outputs", "parameters"),
    [(128, 2, 1, 33_281), (256, 1, 10, 134_154), (128, 1, 10, 34_314), (64, 9, 1, 8_897)],
)
def test_parameters_are_the_papers(hidden, inputs, outputs, parameters):
    model = Config(hidden=hidden).build(inputs, outputs)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("T", [1, 2, 17])
def test_equals_a_transcription_of_the_equation(T):
    """z += dt (tanh(W y + Wz z + V x + b) - gamma y - epsilon z), then y += dt z, with one affine map on [x, z, y]."""
    torch.manual_seed(0)
    inputs, h, B, dt, gamma, epsilon = 3, 5, 4, 0.3, 1.7, 0.4
    layer = CoRNN(inputs, h, dt, gamma, epsilon).double()
    x = torch.randn(T, B, inputs, dtype=torch.float64)
    weight, bias = layer.affine.weight.detach().numpy(), layer.affine.bias.detach().numpy()
    y, z = np.zeros((B, h)), np.zeros((B, h))
    expected = []
    for step in x.numpy():
        force = np.tanh(np.concatenate([step, z, y], axis=1) @ weight.T + bias)
        z = z + dt * (force - gamma * y - epsilon * z)
        y = y + dt * z
        expected.append(y)
    sequence, (last_y, last_z) = layer(x)
    np.testing.assert_allclose(sequence.detach().numpy(), np.stack(expected), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(last_y.detach().numpy(), y, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(last_z.detach().numpy(), z, rtol=1e-12, atol=1e-14)


def test_a_sequence_may_be_cut_and_gone_on_with():
    torch.manual_seed(0)
    layer = CoRNN(2, 7, 0.1, 1.0, 1.0)
    x = torch.randn(12, 3, 2)
    whole, _ = layer(x)
    first, state = layer(x[:5])
    second, _ = layer(x[5:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)


def test_gradients_in_double():
    torch.manual_seed(0)
    layer = CoRNN(2, 3, 0.3, 1.5, 0.7).double()
    x = torch.randn(5, 2, 2, dtype=torch.float64, requires_grad=True)
    state = tuple(torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    names = [name for name, _ in layer.named_parameters()]

    def call(x, y, z, *parameters):
        sequence, final = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, (y, z)))
        return sequence, *final

    assert torch.autograd.gradcheck(call, (x, *state, *layer.parameters()))


def test_initialisation_is_that_of_one_linear_map():
    torch.manual_seed(0)
    layer = CoRNN(2, 128, 0.1, 1.0, 1.0)
    bound = 1 / math.sqrt(2 + 2 * 128)
    for parameter in layer.parameters():
        assert parameter.abs().max() <= bound
        assert parameter.abs().max() > 0.97 * bound
