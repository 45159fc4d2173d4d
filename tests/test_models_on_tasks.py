"""All models run on all tasks; the Neural RDE on those that have a log-signature, and refuses the others."""

import json
import math

import pytest

from longwave.training.config import choices
from longwave.training.errors import UserError
from tests.stand_ins import FIXTURES, SHORT

# An output at every step, or words.
NO_LOG_SIGNATURE = ("copying", "fitzhugh_nagumo", "imdb", "ptb_char")
# Of equal lengths; and blocks that leave little of 70,000 images.
SERIES = {
    "uea": ["task.dataset=BasicMotions"],
    "smnist": ["transform.step=56"],
    "psmnist": ["transform.step=56"],
    "ncifar10": ["transform.step=100"],
}
NO_PATH = r"^transform=log_signature: is for tasks with one output a sequence"


@pytest.mark.parametrize("task", choices("task"))
@pytest.mark.parametrize("model", choices("model"))
def test_runs(model, task, fit_here, request, small_batches):
    root = request.getfixturevalue(FIXTURES.get(task, "tmp_path"))
    arguments = [f"model={model}", f"task={task}", "recipe=none", "debug=fast", f"data.root={root}", "model.hidden=4"]
    arguments += ["training.batch_size=3", *SHORT.get(task, [])]
    if model == "nrde" and task in NO_LOG_SIGNATURE:
        with pytest.raises(UserError, match=NO_PATH):
            fit_here(*arguments)
        return
    if model == "nrde":
        arguments += SERIES.get(task, [])
    objective, folder = fit_here(*arguments)
    assert math.isfinite(objective)
    assert json.loads((folder / "record.json").read_text())["status"] == "finished"


def test_the_neural_rde_reads_lengths_that_differ(fit_here, uea_root):
    arguments = ["model=nrde", "task=uea", "task.dataset=JapaneseVowels", "recipe=none", "debug=fast"]
    objective, _ = fit_here(*arguments, f"data.root={uea_root}", "model.hidden=4", "transform.step=2")
    assert math.isfinite(objective)
