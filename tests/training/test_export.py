"""What a trained network can be exported to: the table of docs/after-training.md, each cell of it tried."""

import importlib.util
import json
import re

import pytest
import torch

import longwave
from longwave import PACKAGE
from longwave.training import export
from longwave.training.config import choices
from longwave.training.errors import UserError
from longwave.training.weights import selected
from tests.models.test_contract import NAMES, VARIANTS, build
from tests.stand_ins import FIXTURES, SHORT

TINY = ("recipe=none", "debug=fast", "model.hidden=4", "training.batch_size=3")
PAGE = (PACKAGE / "docs" / "after-training.md").read_text()


def needs(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}; pip install '.[export]'")


ONNX = needs("onnx", "onnxscript", "onnxruntime")
# Some seconds each; one of each kind of loop at once.
QUICK = ("cornn", "nrde")


def exported(name: str, to: str, reads: str) -> None:
    """Equal to the network at other numbers of samples and steps than it was exported with."""
    model = build(name).eval()
    model.reads = reads
    for norm in (part for part in model.modules() if isinstance(part, torch.nn.BatchNorm1d)):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    shapes = [(3, 12, 2), (1, 2, 2), (4, 1, 2)]
    if to == "onnx" and not model.layer.starts_from_zeros:
        # The loop of ONNX takes at least one step, and the first log-signature comes before it.
        shapes = shapes[:2]
    x = [torch.randn(shape) for shape in shapes]
    make = export._onnx if to == "onnx" else export._torchscript
    with torch.no_grad(), export._quiet():
        expected = [model(one.transpose(0, 1)) for one in x]
        _, run = make(export.on_the_reference(model), torch.randn(2, 5, 2), {})
        for one, output in zip(x, expected, strict=True):
            torch.testing.assert_close(run(one), output.transpose(0, 1) if reads == "every" else output)


@pytest.mark.parametrize("reads", ["last", "every"])
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_torchscript(name, reads):
    exported(name, "torchscript", reads)


@ONNX
@pytest.mark.parametrize(
    ("name", "reads"),
    [
        *(pytest.param(name, "last", marks=[] if name in QUICK else pytest.mark.slow) for name in NAMES),
        *(pytest.param(name, "every", marks=pytest.mark.slow) for name in choices("model")),
    ],
)
def test_onnx(name, reads):
    exported(name, "onnx", reads)


@needs("safetensors")
@pytest.mark.parametrize("name", choices("model"))
def test_safetensors(name, fit_here):
    from safetensors.torch import load_file

    more = ["transform.step=5"] if name == "nrde" else []
    _, folder = fit_here(f"model={name}", "task=adding", *TINY, *more)
    (path,) = export.export(folder, "safetensors")
    found, (chosen, _) = load_file(path), selected(folder)
    assert found.keys() == chosen.keys()
    assert all(torch.equal(found[key], chosen[key]) for key in chosen)


def test_the_table_of_the_page_has_every_model():
    """A cell says yes where the tests above pass; one that fails would have to say no."""
    rows = dict(re.findall(r"^\| `(\w+)` \| (yes[^|]*\| yes \| yes) \|$", PAGE, re.MULTILINE))
    assert set(rows) == set(choices("model"))
    assert set(VARIANTS) < set(NAMES)


@pytest.fixture
def folder(fit_here, fake_har):
    return fit_here("task=har2", "model=cornn", *TINY, f"data.root={fake_har}")[1]


def test_torchscript_of_a_run(folder, tmp_path):
    export.main([str(folder), "--to", "torchscript", "--out", str(tmp_path / "x.pt")])
    files = {"run": "", "classes": ""}
    loaded = torch.jit.load(tmp_path / "x.pt", _extra_files=files)
    assert files["run"].decode() == folder.name
    model, raw = longwave.load(folder, "cpu"), torch.randn(3, 20, 9)
    x = torch.stack(model.prepare(raw))
    torch.testing.assert_close(loaded(x), model.predict(raw).outputs)


@ONNX
def test_onnx_of_a_run(folder, capsys):
    import onnx
    import onnxruntime

    export.main([str(folder), "--to", "onnx"])
    path, checked = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"checked on 3 x 12 steps: differs by at most \S+ of the largest output", checked)
    meta = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert (meta["run"], json.loads(meta["classes"])) == (folder.name, None)
    session = onnxruntime.InferenceSession(path)
    model, raw = longwave.load(folder, "cpu"), torch.randn(3, 20, 9)
    x = torch.stack(model.prepare(raw))
    [output] = session.run(["output"], {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), model.predict(raw).outputs)


@pytest.mark.parametrize(
    ("task", "to"),
    [
        ("ptb_char", "torchscript"),
        ("copying", "torchscript"),
        pytest.param("ptb_char", "onnx", marks=[ONNX, pytest.mark.slow]),
    ],
)
def test_tokens_and_every_step(task, to, fit_here, request):
    root = request.getfixturevalue(FIXTURES.get(task, "tmp_path"))
    _, folder = fit_here(f"task={task}", "model=lstm", *TINY, f"data.root={root}", *SHORT[task])
    assert len(export.export(folder, to)) == 2


def test_what_cannot_be_exported(folder, monkeypatch):
    def failing(*_):
        raise RuntimeError("no operator aten::new\nand more")

    monkeypatch.setattr(export, "_torchscript", failing)
    with pytest.raises(UserError, match=r"^model=cornn cannot be exported to torchscript: no operator aten::new$"):
        export.export(folder, "torchscript")
    monkeypatch.setattr(export, "_torchscript", lambda *_: (b"", lambda x: torch.ones(3, 1)))
    with pytest.raises(UserError, match=r"exported to torchscript: its output differs by \S+ of the largest output$"):
        export.export(folder, "torchscript")
    assert not list(folder.glob("model*"))


@pytest.mark.parametrize(
    ("to", "names"), [("onnx", "onnx and onnxscript"), ("safetensors", "safetensors"), ("torchscript", None)]
)
def test_a_package_that_is_not_installed(to, names, folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    if names is None:
        assert not export.NEEDED[to]
        return
    with pytest.raises(UserError, match=rf"^--to {to}: needs {names}, not installed here: pip install "):
        export.export(folder, to)
