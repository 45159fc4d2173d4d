import numpy as np
import pytest
import torch

from longwave.models.rnn import RNN, Config


def test_parameters():
    """With torch's two biases; IndRNN's paper counts 16k for the adding problem."""
    model = Config(hidden=128).build(2, 1)
    assert sum(p.numel() for p in model.parameters()) == 2 * 128 + 128 * 128 + 2 * 128 + 129


def test_equals_torchs():
    torch.manual_seed(0)
    ours = Config(hidden=5).build(3, 2).layer
    theirs = torch.nn.RNN(3, 5)
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


@pytest.mark.parametrize("T", [1, 17])
def test_equals_a_transcription_of_the_equation(T):
    torch.manual_seed(0)
    layer = RNN(3, 5).double()
    x = torch.randn(T, 4, 3, dtype=torch.float64)
    w_i, w_h, b_i, b_h = (p.detach().numpy() for p in layer.parameters())
    h, expected = np.zeros((4, 5)), []
    for step in x.numpy():
        h = np.tanh(step @ w_i.T + b_i + h @ w_h.T + b_h)
        expected.append(h)
    sequence, last = layer(x)
    np.testing.assert_allclose(sequence.detach().numpy(), np.stack(expected), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(last.detach().numpy(), h, rtol=1e-12, atol=1e-14)


def test_what_is_refused():
    with pytest.raises(ValueError, match="hidden=0: must be at least 1"):
        Config(hidden=0)
