import numpy as np
import pytest
import torch

from longwave.models.gru import GRU, Config


# The papers say 201k (psMNIST) and 88k (noisy CIFAR-10).
@pytest.mark.parametrize(
    ("hidden", "inputs", "outputs", "parameters"), [(256, 1, 10, 201_482), (128, 96, 10, 88_074), (128, 2, 1, 50_817)]
)
def test_parameters_are_the_papers(hidden, inputs, outputs, parameters):
    model = Config(hidden=hidden).build(inputs, outputs)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_equals_torchs():
    torch.manual_seed(0)
    ours = Config(hidden=5).build(3, 2).layer
    theirs = torch.nn.GRU(3, 5)
    theirs.load_state_dict(ours.state_dict())
    x, state = torch.randn(9, 4, 3), torch.randn(4, 5)
    sequence, h = ours(x, state)
    expected, expected_h = theirs(x, state.unsqueeze(0))
    torch.testing.assert_close(sequence, expected)
    torch.testing.assert_close(h, expected_h[0])
    weights = torch.randn(9, 4, 5)
    (sequence * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, dict(theirs.named_parameters())[name].grad)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("T", [1, 17])
def test_equals_a_transcription_of_the_equation(T):
    """The reset gate acts on the product and its bias; the update gate keeps."""
    torch.manual_seed(0)
    layer = GRU(3, 5).double()
    x = torch.randn(T, 4, 3, dtype=torch.float64)
    w_i, w_h, b_i, b_h = (np.split(p.detach().numpy(), 3) for p in layer.parameters())
    h, expected = np.zeros((4, 5)), []
    for step in x.numpy():
        drive = [step @ w.T + b for w, b in zip(w_i, b_i, strict=True)]
        product = [h @ w.T + b for w, b in zip(w_h, b_h, strict=True)]
        r, u = sigmoid(drive[0] + product[0]), sigmoid(drive[1] + product[1])
        h = (1 - u) * np.tanh(drive[2] + r * product[2]) + u * h
        expected.append(h)
    sequence, last = layer(x)
    np.testing.assert_allclose(sequence.detach().numpy(), np.stack(expected), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(last.detach().numpy(), h, rtol=1e-12, atol=1e-14)


def test_what_is_refused():
    with pytest.raises(ValueError, match="hidden=0: must be at least 1"):
        Config(hidden=0)
