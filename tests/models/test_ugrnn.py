import numpy as np
import pytest
import torch

from longwave.models.ugrnn import UGRNN, Config


def test_parameters():
    model = Config(hidden=64).build(9, 1)
    assert sum(p.numel() for p in model.parameters()) == 2 * (9 * 64 + 64 * 64 + 64) + 65


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("T", [1, 17])
def test_equals_a_transcription_of_the_equation(T):
    torch.manual_seed(0)
    layer = UGRNN(3, 5).double()
    torch.nn.init.normal_(layer.bias)
    x, h, expected = torch.randn(T, 4, 3, dtype=torch.float64), np.zeros((4, 5)), []
    w, u, b = (p.detach().numpy() for p in (layer.weight_ih, layer.weight_hh, layer.bias))
    for step in x.numpy():
        g = sigmoid(step @ w[:5].T + h @ u[:5].T + b[:5])
        h = g * h + (1 - g) * np.tanh(step @ w[5:].T + h @ u[5:].T + b[5:])
        expected.append(h)
    sequence, final = layer(x)
    np.testing.assert_allclose(sequence.detach().numpy(), np.stack(expected), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(final.detach().numpy(), h, rtol=1e-12, atol=1e-14)


def test_equals_a_gru_whose_reset_gate_is_open():
    torch.manual_seed(0)
    layer, gru = UGRNN(3, 5).double(), torch.nn.GRU(3, 5).double()
    with torch.no_grad():
        for ours, theirs in ((layer.weight_ih, gru.weight_ih_l0), (layer.weight_hh, gru.weight_hh_l0)):
            theirs[:5] = 0
            theirs[5:] = ours
        gru.bias_hh_l0.zero_()
        gru.bias_ih_l0[:5] = 40  # the sigmoid of which is 1 in float64
        gru.bias_ih_l0[5:] = layer.bias
    x = torch.randn(17, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[0], gru(x)[0], rtol=1e-12, atol=1e-14)


def test_the_gate_starts_open():
    assert UGRNN(3, 2).bias.tolist() == [1, 1, 0, 0]
