import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from longwave import kernels
from longwave.models.linoss import SSM, Config, LinOSS, ReleasedBlock, RunningNorm, scan, step
from longwave.tasks.adding import Config as Adding
from longwave.training.optimizers import Optimizer


def loop(M: np.ndarray, f: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x_n = M x_{n-1} + f_n, one step after the other; M (2, 2, N), f (T, B, 2, N), x (B, 2, N)."""
    sequence = []
    for drive in f:
        x = np.einsum("ijn,bjn->bin", M, x) + drive
        sequence.append(x)
    return np.stack(sequence)


def oscillators(ssm: SSM, u: np.ndarray) -> np.ndarray:
    """The layer with complex numbers, each of its two equations solved as the scheme says."""
    A_hat, B, C, D = (p.detach().numpy() for p in (ssm.A_hat, ssm.B, ssm.C, ssm.D))
    P = len(A_hat)
    A, dt = np.maximum(A_hat, 0), np.ones(P) if ssm.s is None else 1 / (1 + np.exp(-ssm.s.detach().numpy()))
    B, C = B[:P] + 1j * B[P:], C[:, :P] - 1j * C[:, P:]
    y = z = np.zeros((u.shape[1], P), complex)
    output = []
    for drive in u:
        if ssm.discretisation == "im":
            # z' = z + dt (B u - A y'), y' = y + dt z', of which y' is taken out.
            z = (z + dt * (drive @ B.T - A * y)) / (1 + dt**2 * A)
        else:
            z = z + dt * (drive @ B.T - A * y)
        y = y + dt * z
        output.append((y @ C.T).real + D * drive)
    return np.stack(output)


def network(config: Config, model, x: np.ndarray) -> np.ndarray:
    """The whole network, dropout off, batch statistics where ``model`` is in training."""
    x = linear(model.layer.encoder, x)
    for block in model.layer.blocks:
        if model.training:
            mean, var = x.mean((0, 1)), x.var((0, 1))
        else:
            mean, var = block.norm.running_mean.numpy(), block.norm.running_var.numpy()
        v = oscillators(block.ssm, (x - mean) / np.sqrt(var + 1e-5))
        v = linear(block.glu, v * 0.5 * (1 + np.vectorize(math.erf)(v / math.sqrt(2))))
        x = x + v[..., : config.hidden] / (1 + np.exp(-v[..., config.hidden :]))
    return linear(model.readout, x.mean(0) if config.pooling == "mean" else x[-1])


def linear(module: nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ module.weight.detach().numpy().T + module.bias.detach().numpy()


@pytest.fixture(params=["cpu", "scan"])
def backend(request, monkeypatch):
    """The C kernel, then what runs where there is none."""
    monkeypatch.setattr(SSM, "backend", request.param)


def perturb_statistics(model):
    for block in model.layer.blocks:
        block.norm.running_mean.normal_()
        block.norm.running_var.uniform_(0.5, 2)


@pytest.mark.parametrize(
    ("config", "inputs", "published"),
    [
        (Config(hidden=128, state=64, blocks=2, discretisation="im"), 7, 134_279),
        (Config(hidden=64, state=16, blocks=2, discretisation="imex"), 7, 26_119),
    ],
)
def test_parameters_are_the_papers(config, inputs, published):
    """On EigenWorms, 5 classes. The published count has the statistics of the batch normalisation in it, a mean and a
    variance for each channel and one more number for each block. That of imex has 7 inputs, a time channel among them,
    though its settings are said to be without."""
    model = config.build(inputs, 5)
    statistics = sum(b.numel() for b in model.buffers())
    assert statistics == config.blocks * (2 * config.hidden + 1)
    assert sum(p.numel() for p in model.parameters()) + statistics == published


def test_a_fixed_step_has_no_parameters():
    def count(**settings):
        return sum(p.numel() for p in Config(state=16, blocks=3, **settings).build(6, 5).parameters())

    assert count(learned_step=True) - count(learned_step=False) == 3 * 16


@pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 7, 8, 31, 64, 101])
def test_scan_equals_the_loop(T):
    rng = np.random.default_rng(T)
    M, f, x = rng.normal(size=(2, 2, 3)) * 0.6, rng.normal(size=(T, 2, 2, 3)), rng.normal(size=(2, 2, 3))
    found = scan(*(torch.from_numpy(a) for a in (M, f, x)))
    np.testing.assert_allclose(found.numpy(), loop(M, f, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("discretisation", ["im", "imex"])
def test_a_long_scan_in_single_precision(discretisation):
    torch.manual_seed(0)
    M, _ = step(*SSM(1, 16, discretisation, learned_step=False).oscillators(), discretisation)
    f = torch.randn(4001, 1, 2, 16)
    found = scan(M, f, torch.zeros(1, 2, 16))
    expected = loop(M.detach().double().numpy(), f.double().numpy(), np.zeros((1, 2, 16)))
    scale = np.abs(expected).max((0, 1))
    assert (np.abs(found.detach().numpy() - expected).max((0, 1)) / scale).max() < 5e-4


@pytest.mark.parametrize("T", [1, 2, 5])
def test_gradients_of_the_scan(T):
    torch.manual_seed(0)
    M = (0.6 * torch.randn(2, 2, 3, dtype=torch.float64)).requires_grad_()
    f = torch.randn(T, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(scan, (M, f, x))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("learned_step", [True, False])
@pytest.mark.parametrize("discretisation", ["im", "imex"])
@pytest.mark.parametrize("T", [1, 2, 17])
def test_equals_a_transcription_of_the_equations(T, discretisation, learned_step):
    torch.manual_seed(0)
    ssm = SSM(5, 4, discretisation, learned_step).double()
    with torch.no_grad():
        # A negative one is no frequency.
        ssm.A_hat[0] = -0.3
    u = torch.randn(T, 3, 5, dtype=torch.float64)
    np.testing.assert_allclose(ssm(u)[0].detach().numpy(), oscillators(ssm, u.numpy()), rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_the_network_equals_a_transcription(pooling, training):
    torch.manual_seed(0)
    config = Config(hidden=6, state=3, blocks=2, dropout=0.0, pooling=pooling)
    model = config.build(2, 4).double().train(training)
    perturb_statistics(model)
    x = torch.randn(9, 3, 2, dtype=torch.float64)
    expected = network(config, model, x.numpy())
    np.testing.assert_allclose(model(x).detach().numpy(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("learned_step", [True, False])
def test_eigenvalues(learned_step):
    """Implicit: |lambda|^2 = 1 / (1 + dt^2 A), dissipative. Symplectic: |lambda| = 1, conservative."""
    torch.manual_seed(0)
    for discretisation in ("im", "imex"):
        ssm = SSM(1, 50, discretisation, learned_step).double()
        M, _ = step(*ssm.oscillators(), discretisation)
        values = np.linalg.eigvals(M.detach().permute(2, 0, 1).numpy())
        dt = np.ones(50) if ssm.s is None else 1 / (1 + np.exp(-ssm.s.detach().numpy()))
        damping = 1 / (1 + dt**2 * ssm.A_hat.detach().numpy()) if discretisation == "im" else np.ones(50)
        np.testing.assert_allclose(np.abs(values) ** 2, np.stack([damping] * 2, 1), rtol=1e-10)


def test_initialisation():
    torch.manual_seed(0)
    ssm = SSM(64, 400, "im", learned_step=True)
    for parameter, low, high in ((ssm.A_hat, 0, 1), (ssm.s, 0, 1), (ssm.B, -1 / 8, 1 / 8), (ssm.C, -1 / 20, 1 / 20)):
        slack = 0.02 * (high - low)
        assert low <= parameter.min() < low + slack
        assert high - slack < parameter.max() <= high
    D = SSM(10_000, 1, "im", learned_step=True).D
    assert D.mean().item() == pytest.approx(0, abs=0.04)
    assert D.std().item() == pytest.approx(1, abs=0.04)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("discretisation", ["im", "imex"])
def test_a_sequence_may_be_cut_and_gone_on_with(discretisation, pooling):
    torch.manual_seed(0)
    model = Config(hidden=6, state=3, discretisation=discretisation, pooling=pooling).build(2, 4).eval()
    perturb_statistics(model)
    layer, x = model.layer, torch.randn(12, 3, 2)
    whole, end = layer(x)
    parts, state = [], None
    for part in x.split([5, 1, 6]):
        sequence, state = layer(part, state)
        parts.append(sequence)
    torch.testing.assert_close(torch.cat(parts), whole)
    for a, b in zip(state, end, strict=True):
        torch.testing.assert_close(a, b)
    assert state[1] == 12
    torch.testing.assert_close(end[0], whole.mean(0) if pooling == "mean" else whole[-1])
    torch.testing.assert_close(model(x), model.readout(end[0]))


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_padding_is_not_read(pooling):
    torch.manual_seed(0)
    model = Config(hidden=6, state=3, pooling=pooling).build(2, 3).eval()
    perturb_statistics(model)
    x, lengths = torch.randn(7, 3, 2), torch.tensor([4, 1, 7])
    expected = torch.cat([model(x[:length, k : k + 1]) for k, length in enumerate(lengths)])
    padded = torch.where(torch.arange(7)[:, None, None] < lengths[:, None], x, float("inf"))
    torch.testing.assert_close(model(x, lengths), expected)
    torch.testing.assert_close(model(padded, lengths), expected)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("discretisation", ["im", "imex"])
def test_gradients_in_double(discretisation):
    torch.manual_seed(0)
    layer = SSM(3, 2, discretisation, learned_step=True).double()
    u = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def call(u, state, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (u, state))

    assert torch.autograd.gradcheck(call, (u, state, *layer.parameters()))


@pytest.mark.usefixtures("backend")
def test_one_step_and_one_sample():
    model = Config(hidden=4, state=3).build(2, 1)
    assert model(torch.randn(1, 3, 2)).shape == (3, 1)
    assert model(torch.randn(5, 1, 2)).shape == (1, 1)
    # One number has no variance: in training too, the running statistics are taken, and stay as they are.
    model, x = Config(hidden=4, state=3, dropout=0.0).build(2, 1), torch.randn(1, 1, 2)
    torch.testing.assert_close(model(x), model.eval()(x))


def test_dropout_is_for_training_only():
    torch.manual_seed(0)
    x = torch.randn(8, 3, 2)
    model = Config(hidden=6, state=3, dropout=0.5).build(2, 1)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.usefixtures("backend")
def test_under_autocast():
    torch.manual_seed(0)
    model = Config(hidden=6, state=3, dropout=0.0).build(2, 1)
    x = torch.randn(8, 3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
        assert model.layer(x)[1][2].dtype == torch.float32
    torch.testing.assert_close(output.float(), model(x), atol=0.1, rtol=0.1)
    output.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("discretisation", ["im", "imex"])
def test_learns(discretisation):
    """The adding problem at T = 12, where predicting 1 always has a loss of 0.167."""
    torch.manual_seed(0)
    model = Config(hidden=16, state=8, discretisation=discretisation).build(2, 1)
    task, losses = Adding(T=12).build(0, None), []
    optimizer = Optimizer(lr=5e-3).build(model)
    for index in range(200):
        x, target = task.batch(index, 32)
        optimizer.zero_grad()
        loss = task.scores(model(x), target)["mse"].mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) / 20 < 0.05


@pytest.mark.usefixtures("backend")
def test_torch_compile():
    torch.manual_seed(0)
    model = Config(hidden=6, state=3, blocks=1, dropout=0.0).build(2, 1)
    x = torch.randn(7, 3, 2)
    parameters = list(model.parameters())
    expected = model(x).square().mean()
    grads = torch.autograd.grad(expected, parameters)
    loss = torch.compile(model, backend="aot_eager", fullgraph=True)(x).square().mean()
    torch.testing.assert_close(loss, expected)
    for a, b in zip(torch.autograd.grad(loss, parameters), grads, strict=True):
        torch.testing.assert_close(a, b)


def test_the_state_dict_has_the_statistics(tmp_path):
    torch.manual_seed(0)
    source, model = (Config(hidden=6, state=3).build(2, 1) for _ in range(2))
    x = torch.randn(8, 3, 2)
    source(x)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    model.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert torch.equal(model.eval()(x), source.eval()(x))


def test_without_a_kernel_it_scans():
    layer = Config(hidden=6, state=3).build(2, 1).layer
    assert layer.backend == kernels.backend_for("linoss", layer.encoder.weight)
    assert layer.to("meta").backend == "scan"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"hidden": 0}, "hidden=0: must be at least 1"),
        ({"state": 0}, "state=0: must be at least 1"),
        ({"blocks": 0}, "blocks=0: must be at least 1"),
        ({"discretisation": "zoh"}, "discretisation=zoh: must be one of im, imex"),
        ({"dropout": 1.0}, "dropout=1.0: must be less than 1"),
        ({"pooling": "max"}, "pooling=max: must be one of mean, last"),
    ],
)
def test_what_is_refused(setting, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Config(**setting)


def test_the_released_block_equals_a_transcription():
    """Three training batches, then evaluation: running averages with momentum 0.99, GELU's tanh form."""
    torch.manual_seed(0)
    config = Config(hidden=6, state=3, blocks=1, dropout=0.0, block="released")
    model = config.build(2, 4).double()
    (block,) = model.layer.blocks
    rng = np.random.default_rng(0)
    mean = var = None
    for batch in range(4):
        model.train(batch < 3)
        x = rng.normal(size=(9, 3, 2)) + batch
        h = linear(model.layer.encoder, x)
        if model.training:
            own = h.mean((0, 1)), h.var((0, 1))
            mean, var = own if mean is None else (0.99 * a + 0.01 * b for a, b in zip((mean, var), own, strict=True))
        v = oscillators(block.ssm, (h - mean) / np.sqrt(var + 1e-5))
        v = 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
        v = linear(block.glu, v)
        h = h + v[..., :6] / (1 + np.exp(-v[..., 6:]))
        expected = linear(model.readout, h.mean(0))
        np.testing.assert_allclose(model(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-9, atol=1e-11)


def test_gradients_of_the_running_averages():
    """Through the hundredth part that a batch has in them; through all of the first."""
    torch.manual_seed(0)
    norm = RunningNorm(2).double()
    x = torch.randn(5, 3, 2, dtype=torch.float64, requires_grad=True)

    def out(tracked: int):
        def function(value):
            with torch.no_grad():
                norm.running_mean.fill_(0.3)
                norm.running_var.fill_(1.7)
                norm.num_batches_tracked.fill_(tracked)
            return norm(value)

        return function

    for tracked in (0, 5):
        assert torch.autograd.gradcheck(out(tracked), (x,))


def test_the_released_block_drops_the_same_of_all_sequences():
    torch.manual_seed(0)
    block = ReleasedBlock(4, SSM(4, 3, "im", True), dropout=0.5)
    mask = block._dropped(torch.ones(7, 5, 4), None)
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    assert (mask == mask[:, :1]).all()
    # Two sequences of 3 and 2 steps as frames.
    frames = block._dropped(torch.ones(5, 4), torch.tensor([0, 0, 1, 1, 2]))
    assert (frames[0] == frames[1]).all()
    assert (frames[2] == frames[3]).all()
    assert (block.eval()._dropped(torch.ones(7, 5, 4), None) == 1).all()


@pytest.mark.parametrize("training", [True, False])
def test_the_released_block_of_a_packed_sequence(training):
    torch.manual_seed(0)
    layer = LinOSS(2, 4, state=3, dropout=0.5, block="released").train(training)
    parts = [torch.randn(length, 2) for length in (5, 3, 3)]
    packed, state = layer(pack_sequence(parts))
    assert packed.data.shape == (11, 4)
    assert state[0].shape == (3, 4)
    if not training:
        for i, part in enumerate(parts):
            alone, _ = layer(part[:, None])
            torch.testing.assert_close(pad_packed_sequence(packed)[0][: len(part), i], alone[:, 0])
