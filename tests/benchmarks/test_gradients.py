import json
import sys

import pytest

from longwave.benchmarks import gradients
from longwave.training.errors import UserError


def test_at_initialisation_and_after_training(fit_here, tmp_path, monkeypatch, capsys):
    arguments = ["task.T=9", "model.hidden=3", "training.batch_size=4", "training.steps=6", "training.target=null"]
    _, folder = fit_here("model=lstm", *arguments, "diagnostics=gradients")
    entries = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    arguments += [f"output={tmp_path / 'outputs'}", "tracking=none"]
    found = gradients.measure(["model=lstm", *arguments])
    assert list(found) == ["initialised", "after 6 steps"]
    for norms, entry in zip(found.values(), (entries[0], entries[-1]), strict=True):
        assert list(norms) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
        assert norms[8] == entry["gradients/lag_8"]
        assert norms[4] == entry["gradients/lag_4"]
    # No run of the other model is there.
    path = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", ["gradients", *arguments, "--models", "lstm,cornn", "--output", str(path)])
    gradients.main()
    assert path.read_bytes().startswith(b"\x89PNG")
    lines = [line for line in capsys.readouterr().out.splitlines() if "initialised" in line or "after" in line]
    assert ["lstm" in line for line in lines] == [True, True, False]
    assert [path.name for path in (tmp_path / "outputs" / "runs").iterdir()] == [folder.name]


def test_a_task_that_is_read_at_every_step_of_models_without_a_recipe(tmp_path):
    """The error of the last step, which is felt at all lags."""
    arguments = ["task=copying", "task.L=9", "model.hidden=5", f"output={tmp_path}"]
    found = gradients.measure(["model=lstm", *arguments])
    assert list(found) == ["initialised"]
    norms = found["initialised"]
    # L + 2 K steps.
    assert max(norms) == 9 + 20 - 1
    assert all(norm > 0 for norm in norms.values())
    with pytest.raises(UserError, match=r"^model\.hidden=0: "):
        gradients.measure(["model=lstm", *arguments, "model.hidden=0"])
