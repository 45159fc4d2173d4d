import math

import numpy as np
import pytest
import torch

from longwave.models.exprnn import Config, ExpRNN
from longwave.tasks.adding import Config as Adding
from longwave.training.optimizers import Optimizer
from tests.test_resume import assert_same, die_and_resume, outcome


def exponential(matrix: np.ndarray) -> np.ndarray:
    """expm of a skew-symmetric matrix: i times it is Hermitian."""
    values, vectors = np.linalg.eigh(1j * matrix)
    return ((vectors * np.exp(-1j * values)) @ vectors.conj().T).real


def skew(triangle: np.ndarray, h: int) -> np.ndarray:
    upper = np.zeros((h, h))
    upper[np.triu_indices(h, 1)] = triangle
    return upper - upper.T


def far_from_orthogonal(B: torch.Tensor) -> float:
    B = B.detach().double()
    return (B.T @ B - torch.eye(len(B), dtype=torch.float64)).abs().max().item()


def train(model, steps: int, **optimizer) -> list[float]:
    """Steps on the adding problem at T = 8; gives the losses."""
    task, losses = Adding(T=8).build(0, None), []
    optimizer = Optimizer(**(optimizer or {"name": "rmsprop", "lr": 0.01})).build(model)
    for step in range(steps):
        x, target = task.batch(step, 32)
        optimizer.zero_grad()
        loss = task.scores(model(x), target)["mse"].mean()
        loss.backward()
        optimizer.step()
        model.after_step(step + 1)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("hidden", "parameters"), [(170, 16_415), (360, 68_950), (512, 136_970)])
@pytest.mark.parametrize("mode", ["exprnn", "dtriv"])
def test_parameters_are_the_papers(hidden, parameters, mode):
    """16k, 69k and 137k on MNIST."""
    model = Config(hidden=hidden, mode=mode).build(1, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("h", [1, 2, 5, 6])
@pytest.mark.parametrize("T", [1, 2, 17])
def test_equals_a_transcription_of_the_equation(T, h):
    """h_n = modReLU(K x_n + h_{n-1} B), B = base expm(A), modReLU(v) = sign(v) relu(|v| + b)."""
    torch.manual_seed(0)
    inputs, batch = 3, 4
    layer = ExpRNN(inputs, h, mode="dtriv").double()
    torch.nn.init.normal_(layer.A)
    torch.nn.init.normal_(layer.bias, std=0.3)
    torch.nn.init.orthogonal_(layer.base)
    x = torch.randn(T, batch, inputs, dtype=torch.float64)
    A, bias, base, K = (t.detach().numpy() for t in (layer.A, layer.bias, layer.base, layer.input.weight))
    B = base @ exponential(skew(A, h))
    np.testing.assert_allclose(layer.matrix().detach().numpy(), B, rtol=0, atol=1e-13)
    state, expected = np.zeros((batch, h)), []
    for step in x.numpy():
        v = step @ K.T + state @ B
        state = np.sign(v) * np.maximum(np.abs(v) + bias, 0)
        expected.append(state)
    sequence, final = layer(x)
    np.testing.assert_allclose(sequence.detach().numpy(), np.stack(expected), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(final.detach().numpy(), state, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("mode", ["exprnn", "dtriv"])
def test_gradients_in_double(mode):
    torch.manual_seed(0)
    layer = ExpRNN(2, 5, mode=mode).double()
    if mode == "dtriv":
        torch.nn.init.orthogonal_(layer.base)
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def call(x, state, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, state))

    assert torch.autograd.gradcheck(call, (x, state, *layer.parameters()))


@pytest.mark.parametrize("hidden", [200, 201])
def test_initialisation(hidden):
    """A is zero but for 2 x 2 blocks on the diagonal; an odd unit at the end has none."""
    torch.manual_seed(0)
    inside = {}
    for kind in ("cayley", "henaff"):
        layer = ExpRNN(50, hidden, initialisation=kind)
        A = skew(layer.A.detach().numpy(), hidden)
        inside[kind] = A[range(0, 199, 2), range(1, 200, 2)]
        for i in range(0, 199, 2):
            A[i, i + 1] = A[i + 1, i] = 0
        assert not A.any()
        assert layer.base is None
        assert layer.bias.abs().max() <= 0.01
        assert layer.bias.abs().max() > 0.009
        assert layer.input.bias is None
        assert layer.input.weight.std().item() == pytest.approx(math.sqrt(2 / 50), rel=0.03)
    # -sqrt((1 - cos t) / (1 + cos t)) = -tan(t / 2)
    t = -2 * np.arctan(inside["cayley"])
    assert 0 <= t.min() < 0.1 < math.pi / 2 - 0.1 < t.max() <= math.pi / 2
    assert t.mean() == pytest.approx(math.pi / 4, abs=0.15)
    assert -math.pi <= inside["henaff"].min() < -2.7 < 2.7 < inside["henaff"].max() <= math.pi


@pytest.mark.parametrize("initialisation", ["cayley", "henaff"])
@pytest.mark.parametrize("mode", ["exprnn", "dtriv"])
def test_the_matrix_stays_orthogonal(mode, initialisation):
    torch.manual_seed(0)
    model = Config(hidden=15, mode=mode, period=3, initialisation=initialisation).build(2, 1)
    start = model.layer.matrix().detach()
    assert far_from_orthogonal(start) < 5e-6
    train(model, 20)
    end = model.layer.matrix().detach()
    assert far_from_orthogonal(end) < 1e-5
    assert (end - start).abs().max() > 1e-2
    # A rotation: the exponential reaches no reflections.
    assert torch.linalg.det(end.double()).item() == pytest.approx(1, abs=1e-5)


def test_under_autocast_the_matrix_stays_orthogonal():
    model = Config(hidden=15, mode="dtriv").build(2, 1)
    torch.nn.init.orthogonal_(model.layer.base)
    with torch.autocast("cpu", torch.bfloat16):
        B = model.layer.matrix()
        model(torch.randn(4, 3, 2)).sum().backward()
    assert B.dtype == torch.float32
    assert far_from_orthogonal(B) < 5e-6
    assert model.layer.A.grad.dtype == torch.float32


def test_the_base_starts_at_the_matrix():
    """As the released code moves it at the first forward pass: the function is expRNN's, its gradient is at A = 0."""
    layers = []
    for mode in ("exprnn", "dtriv"):
        torch.manual_seed(0)
        layers.append(ExpRNN(2, 9, mode=mode))
    static, moved = layers
    assert not moved.A.any()
    assert moved.A.requires_grad
    assert torch.equal(moved.base, static.matrix())
    assert torch.equal(moved.matrix(), static.matrix())


def test_the_base_moves_and_the_function_does_not():
    torch.manual_seed(0)
    model = Config(hidden=9, mode="dtriv", period=3, projection_period=2).build(2, 1)
    layer, x = model.layer, torch.randn(6, 4, 2)
    start = layer.base.clone()
    train(model, 2)
    assert torch.equal(layer.base, start)
    # As a fourth step would leave it.
    with torch.no_grad():
        layer.A += 0.1 * torch.randn_like(layer.A)
    before, B = model(x), layer.matrix().detach()
    for step in (1, 2, 4, 5, 100):
        model.after_step(step)
        assert torch.equal(layer.base, start), step
        assert layer.A.any()
    model.after_step(3)
    assert torch.equal(layer.base, B)
    assert not layer.A.any()
    assert torch.equal(model(x), before)
    assert layer.A.requires_grad
    train(model, 1)
    assert layer.A.any()
    assert layer.A.grad.any()


def test_every_so_many_moves_the_base_is_projected():
    """On the nearest orthogonal matrix, the polar factor; here Q, of Q P with P positive."""
    torch.manual_seed(0)
    layer = Config(hidden=9, mode="dtriv", period=3, projection_period=2).build(2, 1).layer
    Q = torch.linalg.qr(torch.randn(9, 9)).Q
    P = torch.eye(9) + 0.01 * torch.ones(9, 9)
    for step, projected in ((3, False), (6, True), (9, False), (12, True), (13, None)):
        with torch.no_grad():
            layer.base.copy_(Q @ P)
            layer.A.zero_()
        layer.after_step(step)
        torch.testing.assert_close(layer.base, Q if projected else Q @ P, atol=1e-5, rtol=0)


def test_expRNN_has_no_base():
    model = Config(hidden=6).build(2, 1)
    A = model.layer.A.detach().clone()
    model.after_step(100)
    assert torch.equal(model.layer.A, A)
    assert "layer.base" not in model.state_dict()


def test_the_matrix_learns_at_a_tenth_of_the_rate():
    model = Config(hidden=5).build(2, 1)
    optimizer = Optimizer(name="rmsprop", lr=7e-4).build(model)
    rest, orthogonal = optimizer.param_groups
    assert [p is model.layer.A for p in orthogonal["params"]] == [True]
    assert (rest["lr"], orthogonal["lr"]) == pytest.approx((7e-4, 7e-5))
    names = {name for name, p in model.named_parameters() if any(p is q for q in rest["params"])}
    assert names == {"layer.input.weight", "layer.bias", "readout.weight", "readout.bias"}
    other = Config(hidden=5, orthogonal_lr=0.02).build(2, 1)
    assert Optimizer(lr=0.1).build(other).param_groups[1]["lr"] == pytest.approx(0.002)


@pytest.mark.parametrize("mode", ["exprnn", "dtriv"])
def test_learns_what_is_not_linear(mode):
    """Predicting 1 always has a loss of 0.167, and the best linear map of the whole sequence of 0.125."""
    torch.manual_seed(0)
    model = Config(hidden=16, mode=mode, period=20, initialisation="henaff").build(2, 1)
    losses = train(model, 400, name="adam", lr=0.03)
    assert sum(losses[-20:]) / 20 < 0.07


def test_resuming_dtriv(fit_here, tmp_path, monkeypatch):
    """Bit for bit: it dies after the base has moved, at step 2, and before it moves and is projected, at step 4."""
    arguments = (
        "model=exprnn", "model.mode=dtriv", "model.period=2", "model.projection_period=2", "task.T=6", "model.hidden=5",
        "training.batch_size=2", "task.test_samples=10", "training.steps=7", "training.evaluate_every=3",
        "training.target=null", "optimizer=rmsprop", "optimizer.lr=0.03", "training.checkpoint_seconds=0",
    )  # fmt: skip
    whole = outcome(fit_here(*arguments)[1])
    assert not torch.equal(whole["saved"]["model"]["layer.base"], torch.eye(5))
    folder = die_and_resume(fit_here, arguments, tmp_path / "died", 3, monkeypatch)
    assert_same(outcome(folder), whole)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"hidden": 0}, "hidden=0: must be at least 1"),
        ({"mode": "triv"}, "mode=triv: must be one of exprnn, dtriv"),
        ({"initialisation": "eye"}, "initialisation=eye: must be one of cayley, henaff"),
        ({"period": 0}, "period=0: must be at least 1"),
        ({"projection_period": 0}, "projection_period=0: must be at least 1"),
        ({"orthogonal_lr": 0.0}, "orthogonal_lr=0.0: must be greater than 0"),
        ({"orthogonal_lr": float("nan")}, "orthogonal_lr=nan: must be finite"),
    ],
)
def test_what_is_refused(setting, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Config(**setting)
