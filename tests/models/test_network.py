"""What a task may ask of any model: every step, lengths, an embedding, a state that is carried on."""

import pytest
import torch
from torch import nn

from longwave.models.cornn import CoRNN
from longwave.models.lstm import LSTM
from longwave.models.network import Network

LAYERS = {"cornn": lambda: CoRNN(2, 5, dt=0.5), "lstm": lambda: LSTM(2, 5)}


@pytest.fixture(params=LAYERS)
def model(request) -> Network:
    torch.manual_seed(0)
    return Network(LAYERS[request.param](), nn.Linear(5, 3))


@pytest.mark.parametrize(("T", "B"), [(1, 1), (7, 3)])
def test_every_step_is_read(model, T, B):
    x = torch.randn(T, B, 2)
    last = model(x)
    assert last.shape == (B, 3)
    model.reads = "every"
    every = model(x)
    assert every.shape == (T, B, 3)
    torch.testing.assert_close(every[-1], last)
    for t in range(T):
        model.reads = "last"
        torch.testing.assert_close(every[t], model(x[: t + 1]))


def test_each_sample_is_read_where_it_ends(model):
    lengths = torch.tensor([4, 1, 7])
    x = torch.randn(7, 3, 2)
    found = model(x, lengths)
    for sample, length in enumerate(lengths):
        torch.testing.assert_close(found[sample], model(x[:length, sample : sample + 1])[0])
    # What pads a sample has no effect, nor a gradient.
    padded = torch.where(torch.arange(7)[:, None, None] < lengths[:, None], x, 1e3).requires_grad_()
    output = model(padded, lengths)
    torch.testing.assert_close(output, found)
    output.sum().backward()
    for sample, length in enumerate(lengths):
        assert (padded.grad[length:, sample] == 0).all()
        assert padded.grad[length - 1, sample].abs().sum() > 0


def test_an_embedding_comes_first_and_is_trained(model):
    words = torch.tensor([[0, 3], [1, 1]])
    torch.manual_seed(1)
    model.embedding = nn.Embedding(4, 2)
    assert model(words).shape == (2, 3)
    vectors = model.embedding(words)
    found = model(words)
    assert "embedding.weight" in model.state_dict()
    assert any(p is model.embedding.weight for p in model.groups()[0].parameters)
    found.sum().backward()
    assert (model.embedding.weight.grad.abs().sum(1) > 0).tolist() == [True, True, False, True]
    model.embedding = None
    assert torch.equal(model(vectors), found)
    assert "embedding.weight" not in model.state_dict()


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_a_carried_state_goes_on(model, cut):
    model.reads = "every"
    x = torch.randn(9, 3, 2)
    whole, final = model.advance(x)
    first, state = model.advance(x[:cut])
    second, last = model.advance(x[cut:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    for a, b in zip(last, final, strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.allclose(model.advance(x[cut:])[0], second)
