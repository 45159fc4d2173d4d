import dataclasses
import gzip
import itertools
import sys
import types
import zipfile

import pytest
import torch

from longwave.tasks import imdb
from longwave.tasks.checks import DataError
from longwave.tasks.imdb import PADDING, TOKEN, UNKNOWN, Config, WordEmbedding, read, read_vectors
from tests import stand_ins

TEXTS = stand_ins.POSITIVE, stand_ins.NEGATIVE


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("I don't like it.", ["I", "do", "n't", "like", "it", "."]),
        ("Bromwell High's 35 years", ["Bromwell", "High", "'s", "35", "years"]),
        ("CAN'T we've -- e.g. 'tis...", ["CA", "N'T", "we", "'ve", "--", "e", ".", "g", ".", "'", "tis", "..."]),
        ("good<br /><br />bad!!", ["good", "<", "br", "/", ">", "<", "br", "/", ">", "bad", "!", "!"]),
        ("naïve 10/10 half-way\tnt", ["naïve", "10", "/", "10", "half", "-", "way", "nt"]),
        ("n't", ["n't"]),
        ("   ", []),
    ],
)
def test_plain_tokens(text, tokens):
    assert TOKEN.findall(text) == tokens


def test_reads_the_official_layout(fake_imdb):
    text, words, digest = read(fake_imdb, "regex", lower=False)
    assert words == sorted(set().union(*(TOKEN.findall(t) for part in TEXTS for t in part)))
    assert len(text["lengths"]) == 120
    reviews = [" ".join(words[i] for i in part) for part in text["tokens"].split(text["lengths"].tolist())]
    # By file name: 0_9, 10_9, 11_9, ..., 1_9: numbers 0, 10, 11.
    spaced = [[" ".join(TOKEN.findall(t)) for t in part] for part in TEXTS]
    assert reviews[:3] == [spaced[0][0], spaced[0][1], spaced[0][2]]
    assert sorted(reviews[:30]) == sorted(reviews[60:90]) == sorted(spaced[0] * 10)
    assert sorted(reviews[30:60]) == sorted(reviews[90:]) == sorted(spaced[1] * 10)
    assert len(digest) == 64
    assert read(fake_imdb, "regex", lower=True)[1] == sorted({word.lower() for word in words})


def test_the_archive_is_read_as_it_is(tmp_path, fake_imdb, monkeypatch):
    source = imdb.SOURCES["imdb"][0]
    stand_ins.pack(tmp_path / source.path, fake_imdb / "aclImdb")
    checked = dataclasses.replace(source, sha256=stand_ins.sha256(tmp_path / source.path))
    monkeypatch.setitem(imdb.SOURCES, "imdb", (checked, imdb.SOURCES["imdb"][1]))
    text, words, digest = read(tmp_path, "regex", lower=False)
    expected = read(fake_imdb, "regex", lower=False)
    assert (words, digest) == expected[1:]
    assert torch.equal(text["tokens"], expected[0]["tokens"])
    assert not (tmp_path / "aclImdb").exists()


def build(root, seed=0, **options):
    return Config(**{"vectors": "glove.6B.50d", "evaluation_batch": 7, **options}).build(seed, root)


def words_of(task, root) -> list[str]:
    """What stands behind each number."""
    _, every, _ = read(root, task.config.tokenizer, task.config.lower)
    text, *_ = read(root, task.config.tokenizer, task.config.lower)
    found = {UNKNOWN: "<unk>", PADDING: "<pad>"}
    for word, number in zip(text["tokens"].tolist(), task.words.tolist(), strict=True):
        if number != UNKNOWN:
            assert found.setdefault(number, every[word]) == every[word]
    return [found[i] for i in range(len(task.vectors))]


def test_split_and_vocabulary_of_the_training_part(fake_imdb):
    task = build(fake_imdb, vocabulary=5)
    train, validation, test = (task.splits[name] for name in ("train", "validation", "test"))
    assert [len(train), len(validation), len(test)] == [42, 18, 60]
    assert torch.equal(torch.cat([train, validation]).sort().values, torch.arange(60))
    assert torch.equal(test, torch.arange(60, 120))
    assert task.targets.tolist() == ([1.0] * 30 + [0.0] * 30) * 2
    # Counted again, word by word.
    text, every, _ = read(fake_imdb, "regex", False)
    counts = {}
    reviews = text["tokens"].split(text["lengths"].tolist())
    for index in train.tolist():
        for word in reviews[index].tolist():
            counts[every[word]] = counts.get(every[word], 0) + 1
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:5]
    assert words_of(task, fake_imdb) == ["<unk>", "<pad>", *frequent]
    assert task.notes["vocabulary"] == 7
    assert not torch.equal(validation, build(fake_imdb, 1).splits["validation"])


def test_words_that_only_others_use_are_unknown(tmp_path, fake_imdb, monkeypatch):
    stand_ins.imdb(tmp_path, 30)
    stand_ins.glove(tmp_path)
    (tmp_path / "aclImdb" / "test" / "pos" / "0_9.txt").write_text("quux film")
    task = build(tmp_path)
    first = task.splits["test"][0]
    x, _ = task._take(torch.tensor([first]))
    assert x[0, 0] == UNKNOWN
    assert x[1, 0] != UNKNOWN
    assert "quux" not in words_of(task, tmp_path)


def test_vectors(fake_imdb):
    task = build(fake_imdb)
    words = words_of(task, fake_imdb)
    listed = ["the", ".", "good", "film", "bad", "a", "n't", "quux"]
    weight = task.embedding().weight
    for number, word in enumerate(words):
        if word in listed:
            expected = [listed.index(word) + 1 + d / 1000 for d in range(50)]
            assert weight[number].tolist() == pytest.approx(expected, abs=1e-5), word
    assert task.notes["with_vectors"] == len(set(words) & set(listed))
    assert (weight[[UNKNOWN, PADDING]] == 0).all()
    # Case is kept, and the vectors' is lower: these are random.
    rest = weight[[number for number, word in enumerate(words) if number > 1 and word not in listed]].detach()
    assert "GOOD" in words
    assert rest.mean().item() == pytest.approx(0, abs=0.1)
    assert rest.std().item() == pytest.approx(1, abs=0.1)
    assert torch.equal(weight, build(fake_imdb).embedding().weight)
    lower = build(fake_imdb, lower=True)
    assert "GOOD" not in words_of(lower, fake_imdb)
    assert build(fake_imdb, vectors="glove.6B.100d").inputs == 100


def test_vectors_from_the_archive(tmp_path, fake_imdb, monkeypatch):
    source = imdb.SOURCES["imdb"][1]
    folder = tmp_path / "glove"
    folder.mkdir()
    stand_ins.glove(folder)
    monkeypatch.setitem(imdb.SOURCES, "imdb", (imdb.SOURCES["imdb"][0], dataclasses.replace(source, md5=None)))
    (tmp_path / source.path).parent.mkdir()
    # In the official archive the files are at the top.
    with zipfile.ZipFile(tmp_path / source.path, "w") as archive:
        archive.write(folder / "glove.6B.50d.txt", "glove.6B.50d.txt")
    found = read_vectors(tmp_path, "glove.6B.50d", ["GOOD", "film", "good"])
    assert found["types"].tolist() == [2, 1]
    assert found["vectors"][:, 0].tolist() == [3, 4]
    assert found["sha256"] == stand_ins.sha256(folder / "glove.6B.50d.txt")
    with pytest.raises(
        OSError, match=r"glove\.6B\.zip: no files named glove\.6B\.100d\.txt; it holds glove\.6B\.50d\.txt"
    ):
        read_vectors(tmp_path, "glove.6B.100d", ["good"])


def test_padding_at_the_end(fake_imdb):
    task = build(fake_imdb)
    words = words_of(task, fake_imdb)
    indices = torch.tensor([30, 0, 32])
    x, target = task._take(indices)
    reviews = [TOKEN.findall(TEXTS[1][0]), TOKEN.findall(TEXTS[0][0]), None]
    longest = int(task.lengths[indices].max())
    assert x.shape == (longest, 3)
    assert target.tolist() == [0, 1, 0]
    for column, review in enumerate(reviews[:2]):
        expected = review + ["<pad>"] * (longest - len(review))
        assert [words[i] for i in x[:, column]] == expected


def test_lengths_respected(fake_imdb):
    task = build(fake_imdb, lengths="respected")
    x, _, lengths = task.batch(0, 5)
    assert torch.equal((x != PADDING).sum(0), lengths)
    assert len(task.batch(0, 5)) == 3
    assert len(build(fake_imdb).batch(0, 5)) == 2


def test_pools_are_sorted_and_every_review_comes_once_an_epoch(fake_imdb, monkeypatch):
    task = build(fake_imdb)
    taken = []
    monkeypatch.setattr(task, "_take", lambda indices: taken.append(indices) or (indices, indices))
    steps = task.steps_per_epoch(5)
    assert steps == 9
    for step in range(2 * steps):
        task.batch(step, 5)
    first, second = torch.cat(taken[:steps]), torch.cat(taken[steps:])
    train = task.splits["train"]
    assert torch.equal(first.sort().values, train.sort().values)
    assert torch.equal(second.sort().values, train.sort().values)
    assert not torch.equal(first, second)
    # One pool: put in order, the batches do not overlap in length.
    spans = sorted((int(task.lengths[b].min()), int(task.lengths[b].max())) for b in taken[:steps])
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    # But they come in another order.
    assert [int(task.lengths[b].min()) for b in taken[:steps]] != [low for low, _ in spans]
    # Whatever was asked before.
    again = build(fake_imdb)
    monkeypatch.setattr(again, "_take", lambda indices: (indices, indices))
    assert torch.equal(again.batch(steps + 4, 5)[0], taken[steps + 4])
    taken.clear()
    assert sum(1 for _ in task.evaluation("test")) == 9
    assert torch.equal(torch.cat(taken).sort().values, task.splits["test"])


def test_pools_of_100_batches_and_no_bucketing(fake_imdb):
    task = build(fake_imdb)
    task.lengths = torch.randint(1, 1000, (120,), generator=torch.Generator().manual_seed(0))
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    pools = list(task._pools(order, 1))
    assert [len(pool) for pool in pools] == [100, 20]
    for pool, part in zip(pools, order.split(100), strict=True):
        assert torch.cat(pool).tolist() == sorted(part.tolist(), key=lambda i: task.lengths[i])
    plain = build(fake_imdb, bucketing=False)
    assert torch.equal(torch.cat([i for pool in plain._pools(order, 7) for i in pool]), order)


def test_accuracy_over_batches_or_samples(fake_imdb, fit_here):
    """Of batches of 7 reviews the last has 4: its mistakes weigh more in the mean over batches."""
    output, target = torch.tensor([[1.0], [-1.0], [2.0]]), torch.tensor([1.0, 1.0, 0.0])
    batches, samples = build(fake_imdb), build(fake_imdb, average="samples")
    assert batches.scores(output, target)["accuracy"].item() == pytest.approx(1 / 3)
    assert samples.scores(output, target)["accuracy"].tolist() == [1, 0, 0]
    assert samples.scores(output, target)["cross_entropy"].tolist() == pytest.approx([0.3132617, 1.3132617, 2.126928])
    arguments = (
        f"data.root={fake_imdb}", "model=lstm", "task=imdb", "recipe=none", "task.vectors=glove.6B.50d",
        "task.evaluation_batch=7", "model.hidden=3", "training.steps=3", "training.batch_size=5", "optimizer.lr=0.1",
        "task.lengths=respected",
    )  # fmt: skip
    found = {average: fit_here(*arguments, f"task.average={average}")[0] for average in ("batches", "samples")}
    # 18 reviews of validation are 7 + 7 + 4.
    right = round(18 * found["samples"])
    assert found["samples"] == pytest.approx(right / 18)
    in_batches = {
        (a / 7 + b / 7 + (right - a - b) / 4) / 3 for a in range(8) for b in range(8) if 0 <= right - a - b <= 4
    }
    assert any(found["batches"] == pytest.approx(value) for value in in_batches)


def test_dropout_of_words():
    layer = WordEmbedding(torch.arange(1.0, 41).view(20, 2), dropout=0.6)
    words = torch.arange(20).repeat(3, 1)
    torch.manual_seed(0)
    ratio = layer(words) / layer.weight
    # A word is dropped everywhere or nowhere; what is kept is scaled.
    assert torch.equal(ratio[0], ratio[1])
    assert torch.equal(ratio[..., 0], ratio[..., 1])
    assert sorted(set(ratio.detach().flatten().round(decimals=5).tolist())) == [0, 2.5]
    kept = torch.stack([(layer(words[0]) != 0).float().mean() for _ in range(200)]).mean().item()
    assert kept == pytest.approx(0.4, abs=0.05)
    layer.eval()
    assert torch.equal(layer(words), layer.weight[words])


def test_only_the_padding_is_frozen(fake_imdb, fit_here):
    _, folder = fit_here(
        f"data.root={fake_imdb}", "model=lstm", "task=imdb", "recipe=none", "task.vectors=glove.6B.50d",
        "task.dropout=0.3", "model.hidden=3", "training.steps=20", "training.batch_size=30", "optimizer.lr=0.1",
    )  # fmt: skip
    before = build(fake_imdb).embedding().weight
    after = torch.load(folder / "checkpoint.pt")["model"]["embedding.weight"]
    changed = (before != after).any(1)
    assert not changed[PADDING]
    assert not changed[UNKNOWN]  # it does not come in training
    assert changed[2:].all()


def test_the_split_is_told_apart(fake_imdb):
    ids = [
        build(fake_imdb, **options).split_id
        for options in ({}, {"lower": True}, {"lengths": "respected"}, {"average": "samples"}, {"vocabulary": 3},
                        {"vectors": "glove.6B.100d"}, {"seed": 1}, {"validation": 0.5})
    ]  # fmt: skip
    assert len(set(ids)) == len(ids)
    assert ids[0].startswith("imdb/regex/case/25000/glove.6B.50d/lengths=ignored/average=batches/validation=18/")


def test_spacy_where_it_is_installed_or_an_error(fake_imdb, monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(OSError, match=r"task\.tokenizer=spacy: is not installed; use pip install spacy"):
        read(fake_imdb, "spacy", False)
    # A stand-in with its interface.
    fake = types.ModuleType("spacy")
    fake.blank = lambda language: types.SimpleNamespace(
        tokenizer=lambda text: [types.SimpleNamespace(text=part) for part in text.split(" ")]
    )
    monkeypatch.setitem(sys.modules, "spacy", fake)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    text, words, _ = read(fake_imdb, "spacy", False)
    assert "don't" in words
    assert text["tokenizer"] == "spacy 9.9"


def test_real_spacy(fake_imdb):
    pytest.importorskip("spacy")
    assert "n't" in read(fake_imdb, "spacy", False)[1]


def test_offline_says_what_to_put_where(tmp_path, fake_imdb, monkeypatch):
    sources = [dataclasses.replace(s, urls=("http://127.0.0.1:9/x",)) for s in imdb.SOURCES["imdb"]]
    monkeypatch.setitem(imdb.SOURCES, "imdb", tuple(sources))
    with pytest.raises(
        OSError, match=r"downloads/aclImdb_v1\.tar\.gz: .*\nfrom http://127\.0\.0\.1:9/x.*\nsha256 c40f74a18d3b"
    ):
        read(tmp_path, "regex", False)
    with pytest.raises(
        OSError, match=r"downloads/glove\.6B\.zip: .*\nfrom http://127\.0\.0\.1:9/x.*\nmd5 056ea991adb4"
    ):
        build(fake_imdb, vectors="glove.6B.300d")


def test_an_incomplete_folder_is_refused(tmp_path, fake_imdb):
    stand_ins.imdb(tmp_path, 30)
    (tmp_path / "aclImdb" / "test" / "neg" / "7_2.txt").unlink()
    with pytest.raises(OSError, match=r"aclImdb: 30 in train/pos, .* 29 in test/neg, and 30 are expected"):
        read(tmp_path, "regex", False)
    (tmp_path / "aclImdb" / "test" / "neg").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="0 in test/neg, and 30 are expected"):
        read(tmp_path, "regex", False)


def test_a_truncated_archive_is_refused(tmp_path, fake_imdb, monkeypatch):
    source = imdb.SOURCES["imdb"][0]
    path = tmp_path / source.path
    stand_ins.pack(path, fake_imdb / "aclImdb")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(OSError, match=r"aclImdb_v1\.tar\.gz: sha256 is \w+, not c40f74a1"):
        read(tmp_path, "regex", False)
    checked = dataclasses.replace(source, sha256=None)
    monkeypatch.setitem(imdb.SOURCES, "imdb", (checked,))
    (path.parent / f"{path.name}.source.json").unlink(missing_ok=True)
    with pytest.raises(OSError, match=r"aclImdb_v1\.tar\.gz: (damaged|\d+ in train/pos)"):
        read(tmp_path, "regex", False)


def test_a_malformed_line_of_vectors_is_named(tmp_path):
    stand_ins.glove(tmp_path, (50,))
    path = tmp_path / "glove.6B.50d.txt"
    lines = path.read_text().splitlines()
    lines[3] = lines[3].rsplit(" ", 1)[0]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(OSError, match=r"glove\.6B\.50d\.txt, line 4: 49 numbers, not 50"):
        read_vectors(tmp_path, "glove.6B.50d", ["film"])
    lines[3] = "film" + " x" * 50
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(OSError, match=r"glove\.6B\.50d\.txt, line 4: .*'?x'?"):
        read_vectors(tmp_path, "glove.6B.50d", ["film"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace(b"film ", b"new film "), "line 4: 51 numbers, not 50"),
        (lambda text: text.replace(b" ", b"\t"), "line 1: 0 numbers, not 50"),
        (
            lambda text: text.replace(b"film 4.000", b"film nan"),
            "line 4, number 1: nan is not a number from -100 to 100",
        ),
        (lambda text: text.replace(b"film 4.000", b"film 1e9"), r"line 4, number 1: 1e\+09 is not a number from -100"),
        (lambda text: text.replace(b"film 4.000", b"film 4.0-0"), "line 4: '4.0-0' is not a number"),
        (lambda text: text[:-3], "line 8: has no end"),
        (lambda text: text[: text.index(b"4.010")], "line 4: 11 numbers, not 50"),
        (lambda text: text + text, "line 12: 'film' is in line 4 already"),
        (lambda text: text.replace(b"bad ", b"b\xe9d "), "line 5: the byte 0xe9 is not UTF-8"),
        (lambda text: text.replace(b"film ", b"films "), "none of the words of the reviews"),
        (lambda text: b"\xef\xbb\xbf" + text, "begins with a byte order mark"),
        (lambda text: text.decode().encode("utf-16"), "is in UTF-16"),
        (lambda text: gzip.compress(text), "is compressed by gzip"),
        (lambda text: b"\n<!DOCTYPE html>\n<html>", "line 1: 0 numbers|is an HTML page"),
        (lambda text: b"<html><body>Sorry</body></html>", "is an HTML page"),
        (lambda text: b"", "is empty"),
    ],
)
def test_damaged_vectors_are_refused(tmp_path, damage, message):
    stand_ins.glove(tmp_path, (50,))
    path = tmp_path / "glove.6B.50d.txt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"{path}.*{message}"):
        read_vectors(tmp_path, "glove.6B.50d", ["film"])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("caf\u00e9".encode("latin-1"), "the byte 0xe9 is not UTF-8"),
        ("good".encode("utf-16"), "the byte 0xff is not UTF-8"),
        (b"good\0film", "a zero byte"),
        (b"", "a review without words"),
        (b" \n", "a review without words"),
    ],
)
def test_a_damaged_review_is_named(tmp_path, fake_imdb, monkeypatch, packed, content, message):
    root = review_root(tmp_path, monkeypatch, {"test/neg/7_2.txt": content}, packed)
    where = imdb.SOURCES["imdb"][0].path if packed else "aclImdb"
    with pytest.raises(DataError, match=rf"{where}, test/neg/7_2\.txt: {message}"):
        read(root, "regex", False)


@pytest.mark.parametrize("packed", [False, True])
def test_what_macos_leaves_is_not_read(tmp_path, fake_imdb, monkeypatch, packed):
    extra = {"test/neg/._7_2.txt": b"\0\5\x16\7Mac OS X", "test/neg/.DS_Store": b"\0", "train/pos/._1_9.txt": b"good"}
    root = review_root(tmp_path, monkeypatch, extra, packed)
    assert read(root, "regex", False)[1:] == read(fake_imdb, "regex", False)[1:]


def review_root(tmp_path, monkeypatch, extra, packed):
    """A data root with made-up reviews and further files, in a folder or in the archive."""
    stand_ins.imdb(tmp_path, 30)
    for name, content in extra.items():
        (tmp_path / "aclImdb" / name).write_bytes(content)
    if not packed:
        return tmp_path
    source = dataclasses.replace(imdb.SOURCES["imdb"][0], sha256=None)
    monkeypatch.setitem(imdb.SOURCES, "imdb", (source, imdb.SOURCES["imdb"][1]))
    stand_ins.pack(tmp_path / "root" / source.path, tmp_path / "aclImdb")
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "nltk"}, "tokenizer=nltk: must be one of regex, spacy"),
        ({"vectors": "fasttext"}, r"vectors=fasttext: must be one of glove\.6B\.50d, "),
        ({"lengths": "packed"}, "lengths=packed: must be one of ignored, respected"),
        ({"average": "words"}, "average=words: must be one of batches, samples"),
        ({"validation": 1.0}, r"validation=1\.0: must be less than 1"),
        ({"dropout": 1.0}, r"dropout=1\.0: must be less than 1"),
        ({"vocabulary": 0}, "vocabulary=0: must be at least 1"),
        ({"evaluation_batch": 0}, "evaluation_batch=0: must be at least 1"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


@pytest.mark.slow
def test_real_imdb(real_data):
    there = (real_data / "aclImdb").exists() or (real_data / imdb.SOURCES["imdb"][0].path).exists()
    if not there or not (real_data / "glove.6B.50d.txt").exists():
        pytest.skip(f"IMDB is not in {real_data}: set LONGWAVE_DATA, or run `python train.py task=imdb` once online")
    task = build(real_data)
    assert {name: len(part) for name, part in task.splits.items()} == {
        "train": 17_500, "validation": 7_500, "test": 25_000,
    }  # fmt: skip
    assert len(task.vectors) == task.notes["vocabulary"] == 25_002
    assert task.embedding().weight.shape == (25_002, 50)
    assert dict(task.files)["aclImdb"] == "951c69c24809e979e654d6dad5499b048c9db01888ba56426d21a8fb427bf05a"
    assert (int(task.lengths.median()), int(task.lengths.max())) == (214, 2987)
    # The most frequent words come first.
    assert words_at(task, real_data, range(2, 8)) == ["the", ".", ",", "and", "a", "of"]
    x, _ = task.batch(0, 64)
    assert x.shape[1] == 64


def words_at(task, root, numbers) -> list[str]:
    text, every, _ = read(root, "regex", False)
    return [every[text["tokens"][(task.words == number).nonzero()[0, 0]]] for number in numbers]
