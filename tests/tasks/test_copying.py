import math

import pytest
import torch

from longwave.tasks.copying import Config


@pytest.mark.parametrize(("K", "L", "alphabet"), [(10, 1000, 8), (1, 1, 1), (3, 7, 5)])
def test_the_symbols_come_back_at_the_end(K, L, alphabet):
    task = Config(K=K, L=L, alphabet=alphabet).build(0, None)
    x, target = task.batch(0, 6)
    assert (task.inputs, task.outputs, task.read) == (alphabet + 2, alphabet + 1, "every")
    assert x.shape == (L + 2 * K, 6, alphabet + 2)
    assert target.shape == (L + 2 * K, 6)
    assert (x.sum(-1) == 1).all()
    read = x.argmax(-1)
    symbols = read[:K]
    assert symbols.min() >= 1
    assert symbols.max() <= alphabet
    # Blanks, the marker after L of them, and K - 1 more.
    assert (read[K : K + L] == 0).all()
    assert (read[K + L] == alphabet + 1).all()
    assert (read[K + L + 1 :] == 0).all()
    assert (target[: K + L] == 0).all()
    assert torch.equal(target[K + L :], symbols)


def test_all_symbols_come():
    _, target = Config(K=50, L=1).build(0, None).batch(0, 50)
    counts = target[-50:].flatten().bincount(minlength=9)
    assert counts[0] == 0
    assert (counts[1:] > 200).all()


def test_guessing_scores_the_baseline():
    task = Config(test_samples=300).build(0, None)
    sums = {"cross_entropy": [], "accuracy": []}
    for x, target in task.evaluation("test"):
        output = torch.full((*x.shape[:2], 9), -1e4)
        output[:-10, :, 0] = 1e4
        output[-10:, :, 1:] = 0
        for key, values in task.scores(output, target).items():
            sums[key].append(values.flatten())
    means = {key: torch.cat(values).mean().item() for key, values in sums.items()}
    assert torch.cat(sums["accuracy"]).shape == (3000,)
    assert means["cross_entropy"] == pytest.approx(task.baseline["cross_entropy"])
    assert means["cross_entropy"] == pytest.approx(10 * math.log(8) / 1020)
    assert means["accuracy"] == pytest.approx(task.baseline["accuracy"], abs=0.02)


def test_batches_by_seed_and_step_and_one_test_set():
    one, two = Config(L=5, test_samples=7).build(0, None), Config(L=5, test_samples=7).build(1, None)
    assert torch.equal(one.batch(3, 4)[0], one.batch(3, 4)[0])
    assert not torch.equal(one.batch(3, 4)[0], one.batch(4, 4)[0])
    assert not torch.equal(one.batch(3, 4)[0], two.batch(3, 4)[0])
    [(x, _)], [(same, _)] = one.evaluation("test"), two.evaluation("test")
    assert torch.equal(x, same)
    assert x.shape[1] == 7
    batches = [len(t[0]) for _, t in Config(test_samples=500).build(0, None).evaluation("test")]
    assert batches == [196, 196, 108]
    assert one.steps_per_epoch(4) is None


def test_an_lstm_learns_it(fit_here):
    objective, _ = fit_here(
        "model=lstm", "task=copying", "task.K=1", "task.L=2", "task.alphabet=3", "task.test_samples=100",
        "model.hidden=16", "training.steps=300", "optimizer.lr=0.02", "training.evaluate_every=300",
    )  # fmt: skip
    assert objective < 0.05 < math.log(3) / 4


def test_refuses():
    for key in ("K", "L", "alphabet", "test_samples"):
        with pytest.raises(ValueError, match=f"{key}=0: must be at least 1"):
            Config(**{key: 0})
