import math

import numpy as np
import pytest
import torch

from longwave.models.eurnn import EURNN, Config
from tests.models.checks import has_the_right_gradients


def layer_and_numbers(hidden: int, **settings):
    """A layer whose every parameter is drawn anew, and its parameters."""
    torch.manual_seed(0)
    layer = EURNN(3, hidden, **settings).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.7)
    return layer, {name: parameter.detach().numpy() for name, parameter in layer.named_parameters()}


def rotated(angles: np.ndarray, hidden: int, pairs: list[tuple[int, int]]) -> np.ndarray:
    """The product of one rotation after the other, of the pairs of units in their order."""
    product = np.eye(hidden)
    for angle, (a, b) in zip(angles, pairs, strict=True):
        rotation = np.eye(hidden)
        rotation[a, a] = rotation[b, b] = math.cos(angle)
        rotation[a, b], rotation[b, a] = -math.sin(angle), math.sin(angle)
        product = rotation @ product
    return product


def neighbours(hidden: int, capacity: int) -> list[tuple[int, int]]:
    return [(a, a + 1) for layer in range(capacity) for a in range(layer % 2, hidden - 1, 2)]


# Of the fast Fourier transform of eight.
FFT = [(0, 4), (1, 5), (2, 6), (3, 7), (0, 2), (1, 3), (4, 6), (5, 7), (0, 1), (2, 3), (4, 5), (6, 7)]


@pytest.mark.parametrize(("hidden", "capacity"), [(1, 1), (2, 1), (2, 2), (5, 1), (5, 2), (5, 5), (6, 4), (8, None)])
@pytest.mark.parametrize("T", [1, 17])
def test_equals_a_transcription_of_the_equation(T, hidden, capacity):
    layer, numbers = layer_and_numbers(hidden, capacity=capacity, fft=capacity is None)
    W = rotated(numbers["angles"], hidden, FFT if capacity is None else neighbours(hidden, capacity))
    np.testing.assert_allclose(layer.matrix().detach().numpy(), W, rtol=0, atol=1e-14)
    x, h, expected = torch.randn(T, 4, 3, dtype=torch.float64), np.zeros((4, hidden)), []
    for step in x.numpy():
        v = h @ W.T + step @ numbers["input.weight"].T
        h = np.sign(v) * np.maximum(np.abs(v) + numbers["bias"], 0)
        expected.append(h)
    sequence, final = layer(x)
    np.testing.assert_allclose(sequence.detach().numpy(), np.stack(expected), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(final.detach().numpy(), h, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("fft", [False, True])
def test_gradients_in_double(fft):
    layer, _ = layer_and_numbers(4, fft=fft)
    has_the_right_gradients(layer, torch.randn(3, 2, 3))


def test_parameters():
    """On HAR-2: two layers of 64 rotations and two of 63."""
    model = Config(hidden=128, capacity=4).build(9, 1)
    assert sum(p.numel() for p in model.parameters()) == 2 * (64 + 63) + 128 * (9 + 1) + 129
    assert EURNN(3, 64, fft=True).angles.numel() == 6 * 32
    assert EURNN(3, 1).angles.numel() == 0


def test_initial_values():
    torch.manual_seed(0)
    model = Config(hidden=128, capacity=4).build(9, 1)
    for parameter in (model.layer.angles, model.layer.input.weight):
        assert 0.009 < parameter.abs().max() <= 0.01
    assert torch.equal(model.layer.bias, torch.full((128,), -0.01))
    assert 0.9 * 0.6**0.5 < model.readout.weight.abs().max() <= 0.6**0.5
    assert model.readout.bias.tolist() == pytest.approx([0.01])
    assert (len(EURNN(3, 128).layers), len(EURNN(3, 1).layers)) == (2, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 5, "capacity": 6}, r"capacity=6: must be at most hidden=5"),
        ({"hidden": 6, "fft": True}, r"hidden=6: must be a power of 2 where fft is true"),
        ({"hidden": 8, "fft": True, "capacity": 2}, r"capacity=2: must be null where fft is true"),
    ],
)
def test_what_must_fail(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)
