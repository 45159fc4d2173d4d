import numpy as np
import pytest
import torch

from longwave.models.spectral_rnn import Config, SpectralRNN
from tests.models.checks import has_the_right_gradients


def layer_and_numbers(hidden: int, **settings):
    """A layer whose every parameter is drawn anew, and its parameters as matrices: u_i is the i-th row of U."""
    torch.manual_seed(0)
    layer = SpectralRNN(3, hidden, **settings).double()
    numbers = {}
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            numbers[name] = parameter.normal_().numpy()
    for name in "UV":
        if name in numbers:
            rows = np.zeros((layer.reflectors, hidden))
            rows[np.triu_indices(layer.reflectors, 0, hidden)] = numbers[name]
            numbers[name] = rows
    return layer, numbers


def reflected(rows: np.ndarray) -> np.ndarray:
    """(I - 2 u_1 u_1^T / |u_1|^2) ... (I - 2 u_m u_m^T / |u_m|^2), one after the other."""
    product = np.eye(rows.shape[1])
    for u in rows:
        product = product @ (np.eye(len(u)) - 2 * np.outer(u, u) / (u @ u))
    return product


@pytest.mark.parametrize("orthogonal", [False, True])
def test_parameters(orthogonal):
    """On HAR-2 with 16 reflections: the first has 128 entries, the last 113."""
    model = Config(hidden=128, reflectors=16, orthogonal=orthogonal).build(9, 1)
    vectors = sum(range(113, 129))
    found = sum(p.numel() for p in model.parameters())
    assert found == (vectors if orthogonal else 2 * vectors + 128) + 128 * 10 + 129


def test_initial_values():
    torch.manual_seed(0)
    model = Config(hidden=128, reflectors=16).build(9, 1)
    layer = model.layer
    for parameter, ends in ((layer.U, 128 + 16), (layer.V, 128 + 16), (layer.input.weight, 128 + 9)):
        bound = (6 / ends) ** 0.5
        assert 0.95 * bound < parameter.abs().max() <= bound
    assert not layer.p.any()
    assert not layer.input.bias.any()
    assert 0.07 < model.readout.weight.std() < 0.11
    assert model.readout.weight.abs().max() <= 0.2


@pytest.mark.parametrize(("hidden", "reflectors"), [(1, 1), (2, 2), (5, 1), (5, 3), (5, 5)])
@pytest.mark.parametrize("T", [1, 17])
@pytest.mark.parametrize("orthogonal", [False, True])
def test_equals_a_transcription_of_the_equation(T, hidden, reflectors, orthogonal):
    settings = {"orthogonal": True} if orthogonal else {"margin": 0.3}
    layer, numbers = layer_and_numbers(hidden, reflectors=reflectors, slope=0.1, **settings)
    W = reflected(numbers["U"])
    if not orthogonal:
        sigma = 1 + 0.6 * (1 / (1 + np.exp(-numbers["p"])) - 0.5)
        W = W @ np.diag(sigma) @ reflected(numbers["V"]).T
    np.testing.assert_allclose(layer.matrix().detach().numpy(), W, rtol=0, atol=1e-13)
    x, h, expected = torch.randn(T, 4, 3, dtype=torch.float64), np.zeros((4, hidden)), []
    for step in x.numpy():
        v = h @ W.T + step @ numbers["input.weight"].T + numbers["input.bias"]
        h = np.where(v > 0, v, 0.1 * v)
        expected.append(h)
    sequence, final = layer(x)
    np.testing.assert_allclose(sequence.detach().numpy(), np.stack(expected), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(final.detach().numpy(), h, rtol=1e-10, atol=1e-12)


def test_equals_torchs_relu_rnn_and_householder_product():
    layer, numbers = layer_and_numbers(5, reflectors=3, orthogonal=True)
    # LAPACK's reflections I - tau v v^T have a first entry of 1.
    first = np.diag(numbers["U"])[:, None]
    vectors = torch.from_numpy((numbers["U"] / first).T.copy())
    tau = torch.from_numpy(2 * first[:, 0] ** 2 / (numbers["U"] ** 2).sum(1))
    W = torch.linalg.householder_product(torch.cat([vectors, vectors.new_zeros(5, 2)], 1), tau)
    torch.testing.assert_close(layer.matrix(), W, rtol=0, atol=1e-13)
    rnn = torch.nn.RNN(3, 5, nonlinearity="relu").double()
    with torch.no_grad():
        rnn.weight_ih_l0.copy_(layer.input.weight)
        rnn.weight_hh_l0.copy_(W)
        rnn.bias_ih_l0.copy_(layer.input.bias)
        rnn.bias_hh_l0.zero_()
    x = torch.randn(17, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[0], rnn(x)[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_gradients_in_double(orthogonal):
    settings = {"orthogonal": True} if orthogonal else {"margin": 0.3}
    layer, _ = layer_and_numbers(4, reflectors=3, slope=0.1, **settings)
    has_the_right_gradients(layer, torch.randn(3, 2, 3))


def test_singular_values_stay_within_the_margin():
    layer, numbers = layer_and_numbers(6, reflectors=2, margin=0.3)
    found = torch.linalg.svdvals(layer.matrix()).detach().numpy()
    sigma = 1 + 0.6 * (1 / (1 + np.exp(-numbers["p"])) - 0.5)
    np.testing.assert_allclose(found, np.sort(sigma)[::-1], rtol=1e-12)
    with torch.no_grad():
        layer.p.copy_(torch.tensor([-1e3, 1e3, 0, 0, 0, 0]))
    found = torch.linalg.svdvals(layer.matrix())
    assert (found.max().item(), found.min().item()) == pytest.approx((1.3, 0.7), abs=1e-12)
    exact = SpectralRNN(3, 6, reflectors=2, margin=0.0).double().matrix()
    torch.testing.assert_close(exact @ exact.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_scaling_the_vectors_leaves_the_matrix(orthogonal):
    layer, _ = layer_and_numbers(6, reflectors=4, orthogonal=orthogonal)
    before = layer.matrix()
    layer.after_step(1)
    torch.testing.assert_close(layer.matrix(), before, rtol=0, atol=1e-13)
    for packed in (layer.U,) if orthogonal else (layer.U, layer.V):
        assert layer._rows(packed).norm(dim=1).tolist() == pytest.approx([1] * 4)


def test_reflections_by_default_and_at_most():
    assert [SpectralRNN(3, hidden).reflectors for hidden in (1, 7, 128)] == [1, 1, 32]
    with pytest.raises(ValueError, match=r"reflectors=6: must be at most hidden=5"):
        Config(hidden=5, reflectors=6)


def test_an_orthogonal_matrix_has_no_margin():
    with pytest.raises(ValueError, match=r"^margin=0\.3: must be 0\.01, the default, where orthogonal is true"):
        Config(orthogonal=True, margin=0.3)


@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_is_rounded(dtype, orthogonal):
    layer, _ = layer_and_numbers(6, reflectors=4, orthogonal=orthogonal)
    layer.to(dtype)
    rounded, x = layer.matrix(), torch.randn(5, 2, 3, dtype=dtype)
    sequence, _ = layer(x)
    layer.double()
    assert rounded.dtype == sequence.dtype == dtype
    exact = layer.matrix()
    assert (rounded - exact).abs().max() < 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(sequence.double(), layer(x.double())[0], rtol=0.1, atol=0.1)
