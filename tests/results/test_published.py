import re

import pytest
from omegaconf import OmegaConf

from longwave.results import published
from longwave.results.published import Published
from longwave.training.config import CONF, choices

FILES = [*published.papers(), published.UNVERIFIED]
RECIPES = [name for name in choices("recipe") if name != "none"]

# How cells call the data sets of the archives.
ARCHIVE = {
    "SelfRegulationSCP1": "uea_scp1", "SelfRegulationSCP2": "uea_scp2", "EthanolConcentration": "uea_ethanol",
    "Heartbeat": "uea_heartbeat", "MotorImagery": "uea_motor",
}  # fmt: skip

GOOD = {
    "model": "cornn", "task": "smnist", "metric": "accuracy", "value": 0.9, "kind": "mean", "protocol": "p",
    "source": "s",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a test may write papers of its own."""
    monkeypatch.setattr(published, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize("paper", FILES)
def test_a_file_is_valid(paper):
    records = published.load(paper)
    assert records
    for cell, record in records.items():
        assert f"{cell}_".startswith(f"{ARCHIVE.get(record.task, record.task)}_") or paper == published.UNVERIFIED, cell
        assert record.protocol.strip(), cell
        assert record.source.strip(), cell
        # Nothing remembered is among what was read, and the other way round.
        assert ("remembered" in record.source) == (paper == published.UNVERIFIED), cell


@pytest.mark.parametrize("paper", FILES)
def test_no_cell_is_there_twice(paper):
    # YAML would take the last of them.
    text = (published.FOLDER / f"{paper}.yaml").read_text()
    cells = re.findall(r"^(\w+):", text, re.MULTILINE)
    assert len(cells) == len(set(cells))
    assert {c for c in cells if not c.startswith("_")} == set(published.load(paper))


# As read in the papers' tables and repositories, one or more of each file.
KNOWN = {
    "cornn/psmnist_256": (0.973, None, None, 1, "single", 10000, 134154),
    "cornn/har2_64": (0.972, None, None, None, "unstated", 2947, 8897),
    "lstm/psmnist_256": (0.929, None, None, None, "quoted", 10000, 267000),
    "gru/psmnist_256": (0.941, None, None, None, "quoted", 10000, 201000),
    "unicornn/psmnist_256x3": (0.984, None, None, 1, "best", 10000, 136202),
    "unicornn/eigenworms_32x2": (0.903, None, None, None, "mean", 39, 1573),
    "unicornn/eigenworms_32x2_best": (0.949, None, None, 1, "best", 39, 1573),
    "unicornn/bidmc_rr_128x3": (1.06, None, None, None, "mean", 1192, 34305),
    "unicornn/bidmc_hr_cornn": (1.81, None, None, None, "mean", 1192, None),
    "lem/psmnist": (0.9662, None, None, 1, "single", 10000, 68362),
    "lem/eigenworms": (0.923, None, None, None, "mean", 39, 5285),
    "exprnn/smnist_170": (0.98, None, None, None, "best", 10000, 16000),
    "indrnn/psmnist": (0.96, None, None, None, "unstated", 10000, None),
    "asrnn/ptb_char_300_exprnn": (1.52, 0.001, None, None, "mean", None, None),
    "nnrnn/ptb_char_150_nnrnn": (1.40, 0.003, None, None, "mean", None, None),
    "indrnn/psmnist_log": (0.9564, None, None, 1, "single", 10000, None),
    "fastgrnn/har2_fastgrnn": (0.9538, None, None, None, "unstated", 2947, None),
    "nrde/eigenworms_depth1_step1": (0.624, 0.121, None, 3, "mean", 39, 34629),
    "nrde/eigenworms_depth2_step4": (0.838, 0.030, None, 3, "mean", 39, 99813),
    "nrde/eigenworms_depth3_step512": (0.624, 0.104, None, 3, "mean", 39, 447461),
    "nrde/bidmc_rr_depth3_step512": (1.49, 0.08, None, 3, "mean", 1193, 222785),
    "nrde/bidmc_hr_depth3_step128": (2.97, 0.45, None, 3, "mean", 1193, 140737),
    "nrde/bidmc_spo2_depth2_step16": (1.98, 0.21, None, 3, "mean", 1193, 123969),
    "linoss/eigenworms_im": (0.95, 0.044, "population", 5, "mean", None, 134279),
    "linoss/uea_motor_imex": (0.579, 0.053, "population", 5, "mean", None, None),
    "linoss/ppg_dalia_log_ncde": (0.0956, 0.0059, "population", 5, "mean", None, None),
    "s4/psmnist_ur_gru": (0.9651, None, None, None, "quoted", 10000, None),
    "s4/bidmc_spo2_s4_legs": (0.09, None, None, None, "quoted", None, None),
    "lssl/bidmc_spo2_unicornn": (0.869, None, None, None, "quoted", None, None),
}


@pytest.mark.parametrize("key", KNOWN)
def test_what_was_read_is_what_is_there(key):
    r = published.get(key)
    assert (r.value, r.deviation, r.deviation_kind, r.n, r.kind, r.test_samples, r.parameters) == KNOWN[key]


def test_every_paper_has_a_known_value():
    assert {key.partition("/")[0] for key in KNOWN} == set(published.papers())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vaule": 1}, "vaule: no such key; there are model, task, metric"),
        ({"value": "1e-3"}, "value=1e-3: must be float or null or int"),
        ({"value": 97.3}, "value=97.3: an accuracy is a fraction"),
        ({"value": None}, "value=None: a curve has no value"),
        ({"value": -0.1}, "value=-0.1: must be finite and not negative"),
        ({"value": float("nan")}, "value=nan: must be finite"),
        ({"value": True}, "value=True: must be"),
        ({"kind": "curve"}, "value=0.9: a curve has no value, and nothing else is without"),
        ({"kind": "median"}, "kind=median: must be one of mean, best, single, quoted"),
        ({"metric": "acc"}, "metric=acc: must be one of accuracy, mse"),
        ({"n": 0}, "n=0: must be at least 1"),
        ({"n": 2.5}, "n=2.5: must be int or null"),
        ({"test_samples": 0}, "test_samples=0: must be at least 1"),
        ({"deviation_kind": "sample"}, "deviation_kind=sample: there is no deviation"),
        ({"deviation": 0.1, "deviation_kind": "standard error"}, "deviation_kind=standard error: must be one of"),
        ({"deviation": 0.1, "kind": "best"}, "deviation=0.1: only a mean over several runs has one"),
        ({"deviation": 0.1, "n": 1}, "deviation=0.1: only a mean over several runs has one"),
        ({"cost": {"euros": 3}}, "cost=euros: must be one of hours"),
        ({"trajectory": {1.5: 0.3}}, "trajectory={1.5: 0.3}: must be by epoch, a whole number"),
        ({"source": None}, "source=None: must be str"),
    ],
)
def test_a_wrong_record_is_refused_by_name(folder, change, message):
    (folder / "paper.yaml").write_text(OmegaConf.to_yaml({"cell": GOOD}))
    assert published.get("paper/cell") == Published(**GOOD)
    (folder / "paper.yaml").write_text(OmegaConf.to_yaml({"cell": GOOD | change}))
    with pytest.raises(ValueError, match=re.escape(f"paper/cell in {folder.name}/paper.yaml: {message}")):
        published.load("paper")
    with pytest.raises(ValueError, match=re.escape(message)):
        published.get("paper/cell")


@pytest.mark.parametrize("key", ["model", "task", "metric", "value", "kind", "protocol", "source"])
def test_what_a_record_must_have(folder, key):
    (folder / "paper.yaml").write_text(OmegaConf.to_yaml({"cell": {k: v for k, v in GOOD.items() if k != key}}))
    with pytest.raises(ValueError, match=f"paper/cell .*: {key} is missing"):
        published.load("paper")


def test_lookup_gives_what_a_run_keeps():
    found = published.lookup("cornn/adding")
    assert found["key"] == "cornn/adding"
    assert (found["value"], found["kind"], found["parameters"]) == (None, "curve", 33281)
    assert "deviation" not in found
    assert published.lookup(None) is None


def test_an_unknown_key_names_the_known():
    with pytest.raises(ValueError, match=r"published=cornn/nope: .*cornn/psmnist_256"):
        published.lookup("cornn/nope")
    with pytest.raises(ValueError, match=r"nobody/psmnist: .*cornn/\.\.\., "):
        published.lookup("nobody/psmnist")
    with pytest.raises(ValueError, match=r"cornn: no such published value"):
        published.lookup("cornn")


def test_what_is_remembered_has_no_key():
    cell = next(iter(published.load(published.UNVERIFIED)))
    assert published.UNVERIFIED not in published.papers()
    with pytest.raises(ValueError, match=f"published=unverified/{cell}: no such published value"):
        published.lookup(f"unverified/{cell}")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_aims_at_a_record_of_its_own_model_and_task(recipe):
    content = OmegaConf.load(CONF / "recipe" / f"{recipe}.yaml")
    if content["published"] is None:
        # tests/test_recipes.py: then it says so.
        return
    record = published.get(content["published"])
    model, _, cell = recipe.partition("/")
    assert record.model == model
    assert f"{cell}_".startswith(f"{ARCHIVE.get(record.task, record.task)}_")
    assert OmegaConf.select(content, "task.dataset", default=record.task) == record.task
