"""All models run on all tasks."""

import json
import math

import pytest

from tests.stand_ins import FIXTURES, SHORT
from training.config import choices


@pytest.mark.parametrize("task", choices("task"))
@pytest.mark.parametrize("model", choices("model"))
def test_runs(model, task, fit_here, request, monkeypatch):
    monkeypatch.setattr("tasks.base.ArrayTask.evaluation_batch", 20)
    monkeypatch.setattr("tasks.ncifar10.NoisyCIFAR10.evaluation_batch", 3)
    root = request.getfixturevalue(FIXTURES.get(task, "tmp_path"))
    objective, folder = fit_here(
        f"model={model}", f"task={task}", "recipe=none", "debug=fast", f"data.root={root}", "model.hidden=4",
        "training.batch_size=3", *SHORT.get(task, []),
    )  # fmt: skip
    assert math.isfinite(objective)
    assert json.loads((folder / "record.json").read_text())["status"] == "finished"
