import pytest
from omegaconf import OmegaConf

from results import published
from training.config import CONF, choices

RECORDS = [(path.stem, cell) for path in sorted(published.FOLDER.glob("*.yaml")) for cell in published.load(path.stem)]


@pytest.mark.parametrize(("paper", "cell"), RECORDS)
def test_a_record_says_what_it_is(paper, cell):
    record = published.lookup(f"{paper}/{cell}")
    assert record["key"] == f"{paper}/{cell}"
    assert {"model", "task", "metric", "value", "kind", "protocol", "source"} <= set(record)
    assert record["kind"] in {"mean", "best", "single", "quoted", "curve"}
    assert (record["value"] is None) == (record["kind"] == "curve")
    if record["metric"] == "accuracy":
        assert 0 < record["value"] < 1
        assert record["test_samples"] > 0


def test_an_unknown_key_names_the_known():
    with pytest.raises(ValueError, match=r"published=cornn/nope: .*cornn/psmnist_256"):
        published.lookup("cornn/nope")
    with pytest.raises(ValueError, match="nobody/psmnist"):
        published.lookup("nobody/psmnist")
    assert published.lookup(None) is None


@pytest.mark.parametrize("recipe", [name for name in choices("recipe") if name != "none"])
def test_every_recipe_aims_at_a_record_of_its_own_model_and_task(recipe):
    content = OmegaConf.load(CONF / "recipe" / f"{recipe}.yaml")
    record = published.lookup(content["published"])
    if record is None:
        # tests/test_recipes.py: then it says so.
        return
    model, _, cell = recipe.partition("/")
    assert record["model"] == model
    assert f"{cell}_".startswith(f"{record['task']}_")
