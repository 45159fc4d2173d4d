import pytest
import torch

from tasks.adding import Adding, Config


@pytest.mark.parametrize("T", [2, 3, 100, 501])
def test_batch_is_the_adding_problem(T):
    x, target = Adding(Config(T=T), seed=0).batch(0, 400)
    assert x.shape == (T, 400, 2)
    assert target.shape == (400,)
    values, markers = x.unbind(-1)
    assert ((values >= 0) & (values < 1)).all()
    assert ((markers == 0) | (markers == 1)).all()
    # One marker in each half, and the target is the sum of what they mark.
    assert (markers[: T // 2].sum(0) == 1).all()
    assert (markers[T // 2 :].sum(0) == 1).all()
    torch.testing.assert_close((values * markers).sum(0), target)


def test_markers_reach_every_position_of_their_half():
    x, _ = Adding(Config(T=11), seed=0).batch(0, 4000)
    frequency = x[..., 1].mean(1)
    torch.testing.assert_close(frequency[:5], torch.full((5,), 1 / 5), atol=0.03, rtol=0)
    torch.testing.assert_close(frequency[5:], torch.full((6,), 1 / 6), atol=0.03, rtol=0)


def test_a_batch_depends_on_seed_and_step_only():
    one, two = Adding(Config(T=20), seed=3), Adding(Config(T=20), seed=3)
    two.batch(0, 5)
    for a, b in zip(one.batch(7, 5), two.batch(7, 5), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.batch(7, 5)[0], one.batch(8, 5)[0])
    assert not torch.equal(one.batch(7, 5)[0], Adding(Config(T=20), seed=4).batch(7, 5)[0])


def test_the_test_set_is_fixed_whole_and_no_training_batch():
    task = Adding(Config(T=2000), seed=0)
    batches = list(task.evaluation("test"))
    x = torch.cat([x for x, _ in batches], dim=1)
    assert x.shape == (2000, 1000, 2)
    assert len(batches) > 1
    again = torch.cat([x for x, _ in Adding(Config(T=2000), seed=5).evaluation("test")], dim=1)
    assert torch.equal(x, again)
    assert not torch.equal(x[:, :50], task.batch(0, 50)[0])


def test_trivial_prediction_scores_the_baseline():
    task = Adding(Config(T=50, test_samples=20000), seed=0)
    errors = torch.cat([task.scores(torch.ones(len(t), 1), t)["mse"] for _, t in task.evaluation("test")])
    assert errors.shape == (20000,)
    assert errors.mean().item() == pytest.approx(task.baseline["mse"], abs=0.005)
    assert task.baseline["mse"] == pytest.approx(0.1667, abs=1e-4)
