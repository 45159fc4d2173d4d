import hashlib

import pytest
import torch

from longwave.tasks.adding import Adding, Config


def adding(seed=0, **options) -> Adding:
    return Config(**options).build(seed, None)


@pytest.mark.parametrize("T", [2, 3, 100, 501])
def test_batch_is_the_adding_problem(T):
    x, target = adding(T=T).batch(0, 400)
    assert x.shape == (T, 400, 2)
    assert target.shape == (400,)
    values, markers = x.unbind(-1)
    assert ((values >= 0) & (values < 1)).all()
    assert ((markers == 0) | (markers == 1)).all()
    # One marker in each half, and the target is the sum of what they mark.
    assert (markers[: T // 2].sum(0) == 1).all()
    assert (markers[T // 2 :].sum(0) == 1).all()
    torch.testing.assert_close((values * markers).sum(0), target)


# The positions that the first and the second marker may take, written out.
RANGES = {
    ("cornn", 11): (range(5), range(5, 11)),
    ("nnrnn", 11): (range(5), range(6, 11)),
    ("nnrnn", 10): (range(5), range(5, 10)),
    ("scornn", 11): (range(5), range(5, 11)),
    ("scornn", 10): (range(4), range(4, 10)),
    ("scornn", 3): (range(1), range(1, 3)),
}


@pytest.mark.parametrize(("protocol", "T"), RANGES)
def test_markers_reach_every_position_of_their_range_and_no_other(protocol, T):
    x, _ = adding(T=T, protocol=protocol, train_samples=0, test_samples=1).batch(0, 4000)
    frequency = x[..., 1].mean(1)
    expected = torch.zeros(T)
    for positions in RANGES[protocol, T]:
        expected[list(positions)] = 1 / len(positions)
    torch.testing.assert_close(frequency, expected, atol=0.03, rtol=0)
    assert (frequency[expected == 0] == 0).all()


def test_a_batch_depends_on_seed_and_step_only():
    one, two = adding(3, T=20), adding(3, T=20)
    two.batch(0, 5)
    for a, b in zip(one.batch(7, 5), two.batch(7, 5), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.batch(7, 5)[0], one.batch(8, 5)[0])
    assert not torch.equal(one.batch(7, 5)[0], adding(4, T=20).batch(7, 5)[0])


def test_the_default_draws_what_it_always_drew():
    """The batches of runs that are on record."""
    task = adding(T=9)
    digests = [hashlib.sha256(x.numpy().tobytes()).hexdigest()[:16] for x, _ in (task.batch(3, 4), *evaluated(task))]
    assert digests == ["a43f266dced84add", "7d3f46ad319f3f32"]
    assert task.split_id == "adding/halves/T=9/test=1000"


def evaluated(task):
    return list(task.evaluation("test"))


def test_the_test_set_is_fixed_whole_and_no_training_batch():
    task = adding(T=2000)
    batches = evaluated(task)
    x = torch.cat([x for x, _ in batches], dim=1)
    assert x.shape == (2000, 1000, 2)
    assert len(batches) > 1
    again = torch.cat([x for x, _ in evaluated(adding(5, T=2000))], dim=1)
    assert torch.equal(x, again)
    assert not torch.equal(x[:, :50], task.batch(0, 50)[0])


def test_trivial_prediction_scores_the_baseline():
    task = adding(T=50, test_samples=20000)
    errors = torch.cat([task.scores(torch.ones(len(t), 1), t)["mse"] for _, t in evaluated(task)])
    assert errors.shape == (20000,)
    assert errors.mean().item() == pytest.approx(task.baseline["mse"], abs=0.005)
    assert task.baseline["mse"] == pytest.approx(0.1667, abs=1e-4)


def test_a_fixed_training_set_is_gone_through_in_epochs():
    task = adding(T=7, train_samples=10, test_samples=6)
    assert task.steps_per_epoch(4) == 3
    assert task.split_id == "adding/halves/T=7/test=6/train=10"

    def epoch(number):
        batches = [task.batch(3 * number + i, 4) for i in range(3)]
        assert [x.shape for x, _ in batches] == [(7, 4, 2), (7, 4, 2), (7, 2, 2)]
        for x, target in batches:
            torch.testing.assert_close(x.prod(-1).sum(0), target)
        return torch.cat([target for _, target in batches])

    first, second = epoch(0), epoch(1)
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)
    # The test set is that of fresh batches.
    assert torch.equal(evaluated(task)[0][0], evaluated(adding(T=7, test_samples=6))[0][0])
    other = adding(1, T=7, train_samples=10, test_samples=6)
    assert not torch.equal(task.samples[:10], other.samples[:10])
    assert torch.equal(task.samples[10:], other.samples[10:])


def test_scornn_has_100000_and_10000():
    task = adding(protocol="scornn", T=4)
    assert [len(task.splits[name]) for name in ("train", "test")] == [100_000, 10_000]
    assert sum(len(t) for _, t in evaluated(task)) == 10_000
    assert task.split_id == "adding/scornn/T=4/test=10000/train=100000"
    assert adding(protocol="scornn", T=4, train_samples=0, test_samples=5).steps_per_epoch(50) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "lstm"}, "protocol=lstm: must be one of cornn, nnrnn, scornn"),
        ({"T": 50_000_000}, "T=50000000: must be at most 10000000"),
        ({"T": 1}, "T=1: must be at least 2"),
        ({"T": 2, "protocol": "scornn"}, "T=2: must be at least 3 in the protocol scornn"),
        ({"train_samples": -1}, "train_samples=-1: must be at least 0"),
        ({"test_samples": 0}, "test_samples=0: must be at least 1"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
