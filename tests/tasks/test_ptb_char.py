import dataclasses
import math

import pytest
import torch

from longwave.tasks import ptb_char
from longwave.tasks.checks import DataError
from longwave.tasks.ptb_char import Config, read
from longwave.training.errors import UserError
from tests import stand_ins


def write(root, train, valid="b a \n" * 10, test="a b \n" * 10):
    folder = root / "simple-examples" / "data"
    folder.mkdir(parents=True)
    for name, text in (("train", train), ("valid", valid), ("test", test)):
        (folder / f"ptb.char.{name}.txt").write_text(text)
    return root


def test_reads_the_official_format(tmp_path):
    root = write(tmp_path, " a b _ a \n c \n", " b \n", " d _ \n")
    texts, characters, files = read(root, end_of_line=True)
    assert characters == ["a", "b", "_", "<eos>", "c", "d"]
    assert {split: text.tolist() for split, text in texts.items()} == {
        "train": [0, 1, 2, 0, 3, 4, 3], "validation": [1, 3], "test": [5, 2, 3],
    }  # fmt: skip
    assert [name for name, _ in files] == ["ptb.char.train.txt", "ptb.char.valid.txt", "ptb.char.test.txt"]
    texts, characters, _ = read(root, end_of_line=False)
    assert characters == ["a", "b", "_", "c", "d"]
    assert texts["train"].tolist() == [0, 1, 2, 0, 3]


def test_strips_side_by_side_in_chunks(tmp_path):
    # 23 characters make 2 strips of 11; the last is left out.
    text = "abcdefghijklmnopqrstuvw"
    task = Config(T=4, end_of_line=False).build(0, write(tmp_path, " ".join(text)))
    assert task.steps_per_epoch(2) == 3
    spelled = [
        tuple(["".join(task.characters[i] for i in column) for column in part.T] for part in task.batch(step, 2))
        for step in range(4)
    ]
    assert spelled[:3] == [
        (["abcd", "lmno"], ["bcde", "mnop"]),
        (["efgh", "pqrs"], ["fghi", "qrst"]),
        (["ij", "tu"], ["jk", "uv"]),
    ]
    # The next epoch begins anew.
    assert spelled[3] == spelled[0]


@pytest.mark.parametrize(("length", "chunks"), [(2, 1), (5, 1), (6, 2), (9, 2), (10, 3)])
def test_number_of_chunks(length, chunks, tmp_path):
    task = Config(T=4, end_of_line=False).build(0, write(tmp_path, "x " * 3 * length))
    assert task.steps_per_epoch(3) == chunks
    assert sum(task.batch(step, 3)[0].numel() for step in range(chunks)) == 3 * (length - 1)


def test_bits_per_character_of_a_case_by_hand(tmp_path, fit_here):
    """A model that always gives b three times the odds of a, on a text of a and b."""
    root = write(tmp_path, "a b " * 20, "a b a a b b a b a b b b a", "b a " * 9)
    task = Config(T=5, end_of_line=False, evaluation_batch=1).build(0, root)
    # 12 of the 13 characters of the validation text are predicted, in chunks of 5, 5 and 2: b a a b b a b a b b b a
    sums, count = 0.0, 0
    for x, target in task.evaluation("validation"):
        output = torch.tensor([0.0, math.log(3)]).expand(*x.shape, 2)
        scores = task.scores(output, target)
        sums, count = sums + scores["bpc"].sum().item(), count + scores["bpc"].numel()
        torch.testing.assert_close(scores["cross_entropy"], scores["bpc"] * math.log(2))
    assert count == 12
    assert sums / count == pytest.approx((7 * math.log2(4 / 3) + 5 * 2) / 12)
    # As often as in the training text, each character takes a bit.
    assert task.baseline["bpc"] == pytest.approx(1)


def test_every_character_counts_the_same_in_an_evaluation(fake_ptb, fit_here):
    """The last chunk is shorter; what is reported is the mean over characters, not over chunks."""
    arguments = (
        f"data.root={fake_ptb}", "model=lstm", "task=ptb_char", "recipe=none", "task.T=20", "task.embedding=3",
        "model.hidden=4", "training.batch_size=3", "training.steps=2",
    )  # fmt: skip
    objective, folder = fit_here(*arguments)
    task = Config(T=20, embedding=3).build(0, fake_ptb)
    saved = torch.load(folder / "checkpoint.pt")["model"]
    lstm, readout = torch.nn.LSTM(3, 4), torch.nn.Linear(4, task.outputs)
    lstm.load_state_dict({key.removeprefix("layer."): v for key, v in saved.items() if key.startswith("layer.")})
    readout.load_state_dict({key.removeprefix("readout."): v for key, v in saved.items() if key.startswith("readout.")})
    # The validation text at once, from zeros.
    chunks = list(task.evaluation("validation"))
    assert len({len(x) for x, _ in chunks}) == 2
    x, target = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    with torch.no_grad():
        output = readout(lstm(saved["embedding.weight"][x])[0])
    nats = torch.nn.functional.cross_entropy(output.flatten(0, 1), target.flatten())
    assert objective == pytest.approx(nats.item() / math.log(2), rel=1e-5)


def test_released_vectors_are_uniform(fake_ptb):
    weight = Config(embedding=300, vectors="uniform").build(0, fake_ptb).embedding().weight
    assert -0.1 <= weight.min() < -0.099
    assert 0.099 < weight.max() <= 0.1
    assert Config(embedding=300).build(0, fake_ptb).embedding().weight.std().item() == pytest.approx(1, abs=0.05)


def test_an_embedding_of_the_seed_is_trained(fake_ptb, fit_here):
    task = Config(embedding=7).build(0, fake_ptb)
    assert task.inputs == 7
    weight = task.embedding().weight
    assert weight.shape == (task.outputs, 7)
    assert torch.equal(weight, task.embedding().weight)
    assert not torch.equal(weight, Config(embedding=7).build(1, fake_ptb).embedding().weight)
    _, folder = fit_here(
        f"data.root={fake_ptb}", "model=lstm", "task=ptb_char", "recipe=none", "task.embedding=7", "model.hidden=2",
        "training.steps=1", "training.batch_size=2",
    )  # fmt: skip
    trained = torch.load(folder / "checkpoint.pt")["model"]["embedding.weight"]
    assert not torch.equal(trained, weight)
    assert torch.allclose(trained, weight, atol=2e-3)


def test_from_the_archive(tmp_path, monkeypatch):
    stand_ins.ptb(tmp_path / "made", 5)
    (tmp_path / "made" / "simple-examples" / "data" / "README").write_text("of no use here")
    root = tmp_path / "root"
    source = ptb_char.SOURCES["ptb_char"][0]
    stand_ins.pack(root / source.path, tmp_path / "made" / "simple-examples")
    texts, _, files = read(root, True)
    assert len(texts["train"]) == 5 * 14
    assert dict(files)["ptb.char.test.txt"] == stand_ins.sha256(
        tmp_path / "made" / "simple-examples" / "data" / "ptb.char.test.txt"
    )


def test_offline_says_what_to_put_where(tmp_path, monkeypatch):
    source = dataclasses.replace(ptb_char.SOURCES["ptb_char"][0], urls=("http://127.0.0.1:9/x.tgz",))
    monkeypatch.setitem(ptb_char.SOURCES, "ptb_char", (source,))
    with pytest.raises(OSError, match=r"downloads/simple-examples\.tgz: .*\nfrom http://127\.0\.0\.1:9/x\.tgz"):
        read(tmp_path, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a b\na \xe9 b\n", "line 2: the byte 0xe9 is not UTF-8"),
        ("a b\n".encode("utf-16"), "is in UTF-16"),
        (b"a b\na \0 b\n", "line 2: a zero byte"),
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"a b\nno it was\n", "line 2: 'no' is more than one character"),
        (" ".join(map(chr, range(1000, 1300))).encode(), "line 1: more than 256 different characters"),
        (b"<!DOCTYPE html><html>", "is an HTML page"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_damaged_text_is_named(text, message, split, tmp_path):
    root = write(tmp_path, "a b \n" * 10)
    path = root / "simple-examples" / "data" / ptb_char.FILES[split]
    path.write_bytes(text)
    with pytest.raises(DataError, match=rf"{path}.*{message}"):
        Config().build(0, root)


def test_the_unknown_word_may_be_one_symbol(tmp_path):
    assert "<unk>" in read(write(tmp_path, "a _ <unk> _ b\n"), end_of_line=True)[1]


def test_a_text_that_is_too_short_for_the_strips(tmp_path, fit_here):
    root = write(tmp_path, "a b \n" * 10, valid="a b a b a b \n" * 3, test="a b a b a b a\n")
    with pytest.raises(DataError, match=r"ptb\.char\.test\.txt: 8 characters, too few for task\.evaluation_batch=8"):
        Config(evaluation_batch=8).build(0, root)
    with pytest.raises(UserError, match=r"training\.batch_size=20: more samples than the training set gives"):
        fit_here(
            f"data.root={root}", "model=lstm", "task=ptb_char", "task.evaluation_batch=2", "training.batch_size=20",
            "training.steps=1", "model.hidden=2",
        )  # fmt: skip


def test_refuses():
    for key in ("T", "embedding", "evaluation_batch"):
        with pytest.raises(ValueError, match=f"{key}=0: must be at least 1"):
            Config(**{key: 0})
