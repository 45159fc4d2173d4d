import pytest

from longwave.training.report import report
from tests.results.cases import make_record, parsed


def test_what_was_never_passed_is_a_sentence(caplog, tmp_path):
    made = make_record(task="adding", value=0.005, first_passed={"test/mse": {"0.01": 2700, "0.001": None}})
    assert report(parsed(made), tmp_path) == 0.005
    assert "test/mse passed 0.01 at step 2,700, never passed 0.001" in caplog.messages


@pytest.mark.parametrize(
    ("steps", "text"), [(1, "0 of the recipe's 1 step"), (20000, "0 of the recipe's 20,000 steps")]
)
def test_one_step_is_one(steps, text, caplog, tmp_path):
    report(parsed(make_record(budget={"steps": 0, "steps_in_recipe": steps})), tmp_path)
    assert f"reduced budget: {text}" in caplog.messages
