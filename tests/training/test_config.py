"""A wrong key, type, choice or value ends in one line that names it and what is allowed, before anything is made."""

import dataclasses
import hashlib
import json
import shutil

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from longwave import CONF, train
from longwave.results import tables
from longwave.sweeps import plan
from longwave.training import record
from longwave.training.command import choice_of, parse
from longwave.training.config import (
    SECTIONS,
    _compose,
    about,
    changed_from_recipe,
    choices,
    compose_recipe,
    compose_run,
    numbers,
)
from longwave.training.errors import UserError

WRONG = [
    # A misspelt key in every section, with and without Hydra's plus.
    ("model.hiden=3", r"model\.hiden: no such key \(did you mean hidden\?\).*gamma"),
    ("+model.x=1", r"^\+model.x=1: write it without \+$"),
    ("task.t=3", r"task\.t: no such key.*test_samples"),
    ("+task.x=3", r"^\+task.x=3: write it without \+$"),
    ("training.stps=3", r"training\.stps: no such key \(did you mean steps\?\)"),
    ("+training.x=3", r"^\+training.x=3: write it without \+$"),
    ("optimizer.learning_rate=3", r"optimizer\.learning_rate: no such key.*lr"),
    ("+optimizer.x=3", r"^\+optimizer.x=3: write it without \+$"),
    ("scheduler.milestone=[3]", r"scheduler\.milestone: no such key \(did you mean milestones\?\)"),
    ("+scheduler.x=[3]", r"^\+scheduler.x=\[3\]: write it without \+$"),
    ("tracking.projct=x", r"tracking\.projct: no such key \(did you mean project\?\)"),
    ("+tracking.x=x", r"^\+tracking.x=x: write it without \+$"),
    ("data.rot=x", r"data\.rot: no such key \(did you mean root\?\)"),
    ("+data.x=x", r"^\+data.x=x: write it without \+$"),
    ("unknown=1", r"unknown: no such key; .*seed"),
    ("+unknown=1", r"unknown: no such key; .*seed"),
    ("+model=lstm", r"^\+model=lstm: write it without \+$"),
    ("+task=foo", r"^\+task=foo: write it without \+$"),
    ("sed=1", r"sed: no such key \(did you mean seed\?\)"),
    ("modle=cornn", r"modle: no such key \(did you mean model\?\)"),
    # A wrong choice in every group.
    ("model=foo", r"model=foo: no such choice; there are .*cornn,.* lstm"),
    ("task=foo", r"task=foo: no such choice; there are adding, .*psmnist, .*smnist"),
    ("recipe=cornn/foo", r"recipe=cornn/foo: no such choice; there are .*cornn/psmnist_128"),
    ("optimizer=foo", r"optimizer=foo: no such choice; there are adam, adamw, rmsprop, sgd"),
    ("scheduler=foo", r"scheduler=foo: no such choice; there are constant, cosine, exponential, plateau, step"),
    ("tracking=foo", r"tracking=foo: no such choice; there are none, wandb"),
    ("training=foo", r"training=foo: no such choice; there are default"),
    ("diagnostics=foo", r"diagnostics=foo: no such choice; there are all, gradients, none, theory"),
    ("diagnostics.gradient=true", r"diagnostics\.gradient: no such key \(did you mean gradients\?\)"),
    ("diagnostics.theory=perhaps", r"diagnostics\.theory=perhaps: must be true or false"),
    ("debug=foo", r"debug=foo: no such choice; there are fast, overfit"),
    ("hydra/launcher=foo", r"hydra/launcher=foo: no such choice; there are basic"),
    ("device=tpu", r"device=tpu: must be one of auto, cpu, cuda, mps"),
    ("tracking.mode=foo", r"tracking\.mode=foo: must be one of auto, online, offline"),
    ("optimizer.name=foo", r"optimizer\.name=foo: must be one of adam"),
    ("scheduler.name=foo", r"scheduler\.name=foo: must be one of constant"),
    ("training.selection=foo", r"training\.selection=foo: must be one of last, best"),
    ("training.precision=fp16", r"training\.precision=fp16: must be one of fp32, bf16"),
    ("task=psmnist task.permutation=foo", r"task\.permutation=foo: must be one of cornn, .*nnrnn"),
    ("task=psmnist task.permutation=null", r"task\.permutation=null: must be one of cornn, .*; or use task=smnist"),
    ("task=smnist task.permutation=cornn", r"task\.permutation=cornn: smnist is not permuted; use task=psmnist"),
    ("model.name=lstm", r"model\.name=lstm: is fixed; choose with model=.*cornn \|.* lstm"),
    # A wrong type.
    ("model.hidden=abc", r"model\.hidden=abc: must be a whole number"),
    ("model.hidden=1.5", r"model\.hidden=1\.5: must be a whole number"),
    ("task.T=long", r"task\.T=long: must be a whole number"),
    ("model.dt=small", r"model\.dt=small: must be a number"),
    ("optimizer.lr=high", r"optimizer\.lr=high: must be a number"),
    ("seed=a", r"seed=a: must be a whole number"),
    ("fresh=perhaps", r"fresh=perhaps: must be true or false"),
    ("training=3", r"training=3: no such choice; there are default"),
    ("model=null", r"model=null: no such choice; there are .*cornn,.* lstm"),
    # A value out of range.
    ("model.dt=-1", r"model\.dt=-1\.0: must be greater than 0"),
    ("model.dt=nan", r"model\.dt=nan: must be finite"),
    ("model.gamma=inf", r"model\.gamma=inf: must be finite"),
    ("model.hidden=0", r"model\.hidden=0: must be at least 1"),
    ("model.gamma=-1", r"model\.gamma=-1\.0: must be at least 0"),
    ("model=lstm model.hidden=0", r"model\.hidden=0: must be at least 1"),
    ("task.T=1", r"task\.T=1: must be at least 2"),
    ("task=smnist task.validation=60000", r"task\.validation=60000: must be at most 59999"),
    ("training.batch_size=0", r"training\.batch_size=0: must be at least 1"),
    ("training.steps=0", r"training\.steps=0: must be at least 1"),
    ("training.steps=null", r"training\.steps=null.*training\.epochs"),
    ("training.clip_norm=0", r"training\.clip_norm=0\.0: must be greater than 0"),
    ("training.checkpoint_seconds=-1", r"training\.checkpoint_seconds=-1\.0: must be at least 0"),
    ("optimizer.lr=0", r"optimizer\.lr=0\.0: must be greater than 0"),
    ("optimizer.betas=[0.9,1]", r"optimizer\.betas=\[0\.9, 1\.0\]: must be less than 1"),
    ("optimizer.betas=[0.9]", r"optimizer\.betas=\[0\.9\]: must be two numbers"),
    ("optimizer.lr=1e4", r"optimizer\.lr=10000\.0: must be at most 1000"),
    ("optimizer.momentum=0.9", r"optimizer\.momentum=0\.9: is not a setting of adam"),
    ("scheduler=exponential", r"scheduler\.factor=null: must be a number"),
    ("scheduler=step", r"scheduler\.milestones=null: must be a list"),
    ("scheduler=step scheduler.milestones=[5,3]", r"scheduler\.milestones=\[5, 3\]: must be increasing"),
    ("scheduler=cosine scheduler.factor=0.5", r"scheduler\.factor=0\.5: is not a setting of the cosine schedule"),
    ("scheduler=plateau scheduler.factor=2", r"scheduler\.factor=2\.0: must be less than 1"),
    ("seed=-1", r"seed=-1: must be at least 0"),
    ("threads=0", r"threads=0: must be at least 1"),
    # A transform of the inputs, and a model that needs one.
    ("transform=foo", r"transform=foo: no such choice; there are log_signature, none"),
    ("transform.depth=2", r"transform\.depth: there is no transform; choose transform=log_signature"),
    ("++transform.depth=2", r"^\+\+transform.depth=2: write it without \+$"),
    ("transform=log_signature transform.dpth=2", r"transform\.dpth: no such key \(did you mean depth\?\)"),
    ("transform=log_signature transform.x=2", r"transform\.x: no such key; there are .*backend"),
    ("transform=log_signature transform.step=0", r"transform\.step=0: must be at least 1"),
    ("transform=log_signature transform.step=1.5", r"transform\.step=1\.5: must be a whole number"),
    ("transform=log_signature transform.name=x", r"transform\.name=x: is fixed; choose with transform=log_signature"),
    ("model=nrde transform=none", r"transform\.depth: there is no transform; choose transform=log_signature"),
    ("model=nrde transform.depth=4", r"model\.depth=4: nrde reads log-signatures of depth 1, 2 or 3"),
    (
        "model=nrde training.steps=1 transform.depth=2 model.depth=1",
        r"model\.depth=1: follows transform\.depth; set that",
    ),
    # Step sizes that follow the time, without one.
    ("model.spacing=0.1", r"model\.spacing=0\.1: needs the time of each sample; use a task with task\.time=true"),
    ("model.spacing=0", r"model\.spacing=0\.0: must be greater than 0"),
    (
        "model=lem task=uea task.time=true model.spacing=0.1 transform=log_signature training.steps=1",
        r"model\.spacing=0\.1: needs the time of each sample; use transform=none",
    ),
    # The grammar.
    ("model.hidden", r"cannot read 'model\.hidden': write key=value"),
    ("seed=0,1", r"seed=0,1: several values make several runs; add -m"),
    # A recipe that is not for the model and task that are chosen.
    ("recipe=cornn/psmnist task=adding", r"recipe=cornn/psmnist: is not for model=cornn task=adding"),
    ("output=", r"output='': must be a folder"),
    ("recipe=cornn/psmnist_128 model=lstm", r"recipe=cornn/psmnist_128: is not for model=lstm task=psmnist"),
    ("model=lstm model.dt=3", r"model\.dt: no such key; there are name, hidden"),
    # The third of three jobs.
    ("-m seed=0,1,-2", r"seed=-2: must be at least 0"),
    ("-m model=cornn,foo", r"model=foo: no such choice"),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[line for line, _ in WRONG])
def test_wrong_input_is_one_line(line, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        parse(line.split())
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line", ["", "model=lstm", "-m seed=0,1 model=cornn,lstm", "-m model.dt=interval(0.01,0.1)", "--cfg job", "--help"]
)
def test_right_input_passes(line):
    assert parse(line.split()).arguments == line.split()


def test_a_recipe_alone_brings_its_model_and_task():
    assert parse(["recipe=lstm/psmnist", "seed=1"]).arguments == [
        "model=lstm",
        "task=psmnist",
        "recipe=lstm/psmnist",
        "seed=1",
    ]
    assert parse(["recipe=cornn/psmnist_128"]).arguments == ["recipe=cornn/psmnist_128"]
    assert parse(["recipe=cornn/psmnist"]).config == compose_run(["model=cornn", "task=psmnist"])[0]


def changed(*overrides):
    config, recipe = compose_run(list(overrides))
    return changed_from_recipe(config, *compose_recipe(recipe, config))


def test_what_is_not_as_the_recipe_has_it():
    assert changed("model=cornn", "task=psmnist", "seed=3", "training.checkpoint_seconds=5", "device=cpu") == {}
    assert changed("recipe=cornn/psmnist_128", "optimizer=sgd", "model.dt=0.5") == {
        "model.dt": 0.5,
        "optimizer.name": "sgd",
    }
    assert changed("task.T=500") == {"task.T": 500}
    assert changed("recipe=indrnn/adding", "model=indrnn", "task.T=500") == {"task.T": 500}
    assert changed("recipe=indrnn/adding", "model=indrnn", "model.steps=300") == {"model.steps": 300}
    assert changed("model=nrde", "task=adding", "transform.depth=2") == {"transform.depth": 2}


def test_flags_may_stand_anywhere():
    arguments = parse(["seed=0,1", "--config-dir", "conf", "-m", "model=lstm"]).arguments
    assert arguments == ["--config-dir", "conf", "-m", "seed=0,1", "model=lstm"]


def test_process_says_it_in_one_line_and_leaves_nothing(train_process):
    done = train_process.run("model.hiden=3")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "error: model.hiden: no such key (did you mean hidden?); there are name, hidden, dt, gamma, epsilon, "
        "parametrisation, damping, train_dynamics, input_initialisation, recurrent_initialisation, spacing"
    ]
    # What only shows when the task is built is said in one line too.
    done = train_process.run("model=cornn", "training.selection=best")
    assert done.returncode == 1
    assert done.stdout.splitlines()[1:] == [
        "error: training.selection=best: this task has no validation split to select by; use last"
    ]
    assert not train_process.output.exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("model=lstm", "model=lstm task=adding recipe=lstm/adding (task by default)"),
        ("task=psmnist", "model=cornn task=psmnist recipe=cornn/psmnist (model by default)"),
        ("model=lstm task=har2 recipe=none training.steps=1", "model=lstm task=har2 recipe=none"),
        ("recipe=cornn/psmnist_128", "model=cornn task=psmnist recipe=cornn/psmnist_128"),
        ("recipe=lstm/psmnist", "model=lstm task=psmnist recipe=lstm/psmnist"),
    ],
)
def test_a_run_says_what_was_chosen_by_default(line, says):
    command = parse(line.split())
    assert choice_of(command.config, command.recipe, command.overrides) == says


@pytest.mark.parametrize("line", ["", "model.hidden=64", "-m seed=0,1"])
def test_without_a_model_or_task_nothing_starts(line, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", *line.split()])
    with pytest.raises(SystemExit, match=r"^usage: python train\.py model=<model> task=<task>"):
        train.main()


def test_help_is_a_screenful_of_choices(train_process):
    done = train_process.run("--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 40
    for group in ("model", "task", "optimizer", "scheduler", "tracking", "diagnostics", "debug"):
        line = next(line for line in done.stdout.splitlines() if line.split()[:1] == [group])
        assert all(choice in line for choice in choices(group))
    assert all(name in done.stdout for name in choices("recipe"))


@pytest.mark.parametrize("task", choices("task"))
def test_help_says_what_the_keys_of_a_task_mean(task):
    text = about(["seed=1", f"task={task}", "model=lem"])
    assert f"task={task}: " in text
    assert "model=lem: " in text
    config, _ = compose_run([f"task={task}", "recipe=none", "training.steps=1"])
    for key in {**vars(config.task), **vars(compose_run(["model=lem", "training.steps=1"])[0].model)}:
        assert key == "name" or f"    {key}: " in text


@pytest.mark.parametrize("group", SECTIONS)
def test_help_says_what_the_keys_of_a_section_mean(group):
    choice = next(name for name in choices(group) if name != "none")
    text = about([f"{group}={choice}", f"{group}=none"])
    assert f"{group}={choice}: " in text
    assert f"{group}=none" not in text
    for field in dataclasses.fields(SECTIONS[group]):
        assert f"    {field.name}: " in text


def test_help_of_a_task_without_a_recipe(train_process):
    done = train_process.run("task=eigenworms", "--help")
    assert done.returncode == 0, done.stdout
    assert "``lem`` (tk-rusch/LEM): 181/39/39" in done.stdout
    assert train_process.run("task=eigenworm", "--help").stdout.startswith("error: task=eigenworm: no such choice")


def identity(*overrides):
    return compose_run(list(overrides))[0].identity()


def test_identity_is_of_what_can_change_the_numbers():
    base = identity()
    for same in (
        "device=cpu threads=1 fresh=true output=elsewhere data.root=there",
        "tracking=none",
        "tracking.project=other tracking.tags=[a]",
        "training.checkpoint_seconds=1",
        "diagnostics=all",
        "published=null",
        "model=cornn task=adding task.T=100 seed=0",
    ):
        assert identity(*same.split()) == base, same
    different = ["seed=1", "task.T=101", "model.dt=0.05", "training.steps=7", "training.precision=bf16", "model=lstm"]
    different += ["optimizer=sgd", "scheduler=cosine", "training.clip_norm=2", "debug=fast", "recipe=none debug=fast"]
    found = [identity(*line.split()) for line in different]
    assert len({base, *found}) == 1 + len(different)


def test_a_transform_is_part_of_the_identity_where_there_is_one():
    config, _ = compose_run(["task.T=101", "curriculum=none"])
    # Where it runs, what is kept and shown of it, and what is none.
    without = ("published", "output", "device", "threads", "fresh", "data", "tracking", "diagnostics")
    without += ("transform", "curriculum")
    hashed = {key: value for key, value in config.as_dict().items() if key not in without}
    hashed["training"].pop("checkpoint_seconds")
    assert hashed["training"].pop("start_from") is None
    assert hashed["model"].pop("spacing") is None
    # As it was before there were transforms, curricula and irregular times.
    assert config.identity() == hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:10]
    assert identity("task.T=101", "curriculum=none", "transform=none") == config.identity()
    other = ("task.T=101", "curriculum=none", "transform=log_signature")
    depths = [identity(*other, f"transform.depth={depth}") for depth in (1, 2)]
    assert len({config.identity(), *depths}) == 3
    assert identity(*other, "transform.backend=torch") == depths[0]


def test_a_later_setting_changes_the_identity_where_it_is_not_its_default():
    """Records are older than the setting; a recipe may have another than the default."""
    own = ("model=linoss", "task=adding")
    config = compose_run(list(own))[0].as_dict()
    assert config["model"]["block"] == "standard"
    assert "block" not in numbers(config)["model"]
    del config["model"]["block"]
    older = compose_run(list(own))[0].as_dict()
    assert numbers(config) == numbers(older)
    assert identity(*own, "model.block=standard") == identity(*own) != identity(*own, "model.block=released")
    assert changed(*own, "model.block=released") == {"model.block": "released"}
    assert changed("model=linoss", "task=eigenworms", "model.block=standard") == {"model.block": "standard"}


@pytest.mark.parametrize("model", ["cornn", "lem", "linoss", "unicornn"])
def test_irregular_times_are_another_run_only_where_they_are_wanted(model):
    own = (f"model={model}", "task=uea", "task.time=true", "training.steps=1")
    assert "spacing" not in numbers(compose_run(list(own))[0].as_dict())["model"]
    assert identity(*own) == identity(*own, "model.spacing=null") != identity(*own, "model.spacing=0.1")


def test_a_model_may_choose_the_transform_that_it_needs():
    config, _ = compose_run(["model=nrde", "task=adding", "transform.depth=3", "training.steps=1"])
    assert (config.transform.name, config.transform.depth, config.model.depth) == ("log_signature", 3, 3)
    assert compose_run(["model=lstm"])[0].transform is None


def test_a_transform_that_the_recipe_does_not_have_is_named():
    assert changed("model=lstm", "task=adding") == {}
    found = changed("model=lstm", "task=adding", "transform=log_signature", "transform.step=4")
    assert found == {
        "transform.name": "log_signature",
        "transform.depth": 1,
        "transform.step": 4,
        "transform.time": True,
    }


def test_a_group_is_everything_but_the_seed():
    one, two = (compose_run([f"seed={seed}"])[0] for seed in (1, 2))
    assert one.identity() != two.identity()
    assert one.identity(with_seed=False) == two.identity(with_seed=False)
    other = compose_run(["task.T=101"])[0]
    assert other.identity(with_seed=False) != one.identity(with_seed=False)


@pytest.mark.parametrize(
    "overrides",
    [
        ["task.T=7", "model=lem", "model.hidden=3", "task=adding", "model.hidden=4", "training.steps=${task.T}"],
        ["recipe=cornn/psmnist_128", "scheduler=cosine", "scheduler.milestones=[1,2]", "seed=3", "debug=fast"],
        ["model=nrde", "task=eigenworms", "transform.step=8", "curriculum=grow", "optimizer.lr=0.1", "output='a b'"],
        ["hydra/launcher=submitit_local", "hydra.launcher.nodes=2", "model=unicornn", "model.layers=2"],
    ],
)  # fmt: skip
def test_settings_upon_kept_choices_are_what_hydra_composes(overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        expected = compose("train", overrides)
    for _ in range(2):
        cfg, _ = _compose("train", overrides)
        assert OmegaConf.to_container(cfg, resolve=False) == OmegaConf.to_container(expected, resolve=False)
        assert OmegaConf.is_struct(cfg)
        assert OmegaConf.get_type(cfg.model) is OmegaConf.get_type(expected.model)


def test_what_one_run_sets_is_not_in_the_next(compositions):
    first, _ = compose_run(["model=cornn", "task=psmnist", "scheduler.factor=0.5", "seed=1"])
    first.scheduler.milestones.append(2)
    second, _ = compose_run(["model=cornn", "task=psmnist"])
    assert (second.scheduler.milestones, second.scheduler.factor, second.seed) == ([100], 0.1, 0)
    assert len(compositions) == 1


@pytest.fixture
def authors_recipe(tmp_path, monkeypatch):
    """A copy of conf/ with a recipe of an author, who knows of no published value."""
    conf = shutil.copytree(CONF, tmp_path / "conf")
    text = "# @package _global_\ntask:\n  L: 6\n  test_samples: 10\ntraining:\n  steps: 4\n  batch_size: 2\n"
    (conf / "recipe" / "lem" / "copying.yaml").write_text(text)
    for module in ("training.config", "training.overrides", "sweeps.plan", "results.tables"):
        monkeypatch.setattr(f"longwave.{module}.CONF", conf)
    return conf / "recipe" / "lem" / "copying.yaml"


def test_a_recipe_that_chooses_another_group_is_named(authors_recipe):
    text = "# @package _global_\ndefaults:\n  - override /scheduler: cosine\n"
    authors_recipe.write_text(text)
    with pytest.raises(UserError, match=r"^conf/recipe/lem/copying\.yaml: cannot choose another scheduler; set"):
        compose_run(["model=lem", "task=copying"])
    variant = authors_recipe.with_name("copying_two.yaml")
    variant.write_text(f"{text}  - override /model: lem\n  - override /task: copying\n")
    with pytest.raises(UserError, match=r"^conf/recipe/lem/copying_two\.yaml: cannot choose another scheduler; set"):
        compose_run(["recipe=lem/copying_two"])


def test_a_recipe_without_a_published_value_aims_at_none(authors_recipe, fit_here):
    _, folder = fit_here("model=lem", "task=copying", "model.hidden=3")
    record = json.loads((folder / "record.json").read_text())
    assert (record["recipe"], record["published"]) == ("lem/copying", None)
    assert record["changed"] == {"model.hidden": 3}


def test_a_sweep_of_a_recipe_without_a_published_value(authors_recipe, fit_here):
    (run,) = plan.expand("own", plan.Table([plan.Row("lem/copying")], seeds=1), None, ["model.hidden=3"])
    _, folder = fit_here(*run.overrides)
    rows = tables.rows([record.read(folder)])
    assert [row.published for row in rows if row.model == "lem" and row.task == "copying"] == [None]
