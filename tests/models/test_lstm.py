import math
import re

import numpy as np
import pytest
import torch

from longwave.models.lstm import LSTM, Config


# The papers say 267k (psMNIST), 116k (noisy CIFAR-10), 67k (adding).
@pytest.mark.parametrize(
    ("hidden", "inputs", "outputs", "parameters"),
    [(128, 1, 10, 68_362), (256, 1, 10, 267_786), (128, 96, 10, 117_002), (128, 2, 1, 67_713)],
)
def test_parameters_are_the_papers(hidden, inputs, outputs, parameters):
    model = Config(hidden=hidden).build(inputs, outputs)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_reads_out_the_last_step():
    torch.manual_seed(0)
    model = Config(hidden=4).build(2, 3)
    x = torch.randn(6, 5, 2)
    output = model(x)
    assert output.shape == (5, 3)
    sequence, (h, _) = model.layer(x)
    assert torch.equal(sequence[-1], h)
    torch.testing.assert_close(output, model.readout(sequence[-1]))
    x[-1] += 1
    assert not torch.allclose(model(x), output)


@pytest.mark.parametrize("options", [{}, {"forget_bias": 1.0}, {"chrono": 30}], ids=str)
def test_equals_torchs(options):
    torch.manual_seed(0)
    ours = Config(hidden=5, **options).build(3, 2).layer
    theirs = torch.nn.LSTM(3, 5)
    theirs.load_state_dict(ours.state_dict())
    x, state = torch.randn(9, 4, 3), (torch.randn(4, 5), torch.randn(4, 5))
    sequence, (h, c) = ours(x, state)
    expected, (expected_h, expected_c) = theirs(x, tuple(s.unsqueeze(0) for s in state))
    for a, b in ((sequence, expected), (h, expected_h[0]), (c, expected_c[0])):
        torch.testing.assert_close(a, b)
    weights = torch.randn(9, 4, 5)
    (sequence * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, dict(theirs.named_parameters())[name].grad)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("T", [1, 17])
def test_equals_a_transcription_of_the_equation(T):
    torch.manual_seed(0)
    layer = LSTM(3, 5).double()
    x = torch.randn(T, 4, 3, dtype=torch.float64)
    w_i, w_h, b_i, b_h = (p.detach().numpy() for p in layer.parameters())
    h, c, expected = np.zeros((4, 5)), np.zeros((4, 5)), []
    for step in x.numpy():
        i, f, g, o = np.split(step @ w_i.T + b_i + h @ w_h.T + b_h, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        expected.append(h)
    sequence, (last, memory) = layer(x)
    np.testing.assert_allclose(sequence.detach().numpy(), np.stack(expected), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(last.detach().numpy(), h, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(memory.detach().numpy(), c, rtol=1e-12, atol=1e-14)


def biases(layer: LSTM) -> dict[str, torch.Tensor]:
    """What is added in each gate, of both biases; the order of the gates is that of torch's documentation."""
    return dict(zip("ifgo", (layer.bias_ih_l0 + layer.bias_hh_l0).detach().chunk(4), strict=True))


def test_forget_bias_changes_nothing_else():
    torch.manual_seed(0)
    plain = Config(hidden=50).build(3, 2)
    torch.manual_seed(0)
    model = Config(hidden=50, forget_bias=1.5).build(3, 2)
    before, after = biases(plain.layer), biases(model.layer)
    assert (after["f"] == 1.5).all()
    for gate in "igo":
        assert torch.equal(after[gate], before[gate])
    for name, value in plain.state_dict().items():
        assert ("bias" in name and "layer" in name) or torch.equal(model.state_dict()[name], value)
    # PyTorch's own are those of torch.nn.LSTM.
    torch.manual_seed(0)
    assert torch.equal(torch.nn.LSTM(3, 50).bias_ih_l0, plain.layer.bias_ih_l0)


@pytest.mark.parametrize("longest", [3, 784])
def test_chrono_remembers_for_times_up_to_the_longest(longest):
    """1 / (1 - f) = 1 + exp(b_f), the time over which a cell remembers, is uniform on [2, T_max], and i = 1 - f."""
    torch.manual_seed(0)
    found = biases(LSTM(3, 2000, chrono=longest))
    times = 1 + found["f"].double().exp()
    assert times.min() >= 2
    assert times.max() <= longest + 1e-3
    # The least and largest of 2,000, their mean and deviation, within the chances of the draw.
    width = longest - 2
    assert times.min() < 2 + 0.01 * width
    assert times.max() > longest - 0.01 * width
    assert times.mean() == pytest.approx(2 + width / 2, abs=5 * width / math.sqrt(12 * 2000))
    assert times.std() == pytest.approx(width / math.sqrt(12), rel=0.05)
    torch.testing.assert_close(found["i"].sigmoid(), 1 - found["f"].sigmoid(), rtol=0, atol=1e-6)
    for gate in "go":
        # PyTorch's two biases U(-k, k), k = 1 / sqrt(h).
        assert 0 < found[gate].abs().max() <= 2 / math.sqrt(2000)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"chrono": 2}, "chrono=2: must be at least 3"),
        ({"chrono": 9, "forget_bias": 1.0}, "forget_bias=1.0: must be null where chrono=9 sets it"),
        ({"hidden": 0}, "hidden=0: must be at least 1"),
    ],
)
def test_what_is_refused(wrong, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Config(**wrong)


@pytest.mark.parametrize("reads", ["last", "every"])
def test_reads_out_the_cell_state(reads):
    torch.manual_seed(0)
    model = Config(hidden=5, readout="cell").build(3, 2).double()
    model.reads = reads
    x = torch.randn(9, 4, 3, dtype=torch.float64)
    state = tuple(torch.randn(4, 5, dtype=torch.float64) for _ in range(2))
    cells, final = [], state
    for step in x:
        _, final = model.layer(step[None], final)
        cells.append(final[1])
    expected = model.readout(torch.stack(cells) if reads == "every" else cells[-1])
    gradients = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    output, end = model.advance(x, state)
    torch.testing.assert_close(output, expected)
    for a, b in zip(end, final, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(torch.autograd.grad(output.square().sum(), list(model.parameters())), gradients)


def test_reads_out_the_cell_state_at_the_end_of_each_sequence():
    torch.manual_seed(0)
    model = Config(hidden=5, readout="cell").build(3, 2)
    x, lengths = torch.randn(6, 2, 3), torch.tensor([4, 6])
    found = model(x, lengths)
    for i, length in enumerate(lengths):
        torch.testing.assert_close(found[i : i + 1], model(x[:length, i : i + 1]))
    assert not torch.allclose(found, Config(hidden=5).build(3, 2)(x, lengths))
