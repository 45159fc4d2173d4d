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
    sequence, _ = model.layer(x)
    torch.testing.assert_close(output, model.readout(sequence[-1]))
    x[-1] += 1
    assert not torch.allclose(model(x), output)
