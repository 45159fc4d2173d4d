import numpy as np
import pytest
from PIL import Image

from longwave.tasks import mnist, show
from longwave.training.config import choices
from tests.archives import write_ts
from tests.stand_ins import FIXTURES, SHORT


def panels(figure) -> dict[str, object]:
    """The axes by their titles."""
    return {axes.get_title(): axes for part in figure.subfigs for axes in part.axes}


def figure(name, root, *overrides, seed=0):
    config = show.configure(name, list(overrides))
    task = config.build(seed, root)
    return task, panels(show.draw(config, task))


def test_a_permuted_task(fake_mnist):
    task, found = figure("psmnist", fake_mnist, "permutation=exprnn", "task.validation=600")
    _, order = found["permutation exprnn"].lines[0].get_data()
    assert np.array_equal(order, mnist.permutation("exprnn"))
    # Ten classes, each a tenth of each of the three splits.
    heights = [bar.get_height() for bar in found["targets"].patches]
    assert len(heights) == 30
    counts = task.targets[task.splits["train"]].bincount()
    assert heights[:10] == pytest.approx((counts / counts.sum()).tolist())
    assert found["lengths"].texts[0].get_text() == "784 steps each"
    x, target = task.batch(0, show.EXAMPLES)
    examples = [axes for title, axes in found.items() if title.startswith("target: ")]
    assert {f"target: {t}" for t in target.tolist()} == {axes.get_title() for axes in examples}
    first = found[f"target: {target[-1]}"].lines[0].get_data()
    assert np.array_equal(first[1], x[:, -1, 0])


@pytest.fixture
def ragged(tmp_path):
    rng = np.random.default_rng(0)
    series = [rng.normal(size=(n, 2)) for n in (5, 3, 9, 7, 1, 6)]
    for part in ("TRAIN", "TEST"):
        write_ts(tmp_path / "uea" / f"Classes_{part}.ts", series, list("ababba"), ["a", "b"])
        write_ts(tmp_path / "uea" / f"Numbers_{part}.ts", [one[:1] for one in series], [0.5 * i for i in range(6)])
        many = [rng.normal(size=(4, 13)) for _ in range(60)]
        write_ts(tmp_path / "uea" / f"Many_{part}.ts", many, list(rng.normal(size=60)))
    return tmp_path


def test_unequal_lengths(ragged):
    task, found = figure("uea", ragged, "dataset=Classes", "validation=0")
    x, target, lengths = task.batch(0, show.EXAMPLES)
    # Padding is not drawn.
    drawn = {axes.lines[0].get_data()[1].shape[0] for title, axes in found.items() if title.startswith("target: ")}
    assert drawn <= set(lengths.tolist())
    assert found[f"target: {'ab'[target[-1]]}"].lines[1].get_data()[1].tolist() == x[: lengths[-1], -1, 1].tolist()
    assert [label.get_text() for label in found["targets"].get_xticklabels()] == ["a", "b"]
    assert [bar.get_height() for bar in found["targets"].patches] == [0.5] * 4
    assert len(found["lengths"].patches) == 2
    assert not any(title.startswith("permutation") for title in found)


def test_numbers_to_predict(ragged):
    _, found = figure("uea", ragged, "dataset=Numbers", "validation=0")
    assert [label.get_text() for label in found["targets"].get_xticklabels()] == ["0", "0.5", "1", "1.5", "2", "2.5"]
    _, found = figure("uea", ragged, "dataset=Many", "validation=0")
    # Too many for bars: a histogram. Too many channels for lines: an image.
    assert len(found["targets"].patches) == 2
    assert next(axes for title, axes in found.items() if title.startswith("target: ")).images


def test_a_stream(tmp_path):
    _, found = figure("adding", tmp_path, "T=7")
    assert found["lengths"].texts[0].get_text() == "7 steps each"
    assert "targets" in found


@pytest.mark.parametrize("name", choices("task"))
def test_every_task(name, request, monkeypatch):
    monkeypatch.setattr("longwave.tasks.base.ArrayTask.evaluation_batch", 20)
    root = request.getfixturevalue(FIXTURES.get(name, "tmp_path"))
    short = [text for text in SHORT.get(name, []) if not text.startswith("transform")]
    _task, found = figure(name, root, *short)
    assert {"targets", "lengths"} <= found.keys()
    assert ("permutation cornn" in found) == (name == "psmnist")
    above = [axes for title, axes in found.items() if title.startswith("target: ") or "every step" in title]
    assert above
    assert all(axes.lines or axes.images for axes in above)
    assert all(axes.patches or axes.texts for title, axes in found.items() if title in ("targets", "lengths"))


def test_writes_a_png_and_says_where(ragged, tmp_path, capsys):
    out = tmp_path / "new" / "x.png"
    show.main(["uea", "dataset=Classes", "--root", str(ragged), "--out", str(out), "--seed", "3"])
    assert capsys.readouterr().out.strip() == str(out)
    image = np.asarray(Image.open(out))
    assert image.shape[:2] == (800, 1600)
    assert image.std() > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["foo"], "error: foo: no such task; there are adding, .*uea"),
        (["uea", "datset=X"], "error: datset=X: .*the keys of uea are dataset, protocol"),
        (["adding", "T=many"], "error: T=many: "),
        (["adding", "T=0"], "error: T=0: must be at least 2"),
    ],
)
def test_a_wrong_argument_is_one_line(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message) as caught:
        show.main([*arguments, "--root", str(tmp_path)])
    assert "\n" not in str(caught.value)


def test_offline_is_an_error(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr("longwave.tasks.data.urllib.request.urlopen", offline)
    with pytest.raises(SystemExit, match=r"^error: .*Nowhere\.zip: cannot be downloaded; .*\nfrom .*\(offline\)\n"):
        show.main(["uea", "dataset=Nowhere", "--root", str(tmp_path)])
