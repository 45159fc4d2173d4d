import numpy as np
import pytest
import torch

from longwave.models.fastgrnn import Config, FastGRNN


@pytest.mark.parametrize(("gated", "own"), [(True, 2 * 64 + 2), (False, 64 + 2)])
def test_parameters(gated, own):
    model = Config(hidden=64, gated=gated).build(9, 1)
    assert sum(p.numel() for p in model.parameters()) == 9 * 64 + 64 * 64 + own + 65


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("T", [1, 17])
@pytest.mark.parametrize("gated", [True, False])
def test_equals_a_transcription_of_the_equation(T, gated):
    torch.manual_seed(0)
    layer = FastGRNN(3, 5, gated=gated).double()
    torch.nn.init.normal_(layer.biases)
    x, h = torch.randn(T, 4, 3, dtype=torch.float64), np.zeros((4, 5))
    w, u, b, (first, second) = (
        p.detach().numpy() for p in (layer.weight_ih, layer.weight_hh, layer.biases, layer.weights)
    )
    first, second, expected = sigmoid(first), sigmoid(second), []
    for step in x.numpy():
        both = step @ w.T + h @ u.T
        if gated:
            z = sigmoid(both + b[0])
            h = (first * (1 - z) + second) * np.tanh(both + b[1]) + z * h
        else:
            h = first * np.tanh(both + b[0]) + second * h
        expected.append(h)
    sequence, final = layer(x)
    np.testing.assert_allclose(sequence.detach().numpy(), np.stack(expected), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(final.detach().numpy(), h, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("gated", "first", "second"), [(True, 0.7311, 0.0180), (False, 0.0474, 0.9526)])
def test_weights_at_the_start(gated, first, second):
    torch.manual_seed(0)
    layer = FastGRNN(3, 200, gated=gated)
    assert layer.weights.sigmoid().tolist() == pytest.approx([first, second], abs=1e-4)
    assert bool((layer.biases == 1).all())
    assert layer.weight_hh.std().item() == pytest.approx(0.1, rel=0.02)
