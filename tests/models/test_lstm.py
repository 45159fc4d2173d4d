import pytest
import torch

from models.lstm import Config


@pytest.mark.parametrize(("hidden", "parameters"), [(128, 68_362), (256, 267_786)])
def test_parameters_are_the_papers(hidden, parameters):
    model = Config(hidden=hidden).build(1, 10)
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


def test_equals_torchs():
    torch.manual_seed(0)
    ours = Config(hidden=5).build(3, 2).layer
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
