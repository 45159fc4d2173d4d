"""Every recipe composes, is valid, says what its source says, and trains."""

import re

import pytest

from longwave.results import published
from longwave.training.config import CONF, changed_from_recipe, choices, compose_recipe, compose_run
from longwave.training.errors import UserError
from tests.stand_ins import FIXTURES, SHORT

RECIPES = [name for name in choices("recipe") if name != "none"]


def selection(recipe: str) -> list[str]:
    """What a user types for a recipe: its model and task, or, for a variant, its name."""
    model, _, cell = recipe.partition("/")
    return [f"model={model}", f"task={cell}"] if cell in choices("task") else [f"recipe={recipe}"]


def test_the_recipes_are_there():
    wanted = {"cornn/adding", "cornn/smnist", "cornn/smnist_128", "cornn/psmnist", "cornn/psmnist_128"}
    wanted |= {"lem/adding", "lem/adding_5000", "lem/adding_10000", "lem/smnist", "lem/psmnist"}
    # And those whose settings are compared below.
    wanted |= {*COUPLED, *LONG, *ORTHOGONAL, *OSCILLATING, *ROUGH, *INDEPENDENT, *GATED, *RETUNED}
    wanted |= {"gru/smnist", "gru/psmnist", "rnn/adding", "lstm/adding_indrnn"}
    assert wanted | {"lstm/adding", "lstm/smnist", "lstm/psmnist"} <= set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_composes_by_itself(recipe):
    config, found = compose_run(selection(recipe))
    assert found == recipe
    text = (CONF / "recipe" / f"{recipe}.yaml").read_text()
    assert config.published is not None or "no published" in " ".join(text.replace("#", "").split())


@pytest.mark.parametrize("recipe", RECIPES)
def test_trains(recipe, fit_here, request, small_batches):
    # Narrow, short, and few samples: what is tested is that the parts fit.
    task = compose_run(selection(recipe))[0].task.name
    root = request.getfixturevalue(FIXTURES.get(task, "tmp_path"))
    small = [f"data.root={root}", "model.hidden=4", "training.batch_size=3", *SHORT.get(task, [])]
    if recipe.startswith("nrde/"):
        small.append("transform.step=2")
    if recipe.startswith("spectral_rnn/"):
        small.append("model.reflectors=2")
    objective, folder = fit_here(*selection(recipe), "debug=fast", *small)
    assert objective == objective
    assert (folder / "record.json").exists()


# tk-rusch/coRNN, defaults of the scripts: hidden, batch, lr, dt, gamma, epsilon, epochs, milestones, selection.
COUPLED = {
    "cornn/smnist": (256, 120, 0.0021, 0.042, 2.7, 4.7, 120, [100], "last"),
    "cornn/psmnist": (256, 120, 0.0054, 0.076, 0.4, 8.0, 120, [100], "best"),
    "cornn/ncifar10": (128, 100, 0.0075, 0.034, 1.3, 12.7, 120, [100], "best"),
    "cornn/har2": (64, 64, 0.017, 0.1, 0.2, 6.4, 250, None, "best"),
    "cornn/imdb": (128, 64, 0.0006, 0.054, 4.9, 4.8, 100, None, "best"),
}


@pytest.mark.parametrize("recipe", COUPLED)
def test_settings_are_the_released_ones(recipe):
    c, _ = compose_run(selection(recipe))
    t, o, s, m = c.training, c.optimizer, c.scheduler, c.model
    found = (m.hidden, t.batch_size, o.lr, m.dt, m.gamma, m.epsilon, t.epochs, s.milestones, t.selection)
    assert found == COUPLED[recipe]
    assert (s.name, s.factor) == (("constant", None) if s.milestones is None else ("step", 0.1))
    assert (o.name, o.weight_decay, t.clip_norm, t.clip_value) == ("adam", 0, None, None)
    assert t.steps is None


# Parameters as the papers and the released code have them, without embeddings.
PARAMETERS = {
    "cornn/ncifar10": (96, 10, 46_474),
    "cornn/har2": (9, 1, 8_897),
    "cornn/imdb": (100, 1, 45_825),
    "lem/ncifar10": (96, 10, 117_002),
    "lem/fitzhugh_nagumo": (1, 1, 1_233),
    "lem/eigenworms": (6, 5, 5_285),
    "lem/bidmc_hr": (2, 1, 67_713),
    "unicornn/eigenworms": (6, 5, 1_573),
    "unicornn/bidmc_rr": (2, 1, 34_305),
    "unicornn/bidmc_hr": (2, 1, 34_305),
    # Of log-signatures: 7 channels to depth 2, 3 to depth 3, both with time.
    "nrde/eigenworms": (28, 5, 99_813),
    "nrde/bidmc_rr": (14, 1, 222_785),
    "nrde/bidmc_hr": (14, 1, 140_737),
    "unicornn/ncifar10": (96, 10, 47_498),
    "unicornn/imdb": (100, 1, 30_081),
    # 1.32 million with the 50 x 200 of the characters' embedding.
    "exprnn/ptb_char_150_nnrnn": (200, 50, 1_307_741),
}


@pytest.mark.parametrize("task", ["eigenworms", "bidmc_rr", "bidmc_hr", "bidmc_spo2"])
def test_a_recipe_of_the_neural_rde_aims_at_the_cells_of_its_table(task):
    cells = [key for key in published.load("nrde") if key.startswith(f"{task}_")]
    assert len(cells) >= 26
    # Some of them, of every depth: each is composed.
    for cell in cells[3::7]:
        depth, step = re.fullmatch(rf"{task}_depth(\d)_step(\d+)", cell).groups()
        chosen = [f"transform.depth={depth}", f"transform.step={step}"]
        config, recipe = compose_run(["model=nrde", f"task={task}", *chosen])
        assert config.published == f"nrde/{cell}"
        assert changed_from_recipe(config, *compose_recipe(recipe, config)) == {}
    config, recipe = compose_run(["model=nrde", f"task={task}", "transform.step=8", "model.hidden=7"])
    assert changed_from_recipe(config, *compose_recipe(recipe, config)) == {"model.hidden": 7}
    # The Neural CDE is one cell: what is changed, is.
    config, recipe = compose_run([f"recipe=nrde/{task}_ncde", "transform.step=8"])
    assert config.published == f"nrde/{task}_depth1_step1"
    assert changed_from_recipe(config, *compose_recipe(recipe, config)) == {"transform.step": 8}


def test_a_cell_that_the_table_does_not_have(fit_here):
    with pytest.raises(UserError, match=r"^published=nrde/eigenworms_depth3_step5: no such .*published=null aims at"):
        fit_here("model=nrde", "task=eigenworms", "transform.depth=3", "transform.step=5")


@pytest.mark.parametrize("recipe", PARAMETERS)
def test_parameters(recipe):
    inputs, outputs, expected = PARAMETERS[recipe]
    config, _ = compose_run(selection(recipe))
    assert sum(p.numel() for p in config.model.build(inputs, outputs).parameters()) == expected


@pytest.mark.parametrize(
    ("recipe", "validation"), [("cornn/ncifar10", 3000), ("lem/ncifar10", 2000), ("unicornn/ncifar10", 2000)]
)
def test_protocols_of_cifar(recipe, validation):
    task = compose_run(selection(recipe))[0].task
    assert (task.noise, task.validation) == ("constant", validation)


@pytest.mark.parametrize(("recipe", "batch", "dropout"), [("cornn/imdb", 64, 0), ("unicornn/imdb", 32, 0.65)])
def test_protocol_of_imdb(recipe, batch, dropout):
    task = compose_run(selection(recipe))[0].task
    assert (task.lower, task.validation, task.vocabulary, task.vectors) == (False, 0.3, 25_000, "glove.6B.100d")
    assert (task.lengths, task.bucketing, task.average) == ("ignored", False, "batches")
    assert (task.evaluation_batch, task.dropout) == (batch, dropout)


def test_protocols_of_mnist():
    whose = {"cornn": "cornn", "unicornn": "cornn", "lem": "cornn", "exprnn": "exprnn", "indrnn": "indrnn"}
    for recipe in [name for name in RECIPES if "mnist" in name and name.split("/")[0] in whose]:
        assert compose_run(selection(recipe))[0].task.protocol == whose[recipe.split("/")[0]], recipe


@pytest.mark.parametrize("model", ["rnn", "gru", "lstm"])
def test_fastgrnns_protocol_on_har2(model):
    c, _ = compose_run(selection(f"{model}/har2_fastgrnn"))
    assert (c.task.validation, c.training.selection, c.training.patience) == ("none", "last", None)
    assert c.published == f"fastgrnn/har2_{model}"
    assert published.get(c.published).value == {"rnn": 0.9131, "gru": 0.9362, "lstm": 0.9365}[model]
    assert changed_from_recipe(c, compose_run([f"model={model}", "task=har2"])[0], {}) == {
        "task.validation": "none",
        "training.selection": "last",
    }


@pytest.mark.parametrize(
    ("recipe", "gated", "value"),
    [
        ("fastgrnn/har2_fastgrnn", True, 0.9538),
        ("fastgrnn/har2_fastrnn", False, 0.9450),
        ("ugrnn/har2_fastgrnn", None, 0.9453),
    ],
)
def test_the_released_script_of_fastgrnn_on_har2(recipe, gated, value):
    c, _ = compose_run(selection(recipe))
    assert (getattr(c.model, "gated", None), c.model.hidden) == (gated, 80)
    assert (c.task.validation, c.task.normalisation, c.training.selection) == ("test", "feature", "best")
    assert (c.training.epochs, c.training.batch_size) == (300, 100)
    ours = c.model.name == "ugrnn"
    assert (c.training.clip_norm, c.optimizer.lr) == ((1.0, 0.001) if ours else (None, 0.01))
    assert (c.scheduler.name, c.scheduler.milestones, c.scheduler.factor) == ("step", [200], 0.1)
    assert published.get(c.published).value == value


@pytest.mark.parametrize(
    ("recipe", "orthogonal", "slope", "value"),
    [("spectral_rnn/har2_fastgrnn", False, 0, 0.9548), ("spectral_rnn/har2_ornn", True, 0.1, 0.9457)],
)
def test_the_released_example_of_spectral_rnn_on_har2(recipe, orthogonal, slope, value):
    c, _ = compose_run(selection(recipe))
    assert (c.model.hidden, c.model.reflectors, c.model.margin) == (128, 16, 0.01)
    assert (c.model.orthogonal, c.model.slope) == (orthogonal, slope)
    assert (c.task.validation, c.task.normalisation, c.training.selection) == ("test", "feature", "best")
    assert (c.training.epochs, c.training.batch_size, c.training.clip_norm, c.optimizer.lr) == (100, 128, None, 0.001)
    assert (c.scheduler.name, c.scheduler.factor) == ("exponential", 0.99)
    assert published.get(c.published).value == value


def test_the_released_script_of_eurnn_on_har2():
    c, _ = compose_run(selection("eurnn/har2_fastgrnn"))
    assert (c.model.hidden, c.model.capacity, c.model.fft) == (128, 4, False)
    assert (c.task.validation, c.task.normalisation, c.training.selection) == ("test", "feature", "best")
    assert (c.training.batch_size, c.training.clip_norm, c.scheduler.name) == (128, None, "constant")
    assert (c.optimizer.name, c.optimizer.lr, c.optimizer.alpha) == ("rmsprop", 0.0001, 0.5)
    # 58 steps an epoch: as close to 10,000 as whole epochs are.
    assert c.training.epochs == round(10_000 / 58)
    assert published.get(c.published).value == 0.9311


def test_other_settings_of_unicornn():
    c, _ = compose_run(selection("unicornn/ncifar10"))
    t, o, m = c.training, c.optimizer, c.model
    assert (m.hidden, m.layers, m.dt, m.alpha, m.dropout) == (128, 3, 0.126, 13, 0.1)
    assert (t.batch_size, t.epochs, o.lr, c.scheduler.milestones, c.scheduler.factor) == (30, 500, 0.00314, [250], 0.1)
    c, _ = compose_run(selection("unicornn/imdb"))
    t, o, m = c.training, c.optimizer, c.model
    assert (m.hidden, m.layers, m.dt, m.alpha, m.dropout) == (128, 2, [0.0066, 0.205], 0, 0.61)
    assert (t.batch_size, t.epochs, o.lr, c.scheduler.name) == (32, 50, 0.000164, "constant")


def test_copying_and_characters_with_exprnn():
    for recipe, mode in (("exprnn/copying", "exprnn"), ("exprnn/copying_dtriv", "dtriv")):
        c, _ = compose_run(selection(recipe))
        assert (c.task.K, c.task.L, c.task.alphabet, c.training.batch_size, c.training.steps) == (
            10,
            1000,
            8,
            128,
            4000,
        )
        assert (c.model.hidden, c.model.initialisation, c.model.mode) == (190, "henaff", mode)
        assert (c.optimizer.name, c.optimizer.lr, c.model.orthogonal_lr) == ("rmsprop", 0.0002, 0.1)
    assert (c.model.period, c.model.projection_period) == (100, 30)
    for recipe, T in (("exprnn/ptb_char", 150), ("exprnn/ptb_char_300", 300)):
        c, _ = compose_run(selection(recipe))
        assert (c.task.T, c.model.hidden, c.training.batch_size, c.training.epochs) == (T, 1386, 128, 100)
        assert (c.optimizer.lr, c.optimizer.lr * c.model.orthogonal_lr, c.optimizer.alpha) == (0.005, 0.0001, 0.9)
        assert halves_on_the_validation_error(c)


# tk-rusch/LEM, defaults of the scripts: batch, lr, dt, clipping by norm, permutation.
LONG = {
    "lem/smnist": (128, 0.0018, 0.21, 1.0, None),
    "lem/psmnist": (128, 0.0073, 0.31, 1.1, "lem"),
}


@pytest.mark.parametrize("recipe", LONG)
def test_settings_of_lem_are_the_released_ones(recipe):
    c, _ = compose_run(selection(recipe))
    t, o, s = c.training, c.optimizer, c.scheduler
    assert (t.batch_size, o.lr, c.model.dt, t.clip_norm, c.task.permutation) == LONG[recipe]
    assert (c.model.hidden, t.epochs, t.steps, s.name, s.milestones, s.factor) == (128, 120, None, "step", [100], 0.1)
    assert (o.name, o.weight_decay, t.clip_value) == ("adam", 0, None)


def test_other_settings_of_lem():
    c, _ = compose_run(selection("lem/ncifar10"))
    assert (c.model.hidden, c.model.dt, c.training.batch_size, c.optimizer.lr) == (128, 0.44, 100, 0.00322)
    assert (c.training.epochs, c.scheduler.milestones, c.training.clip_norm) == (120, [100], None)
    c, _ = compose_run(selection("lem/fitzhugh_nagumo"))
    assert (c.model.hidden, c.model.dt, c.training.batch_size, c.optimizer.lr) == (16, 1, 32, 0.00904)
    assert (c.training.epochs, c.scheduler.name, c.training.clip_norm) == (400, "constant", None)
    c, _ = compose_run(selection("lem/eigenworms"))
    assert (c.model.hidden, c.model.dt, c.training.batch_size, c.optimizer.lr) == (32, 0.00017, 8, 0.00609)
    assert (c.training.epochs, c.scheduler.name, c.training.clip_norm) == (50, "constant", None)
    assert (c.task.protocol, c.task.stratified, c.task.time) == ("lem", False, False)
    c, _ = compose_run(selection("lem/bidmc_hr"))
    assert (c.model.hidden, c.model.dt, c.training.batch_size, c.optimizer.lr) == (128, 0.2371, 32, 0.00211)
    assert (c.training.epochs, c.scheduler.milestones, c.training.clip_norm) == (500, [250], None)
    assert (c.task.protocol, c.task.loss, c.task.metric) == ("lem", "mse", "rmse")


@pytest.mark.parametrize("T", [2000, 5000, 10000])
def test_settings_of_lem_on_the_adding_problem(T):
    c, _ = compose_run(selection("lem/adding" if T == 2000 else f"lem/adding_{T}"))
    t, o = c.training, c.optimizer
    assert (c.task.T, c.model.hidden, c.model.dt) == (T, 128, 0.0242)
    assert (t.batch_size, t.steps, t.target, t.clip_norm) == (50, 30000, None, None)
    assert (o.name, o.lr, c.scheduler.name) == ("adam", 0.0026, "constant")


@pytest.mark.parametrize("recipe", ["rnn/adding", "lstm/adding_indrnn"])
def test_settings_of_what_indrnn_is_compared_with(recipe):
    c, _ = compose_run(selection(recipe))
    assert (c.task.T, c.model.hidden, c.optimizer.name, c.optimizer.lr) == (100, 128, "adam", 0.002)
    assert (c.scheduler.milestones, c.scheduler.factor) == ([20000, 40000], 0.1)


def test_unicornns_settings_are_the_released_ones():
    c, _ = compose_run(["model=unicornn", "task=psmnist"])
    t, o, s, m = c.training, c.optimizer, c.scheduler, c.model
    assert (m.hidden, m.layers, m.dt, m.alpha, m.dropout, m.residual) == (256, 3, 0.19, 30.65, 0.1, False)
    assert (t.batch_size, t.epochs, t.steps, t.selection) == (32, 2600, None, "best")
    assert (t.clip_norm, t.clip_value) == (None, None)
    assert (o.name, o.lr, o.weight_decay) == ("adam", 0.00251, 0)
    assert (s.name, s.milestones, s.factor, c.task.permutation) == ("step", [650], 0.1, "unicornn")


def test_unicornns_dt_from_the_command_line():
    selected = ["model=unicornn", "task=psmnist", "model.layers=2"]
    assert compose_run([*selected, "model.dt=[0.01,1]"])[0].model.dt == [0.01, 1.0]
    assert compose_run([*selected, "model.dt=1"])[0].model.dt == 1.0
    with pytest.raises(UserError, match=r"^model.dt=\[0.1\]: must be one number, or a list of 2 \(layers=2\)$"):
        compose_run([*selected, "model.dt=[0.1]"])


def test_indrnns_bound_follows_the_length():
    for T in (100, 500):
        config, _ = compose_run(["model=indrnn", "task=adding", f"task.T={T}"])
        assert (config.model.magnitude, config.model.steps) == (2.0, T)
        assert config.model.build(2, 1).layer.layers[1].bound == 2 ** (1 / T)


# Lezcano/expRNN's script, and asRNN's settings for expRNN: hidden, lr, alpha (torch's default is 0.99), mode.
ORTHOGONAL = {
    "exprnn/smnist": (170, 7e-4, None, "exprnn"),
    "exprnn/psmnist": (170, 7e-4, None, "exprnn"),
    "exprnn/smnist_dtriv": (170, 7e-4, None, "dtriv"),
    "exprnn/psmnist_dtriv": (170, 7e-4, None, "dtriv"),
    "exprnn/smnist_asrnn": (170, 7e-4, 0.9, "exprnn"),
    "exprnn/psmnist_asrnn": (170, 1e-3, 0.9, "exprnn"),
    "exprnn/smnist_360": (360, 5e-4, 0.9, "exprnn"),
    "exprnn/psmnist_360": (360, 7e-4, 0.9, "exprnn"),
    "exprnn/smnist_512": (512, 3e-4, 0.9, "exprnn"),
    "exprnn/psmnist_512": (512, 5e-4, 0.9, "exprnn"),
}


@pytest.mark.parametrize("recipe", ORTHOGONAL)
def test_settings_of_exprnn_are_the_released_ones(recipe):
    c, _ = compose_run(selection(recipe))
    t, o, m = c.training, c.optimizer, c.model
    assert (m.hidden, o.lr, o.alpha, m.mode) == ORTHOGONAL[recipe]
    assert (m.initialisation, m.orthogonal_lr, m.period, m.projection_period) == ("cayley", 0.1, 100, 100)
    assert (o.name, o.eps, o.momentum, o.weight_decay, c.scheduler.name) == ("rmsprop", None, None, 0, "constant")
    assert (t.batch_size, t.epochs, t.clip_norm, t.clip_value, t.selection) == (128, 70, None, None, "best")
    assert c.task.permutation == (None if c.task.name == "smnist" else "exprnn")


# Of tk-rusch/linoss's grid the best: data set, learning rate, hidden, state, blocks, time channel.
OSCILLATING = {
    "linoss/eigenworms": ("", 1e-3, 128, 64, 2, True),
    "linoss/eigenworms_imex": ("", 1e-4, 64, 16, 2, False),
    "linoss/uea_scp1": ("SelfRegulationSCP1", 1e-4, 128, 256, 6, True),
    "linoss/uea_scp1_imex": ("SelfRegulationSCP1", 1e-4, 64, 256, 6, False),
    "linoss/uea_scp2": ("SelfRegulationSCP2", 1e-4, 128, 64, 6, False),
    "linoss/uea_scp2_imex": ("SelfRegulationSCP2", 1e-5, 64, 256, 6, True),
    "linoss/uea_ethanol": ("EthanolConcentration", 1e-5, 16, 16, 4, False),
    "linoss/uea_ethanol_imex": ("EthanolConcentration", 1e-5, 16, 256, 4, False),
    "linoss/uea_heartbeat": ("Heartbeat", 1e-3, 16, 16, 6, True),
    "linoss/uea_heartbeat_imex": ("Heartbeat", 1e-5, 64, 16, 2, True),
    "linoss/uea_motor": ("MotorImagery", 1e-5, 128, 16, 2, False),
    "linoss/uea_motor_imex": ("MotorImagery", 1e-4, 16, 256, 6, True),
}


@pytest.mark.parametrize("recipe", OSCILLATING)
def test_settings_of_linoss_are_the_best_of_its_grid(recipe):
    c, _ = compose_run(selection(recipe))
    m, t, task = c.model, c.training, c.task
    found = (getattr(task, "dataset", ""), c.optimizer.lr, m.hidden, m.state, m.blocks, task.time)
    assert found == OSCILLATING[recipe]
    assert task.protocol == ("resplit" if task.name == "uea" else "dedup")
    assert m.discretisation == c.published.rpartition("_")[2] == ("imex" if recipe.endswith("_imex") else "im")
    assert (m.learned_step, m.dropout, m.pooling, m.block) == (True, 0.05, "mean", "released")
    assert (task.clock, task.drop_last) == ("steps", True)
    batch = 32 if task.name == "uea" else 4
    assert (t.steps, t.batch_size, t.evaluate_every, t.patience, t.selection) == (100_000, batch, 1000, 11, "best")
    assert (c.optimizer.name, c.optimizer.weight_decay, c.scheduler.name) == ("adam", 0, "constant")


# jambo6/neuralRDEs: hidden, multiplier, layers, batch, depth and step of the best cell of its table.
ROUGH = {
    "nrde/eigenworms": (32, 3, 2, 1024, 2, 4),
    "nrde/eigenworms_ncde": (32, 3, 2, 1024, 1, 1),
    "nrde/bidmc_rr": (64, 3, 3, 512, 3, 512),
    "nrde/bidmc_rr_ncde": (64, 3, 3, 512, 1, 1),
    "nrde/bidmc_hr": (64, 2, 2, 512, 3, 128),
    "nrde/bidmc_hr_ncde": (64, 2, 2, 512, 1, 1),
    "nrde/bidmc_spo2": (64, 3, 3, 512, 3, 512),
    "nrde/bidmc_spo2_ncde": (64, 3, 3, 512, 1, 1),
}


@pytest.mark.parametrize("recipe", ROUGH)
def test_settings_of_the_neural_rde_are_the_released_ones(recipe):
    c, _ = compose_run(selection(recipe))
    m, t, s = c.model, c.training, c.scheduler
    batch = ROUGH[recipe][3]
    assert (m.hidden, m.multiplier, m.layers, t.batch_size, c.transform.depth, c.transform.step) == ROUGH[recipe]
    assert (m.adjoint, m.tied, m.repeat_last, m.readout_lr, m.solver) == (True, True, True, 10, "rk4")
    assert (c.optimizer.name, c.optimizer.weight_decay) == ("adam", 0)
    assert c.optimizer.lr == pytest.approx(0.01 * 32 / batch)
    assert (s.name, s.factor, s.patience, s.threshold, s.min_lr) == ("plateau", 0.1, 15, 1e-6, 1e-7)
    assert (t.epochs, t.patience, t.selection, t.clip_norm, t.clip_value) == (1000, 60, "best", None, None)
    assert c.task.protocol == "nrde"


# Scripts of tk-rusch/unicornn: hidden, layers, dt, alpha, dropout, batch, lr, epochs, milestones.
INDEPENDENT = {
    "unicornn/eigenworms": (32, 2, [2.81e-5, 0.0343], 0, 0, 8, 0.0076, 250, None),
    "unicornn/bidmc_rr": (128, 3, 0.011, 9.0, 0.1, 32, 0.00398, 500, [250]),
    "unicornn/bidmc_hr": (128, 3, 0.046, 10.0, 0.1, 32, 0.00288, 500, [250]),
}


@pytest.mark.parametrize("recipe", INDEPENDENT)
def test_unicornns_settings_on_series(recipe):
    c, _ = compose_run(selection(recipe))
    m, t, s = c.model, c.training, c.scheduler
    found = (m.hidden, m.layers, m.dt, m.alpha, m.dropout, t.batch_size, c.optimizer.lr, t.epochs, s.milestones)
    assert found == INDEPENDENT[recipe]
    assert (c.optimizer.name, t.selection, t.clip_norm, t.clip_value) == ("adam", "best", None, None)


@pytest.mark.parametrize("task", ["smnist", "psmnist"])
def test_settings_of_indrnn_on_pixels(task):
    c, _ = compose_run(selection(f"indrnn/{task}"))
    m, t, o = c.model, c.training, c.optimizer
    assert (m.hidden, m.layers, m.norm, m.dropout, m.steps, m.magnitude) == (128, 6, "after", 0.1, 784, 5.0)
    assert (t.batch_size, o.name, o.lr, o.weight_decay, t.clip_value) == (32, "adam", 2e-4, 1e-4, 10)


# asRNN's authors for the LSTM: hidden, lr, alpha, clipping, epochs, length.
GATED = {
    "lstm/smnist_128": (128, 1e-3, 0.9, 1.0, 70, None),
    "lstm/psmnist_128": (128, 1e-3, 0.9, 1.0, 70, None),
    "lstm/ptb_char": (475, 1e-3, 0.99, None, 100, 150),
    "lstm/ptb_char_300": (475, 3e-3, 0.9, None, 100, 300),
}


@pytest.mark.parametrize("recipe", GATED)
def test_settings_of_asrnns_lstm(recipe):
    c, _ = compose_run(selection(recipe))
    t, o = c.training, c.optimizer
    found = (c.model.hidden, o.lr, o.alpha, t.clip_norm, t.epochs, getattr(c.task, "T", None))
    assert found == GATED[recipe]
    assert (o.name, c.model.forget_bias, c.model.readout) == ("rmsprop", 1, "cell")
    assert (t.batch_size, t.selection) == (128, "best")
    if "mnist" in recipe:
        # All 60,000 train, the best test epoch counts, the permutation is that of seed 92916.
        assert (c.task.protocol, c.scheduler.name) == ("exprnn", "constant")
        assert c.task.permutation == (None if c.task.name == "smnist" else "exprnn")
    else:
        assert halves_on_the_validation_error(c)


def halves_on_the_validation_error(c) -> bool:
    """As both released codes do it on PTB, where the vectors of the characters and the readout start uniform."""
    s = c.scheduler
    starts = (c.task.vectors, c.task.readout) == ("uniform", "uniform")
    return starts and (s.name, s.factor, s.patience, s.threshold, s.min_lr) == ("plateau", 0.5, 0, 0, None)


# nnRNN's authors for expRNN: length, hidden, lr.
RETUNED = {
    "exprnn/ptb_char_150_nnrnn": (150, 1386, 8e-3),
    "exprnn/ptb_char_300_nnrnn": (300, 1386, 1e-3),
    "exprnn/ptb_char_150_nnrnn_1024": (150, 1024, 1e-3),
    "exprnn/ptb_char_300_nnrnn_1024": (300, 1024, 1e-3),
}


@pytest.mark.parametrize("recipe", RETUNED)
def test_nnrnns_settings_of_exprnn(recipe):
    c, _ = compose_run(selection(recipe))
    assert (c.task.T, c.model.hidden, c.optimizer.lr) == RETUNED[recipe]
    assert (c.model.orthogonal_lr, c.optimizer.name, c.optimizer.alpha) == (0.1, "rmsprop", 0.9)
    assert halves_on_the_validation_error(c)


def test_settings_of_cornn_on_the_adding_problem():
    c, _ = compose_run(selection("cornn/adding_100"))
    assert (c.task.T, c.model.dt, c.model.gamma, c.model.epsilon) == (100, 0.06, 66, 15)
    assert (c.model.hidden, c.training.batch_size, c.optimizer.lr) == (128, 50, 0.02)
    assert (c.training.steps, c.training.target) == (60_000, None)


def test_permutation_follows_the_recipe_and_the_command_line_beats_it():
    assert compose_run(["model=cornn", "task=psmnist"])[0].task.permutation == "cornn"
    config, _ = compose_run(
        ["model=cornn", "task=psmnist", "task.permutation=exprnn", "optimizer=sgd", "scheduler=cosine", "model.dt=0.5"]
    )
    assert config.task.permutation == "exprnn"
    assert config.optimizer.name == "sgd"
    assert config.optimizer.lr == 0.0054
    assert (config.scheduler.name, config.scheduler.milestones) == ("cosine", None)
    assert config.model.dt == 0.5


def test_a_variant_sets_model_and_task():
    config, recipe = compose_run(["recipe=cornn/psmnist_128"])
    assert recipe == "cornn/psmnist_128"
    assert (config.model.name, config.task.name, config.model.hidden) == ("cornn", "psmnist", 128)
    assert config.training.epochs == 120


def test_the_laptop_recipe_is_a_shorter_one_that_aims_at_nothing():
    short, whole = (compose_run([f"recipe=cornn/{name}"])[0] for name in ("smnist_laptop", "smnist_128"))
    assert (short.model, short.task) == (whole.model, whole.task)
    assert (short.training.epochs, whole.training.epochs) == (10, 120)
    assert short.published is None


def test_no_recipe():
    config, recipe = compose_run(["model=cornn", "task=psmnist", "recipe=none", "training.epochs=1"])
    assert recipe is None
    assert config.published is None
    assert config.model.dt != 0.076
    with pytest.raises(UserError, match=r"steps=null.*epochs"):
        compose_run(["model=cornn", "task=psmnist", "recipe=none"])


def test_lr_falls_to_a_tenth_after_epoch_100():
    config, _ = compose_run(["model=cornn", "task=psmnist"])
    optimizer = config.optimizer.build(config.model.build(1, 10))
    scheduler = config.scheduler.build(optimizer, steps_per_unit=475, total_steps=57000)
    optimizer.step()
    rates = []
    for _ in range(57000):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert rates[: 100 * 475] == [0.0054] * (100 * 475)
    assert rates[100 * 475 :] == pytest.approx([0.00054] * (20 * 475))
