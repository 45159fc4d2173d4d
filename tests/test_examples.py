"""The notebook runs from its first cell to its last."""

import json

import pytest

from longwave import PACKAGE

NOTEBOOK = PACKAGE / "examples" / "own_data.ipynb"


@pytest.mark.slow
def test_the_notebook(tmp_path, monkeypatch):
    """Cell by cell, as Jupyter has it, with a smaller budget."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells)
    sources = ["".join(cell["source"]) for cell in cells]
    assert "training.steps=300" in "".join(sources)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("LONGWAVE_HOME", str(tmp_path))
    names = {}
    for source in sources:
        exec(compile(source.replace("training.steps=300", "training.steps=8"), str(NOTEBOOK), "exec"), names)
    assert len(list((tmp_path / "outputs" / "runs").iterdir())) == 26
    assert "linoss" in names["table"]
    assert names["found"].probabilities.sum().item() == pytest.approx(1)
    assert len(names["logits"]) == len(names["recording"])
