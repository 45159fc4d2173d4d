"""The snippets of docs/library.md, as printed."""

import re
import shutil

import pytest
import torch

import longwave
from longwave import PACKAGE

TEXT = (PACKAGE / "docs" / "library.md").read_text()
HEAD, *SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
# It compiles C++.
COMPILED = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++")]


def title(snippet: str) -> str:
    return re.findall(r"^## (.*)", TEXT[: TEXT.index(snippet)], re.MULTILINE)[-1]


@pytest.mark.parametrize(
    "snippet", [pytest.param(s, id=title(s), marks=COMPILED if "torch.compile(" in s else []) for s in SNIPPETS]
)
def test_runs(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    for code in (HEAD, snippet):
        above = TEXT[: TEXT.index(code)].count("\n")
        exec(compile("\n" * above + code, "docs/library.md", "exec"), names)


def test_every_layer_is_shown():
    shown = ", ".join(re.findall(r"from longwave import (.*)", HEAD)).split(", ")
    assert set(shown) == set(longwave.__all__) - {"home", "load"}
    rows = [
        row for rows in re.findall(r"^\| (`\w+\(.*?) \|", TEXT, re.MULTILINE) for row in re.findall("`(.*?)`", rows)
    ]
    layers = set(shown) - {"Stacked", "detach", "kernels"}
    assert {row.partition("(")[0] for row in rows} == layers
    for row in rows:
        layer = eval(row, vars(longwave) | {name: getattr(longwave, name) for name in shown}).eval()
        sequence, state = layer(torch.randn(5, 2, int(re.search(r"\((\d+)", row)[1])))
        assert sequence.shape == (5, 2, int(re.search(r", (\d+)", row)[1]))
        assert (state if isinstance(state, torch.Tensor) else state[0]).shape == sequence.shape[1:]


def test_settings_are_checked_as_those_of_a_run():
    with pytest.raises(ValueError, match=r"^damping=explict: must be one of explicit, implicit$"):
        longwave.CoRNN(3, 8, damping="explict")
    for name in set(longwave.__all__) - {"Stacked", "detach", "home", "kernels", "load"}:
        # Those of torch's own layers say it in torch's words.
        with pytest.raises(ValueError, match=r"^(hidden=0: must be at least 1|hidden_size must be greater than zero)$"):
            getattr(longwave, name)(3, 0)
    with pytest.raises(TypeError, match="damp"):
        longwave.CoRNN(3, 8, damp="implicit")
