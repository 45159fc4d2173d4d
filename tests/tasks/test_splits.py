"""Random splits: their sizes, and the very samples, which records name by a hash."""

import pytest
import torch

from longwave.tasks.splits import hold_out

# Samples of the data set, held out, and the first of both parts for seed 0.
DRAWN = {
    "MNIST": (60_000, 3_000, [7843, 35029, 42556, 17691], [32167, 32514, 8821, 37095]),
    "HAR-2": (7_352, 1_470, [5107, 221, 576, 7023], [2570, 5184, 1988, 3695]),
    "IMDB": (25_000, 7_500, [7843, 4861, 20260, 12112], [5572, 19027, 4543, 16488]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_first_indices(name):
    count, held, train, validation = DRAWN[name]
    parts = hold_out(count, held, 0)
    assert (len(parts["train"]), len(parts["validation"])) == (count - held, held)
    assert parts["train"][:4].tolist() == train
    assert parts["validation"][:4].tolist() == validation
    assert torch.equal(torch.cat(list(parts.values())).sort().values, torch.arange(count))
    assert not torch.equal(parts["validation"], hold_out(count, held, 1)["validation"])
