import json
import re

import pytest
import torch

from longwave.tasks import adding, copying
from longwave.tasks.transforms import log_signature
from longwave.training import loop
from longwave.training.config import changed_from_recipe, compose_recipe, compose_run
from longwave.training.curriculum import Curriculum
from longwave.training.errors import UserError

SMALL = (
    "model=lstm", "task=adding", "task.T=20", "model.hidden=6", "training.batch_size=4", "task.test_samples=40",
    "training.target=null", "training.evaluate_every=2", "training.log_every=1", "optimizer.lr=0.01",
)  # fmt: skip
GROW = ("curriculum=grow", "curriculum.start=5", "curriculum.factor=2")


def history_of(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def record_of(folder):
    return json.loads((folder / "record.json").read_text())


@pytest.mark.parametrize(
    ("settings", "T", "expected"),
    [
        ({"name": "grow"}, 1000, [100, 200, 400, 800, 1000]),
        ({"name": "grow"}, 800, [100, 200, 400, 800]),
        ({"name": "grow"}, 100, [100]),
        ({"name": "grow"}, 7, [7]),
        ({"name": "grow", "start": 200, "factor": 2.5}, 5000, [200, 500, 1250, 3125, 5000]),
        # int(2 * 1.1) is 2 again.
        ({"name": "grow", "start": 2, "factor": 1.1}, 6, [2, 3, 4, 5, 6]),
        ({"name": "lengths", "lengths": [200, 500, 1000]}, 700, [200, 500, 700]),
        ({"name": "lengths", "lengths": [200, 500, 1000]}, 500, [200, 500]),
        ({"name": "lengths", "lengths": [200]}, 100, [100]),
        ({"name": "none"}, 5000, [5000]),
    ],
)
def test_lengths(settings, T, expected):
    task = adding.Config(T=T).build(0, None)
    tasks = Curriculum(**settings).tasks(task)
    assert [one.length for one in tasks] == expected
    assert tasks[-1] is task


def test_a_shorter_task_is_that_task_at_that_length():
    task = adding.Config(T=50, protocol="nnrnn", test_samples=30).build(3, None)
    short, expected = task.at_length(7), adding.Config(T=7, protocol="nnrnn", test_samples=30).build(3, None)
    assert short.split_id == expected.split_id
    for found, wanted in zip((*short.batch(4, 6), *next(short.evaluation("test"))),
                             (*expected.batch(4, 6), *next(expected.evaluation("test"))), strict=True):  # fmt: skip
        assert torch.equal(found, wanted)
    fixed = adding.Config(T=50, train_samples=20).build(3, None).at_length(6)
    assert fixed.batch(0, 5)[0].shape == (6, 5, 2)
    assert fixed.steps_per_epoch(5) == 4
    assert copying.Config(K=3, L=40).build(0, None).at_length(5).batch(0, 2)[0].shape == (11, 2, 10)
    transformed = log_signature.Config(depth=2, step=4).apply(task, None)
    assert transformed.length == 50
    assert transformed.at_length(13).batch(0, 2)[0].shape == (4, 2, 6)
    with pytest.raises(ValueError, match=r"^transform\.step=4: must be less than 4"):
        transformed.at_length(4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "shrink"}, "name=shrink: must be one of none, grow, lengths"),
        ({"start": 5}, "start=5: is not a setting of curriculum=none"),
        ({"name": "grow", "lengths": [5]}, "lengths=[5]: is not a setting of curriculum=grow"),
        ({"name": "lengths", "lengths": [5], "factor": 2.0}, "factor=2.0: is not a setting of curriculum=lengths"),
        ({"name": "grow", "start": 0}, "start=0: must be at least 1"),
        ({"name": "grow", "factor": 1.0}, "factor=1.0: must be greater than 1"),
        ({"name": "grow", "evaluations": 0}, "evaluations=0: must be at least 1"),
        ({"name": "grow", "least_steps": -1}, "least_steps=-1: must be at least 0"),
        ({"name": "grow", "most_steps": 0}, "most_steps=0: must be at least 1"),
        (
            {"name": "grow", "most_steps": 5, "least_steps": 6},
            "most_steps=5: must be at least least_steps=6",
        ),
        ({"name": "grow", "lr_power": -0.5}, "lr_power=-0.5: must be at least 0"),
        ({"name": "lengths"}, "lengths=null: must be a list, as in curriculum.lengths=[200,500,1000]"),
        ({"name": "lengths", "lengths": []}, "lengths=null: must be a list, as in curriculum.lengths=[200,500,1000]"),
        ({"name": "lengths", "lengths": [5, 5]}, "lengths=[5, 5]: must be increasing"),
        ({"name": "lengths", "lengths": [0, 5]}, "lengths=[0, 5]: must be at least 1"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Curriculum(**settings)


def test_what_does_not_fit_the_task(fit_here, fake_mnist):
    with pytest.raises(UserError, match=r"^curriculum=grow: the length of this task is that of its data; use .*none$"):
        fit_here(f"data.root={fake_mnist}", "model=lstm", "task=smnist", "curriculum=grow")
    with pytest.raises(UserError, match=r"^curriculum=lengths: T=1: must be at least 2"):
        fit_here(*SMALL, "training.steps=2", "curriculum=lengths", "curriculum.lengths=[1,5]")
    with pytest.raises(UserError, match=r"^curriculum\.start=5: is not a setting of curriculum=none$"):
        compose_run(["model=lstm", "curriculum.start=5"])
    task = adding.Config(T=9).build(0, None)
    task.milestones = ()
    with pytest.raises(UserError, match=r"^curriculum\.bound=null: this task has no milestone to reach"):
        Curriculum(name="grow", start=3).tasks(task)
    assert len(Curriculum(name="grow", start=3, most_steps=4).tasks(task)) == 3


def test_lengths_are_trained_on_in_turn(fit_here, monkeypatch):
    """And evaluation is at the task's own length every time."""
    trained, evaluated = [], []
    batch, evaluation = adding.Adding.batch, adding.Adding.evaluation
    monkeypatch.setattr(adding.Adding, "batch", lambda self, *a: trained.append(self.T) or batch(self, *a))
    monkeypatch.setattr(adding.Adding, "evaluation", lambda self, *a: evaluated.append(self.T) or evaluation(self, *a))
    steps = ("training.steps=11", "curriculum.least_steps=4", "curriculum.most_steps=4", "curriculum.lr_power=0.5")
    objective, folder = fit_here(*SMALL, *GROW, *steps)
    assert trained == 4 * [5] + 4 * [10] + 3 * [20]
    assert evaluated == [20, 5, 20, 5, 20, 10, 20, 10, 20, 20]
    entries, record = history_of(folder), record_of(folder)
    assert [entry["curriculum/length"] for entry in entries] == trained
    # The rate of the step that was just done.
    scales = [1.0] * 4 + [0.5**0.5] * 4 + [0.5] * 3
    assert [entry["lr"] for entry in entries] == pytest.approx([0.01 * scale for scale in scales])
    shown = [("test/mse" in entry, "curriculum/mse" in entry) for entry in entries]
    assert shown == [(entry["step"] % 2 == 0 or entry["step"] == 11,) * 2 for entry in entries]
    assert entries[-1]["test/mse"] == entries[-1]["curriculum/mse"] == objective
    assert entries[1]["test/mse"] != entries[1]["curriculum/mse"]
    stages = record["curriculum"]
    assert [(stage["length"], stage["steps"]) for stage in stages] == [(5, 4), (10, 4), (20, 3)]
    assert [stage["mse"] for stage in stages] == [entries[i]["curriculum/mse"] for i in (3, 7, 10)]
    assert sum(stage["seconds"] for stage in stages) == pytest.approx(record["wall_seconds"], abs=0.1)
    assert "lengths 5, 10, 20" in (folder / "log.txt").read_text()
    assert "step 4: mse" in (folder / "log.txt").read_text()


def test_a_length_ends_when_its_bound_has_held(fit_here, monkeypatch):
    """Twice in a row, and not before least_steps; patience only counts at the last length."""
    at_length = {5: iter([0.4, 0.1, 0.4, 0.1, 0.1]), 10: iter([0.1, 0.1, 0.1])}

    def planned(model, task, split, *more):
        return {"mse": next(at_length[task.T]) if task.T in at_length else 0.5}

    monkeypatch.setattr("longwave.training.loop.evaluate", planned)
    _, folder = fit_here(
        *SMALL, *GROW, "training.steps=40", "curriculum.bound=0.2", "curriculum.least_steps=6", "training.patience=3"
    )  # fmt: skip
    stages = record_of(folder)["curriculum"]
    assert [(stage["length"], stage["steps"]) for stage in stages] == [(5, 10), (10, 6), (20, 6)]
    assert record_of(folder)["stopped"] == "patience"


def test_the_target_is_of_the_own_length(fit_here, monkeypatch):
    """It ends a run while lengths grow, too."""
    monkeypatch.setattr(
        "longwave.training.loop.evaluate", lambda model, task, *more: {"mse": 0.5 if task.T < 20 else 0.05}
    )
    _, folder = fit_here(*SMALL, *GROW, "training.steps=40", "training.target=0.1", "training.target_evaluations=2")
    record = record_of(folder)
    assert (record["stopped"], record["budget"]["steps_done"]) == ("target", 4)
    assert [(stage["length"], stage["mse"]) for stage in record["curriculum"]] == [(5, 0.5)]


def test_a_run_that_ends_with_a_length(fit_here):
    _, folder = fit_here(*SMALL, *GROW, "training.steps=4", "curriculum.most_steps=4")
    assert [(stage["length"], stage["steps"]) for stage in record_of(folder)["curriculum"]] == [(5, 4)]


def test_equals_training_on_each_length_by_itself(fit_here):
    """The weights are those of a loop that is written out."""
    from longwave.tasks.randomness import counted_seed

    _, folder = fit_here(*SMALL, *GROW, "training.steps=6", "curriculum.most_steps=2", "curriculum.lr_power=1",
                         "training.clip_norm=null")  # fmt: skip
    config, _ = compose_run(list(SMALL))
    torch.manual_seed(counted_seed(0, "init"))
    model = config.model.build(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(6):
        T = (5, 5, 10, 10, 20, 20)[step]
        optimizer.param_groups[0]["lr"] = 0.01 * 5 / T
        x, target = adding.Config(T=T).build(0, None).batch(step, 4)
        optimizer.zero_grad()
        (model(x)[:, 0] - target).pow(2).mean().backward()
        optimizer.step()
    saved = torch.load(folder / "checkpoint.pt")["model"]
    for key, value in model.state_dict().items():
        torch.testing.assert_close(saved[key], value)


def test_multiplies_whatever_the_schedule_makes_of_the_rate(fit_here):
    settings = (
        *SMALL, "training.steps=6", "curriculum.most_steps=2", "curriculum.lr_power=1", "scheduler=step",
        "scheduler.milestones=[3]", "scheduler.factor=0.1",
    )  # fmt: skip
    _, folder = fit_here(*settings, *GROW)
    # The schedule has its step behind the training step, the curriculum before the next.
    scheduled = [0.01, 0.01, 0.001, 0.001, 0.001, 0.001]
    scales = [1, 1, 0.5, 0.5, 0.25, 0.25]
    found = [entry["lr"] for entry in history_of(folder)]
    assert found == pytest.approx([a * b for a, b in zip(scheduled, scales, strict=True)])


def test_none_is_no_other_run():
    """Nor is what a recipe's curriculum would have been."""
    plain = compose_run(["model=lstm", "task=adding"])[0]
    none = compose_run(["model=lstm", "task=adding", "curriculum=none"])[0]
    grown = compose_run(["model=lstm", "task=adding", "curriculum=grow"])[0]
    assert plain.identity() == none.identity() != grown.identity()
    assert plain.as_dict()["curriculum"] is None
    paper = ["model=cornn", "task=adding", "recipe=cornn/adding_paper"]
    assert compose_run(paper)[0].identity() == compose_run([*paper, "curriculum=none"])[0].identity()
    assert grown.as_dict()["curriculum"]["name"] == "grow"


def test_what_differs_from_the_recipe_names_the_curriculum():
    def changed(*overrides):
        config, recipe = compose_run(list(overrides))
        return changed_from_recipe(config, *compose_recipe(recipe, config))

    assert changed("model=cornn", "task=adding") == {}
    assert changed("model=cornn", "task=adding", "curriculum=none") == {"curriculum": "none"}
    assert changed("model=cornn", "task=adding", "curriculum.start=50") == {"curriculum.start": 50}
    assert changed("model=lstm", "task=adding", "curriculum=none") == {}
    assert changed("model=lstm", "task=adding", "curriculum=grow", "curriculum.most_steps=9") == {
        "curriculum.name": "grow", "curriculum.most_steps": 9,
    }  # fmt: skip


@pytest.mark.parametrize(("model", "extra"), [("nrde", ("transform.step=2",)), ("indrnn", ())])
def test_models_that_depend_on_the_length(model, extra, fit_here):
    settings = [text for text in SMALL if not text.startswith(("model=", "optimizer"))]
    _, folder = fit_here(f"model={model}", *settings, *GROW, *extra, "training.steps=6", "curriculum.most_steps=2")
    assert [stage["length"] for stage in record_of(folder)["curriculum"]] == [5, 10, 20]


def test_copying_grows_too(fit_here):
    _, folder = fit_here(
        "model=lstm", "task=copying", "recipe=none", "task.L=9", "task.K=2", "model.hidden=4", "training.steps=4",
        "training.evaluate_every=2", "training.batch_size=2", "task.test_samples=8", "curriculum=lengths",
        "curriculum.lengths=[3]", "curriculum.most_steps=2",
    )  # fmt: skip
    assert [stage["length"] for stage in record_of(folder)["curriculum"]] == [3, 9]
    assert "cross_entropy" in record_of(folder)["curriculum"][0]


def test_interrupted_in_an_evaluation_it_evaluates_again(fit_here, monkeypatch):
    """Between the evaluation at the own length and that at the present one nothing may have changed."""
    settings = (*SMALL, *GROW, "training.steps=6", "curriculum.most_steps=2")
    whole = record_of(fit_here(*settings)[1])
    evaluate, calls = loop.evaluate, []

    def interrupted(model, task, *more):
        calls.append(task.T)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(model, task, *more)

    with monkeypatch.context() as m:
        m.setattr("longwave.training.loop.evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit_here(*settings, "fresh=true")
    again = record_of(fit_here(*settings)[1])
    assert again["metrics"] == whole["metrics"]
    for one in (again, whole):
        for stage in one["curriculum"]:
            del stage["seconds"]
    assert again["curriculum"] == whole["curriculum"]
