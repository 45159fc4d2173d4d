"""However a data file is damaged, it is refused by its name, or what is loaded is as good as a check can tell."""

import dataclasses
import gzip
import random
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from longwave.tasks import bidmc, eigenworms, har2, imdb, mnist, ncifar10, ptb_char, uea
from longwave.tasks.checks import LARGEST, DataError
from tests import archives, stand_ins

HTML = b"<!DOCTYPE html>\n<html><body>Please log in</body></html>\n"


@dataclasses.dataclass(frozen=True)
class Loader:
    """What is damaged, and what reads it.

    Args:
        make: writes the files into a data root.
        read: what is loaded from there, as tensors and plain values.
        good: whether that can be trained on.
        checked: every change of the data is found by a checksum.
        text: anything that is not a text in UTF-8 is refused.
        numeric: so is every number that is not finite.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], list]
    good: Callable[..., bool]
    checked: bool = False
    text: bool = True
    numeric: bool = True


def series(write: Callable, suffix: str, numeric: bool = False) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        rng = np.random.default_rng(0)
        found = [rng.normal(size=(length, 2)).astype(np.float32) for length in (5, 4, 6, 6, 3, 5, 4, 6)]
        labels = [i / 3 for i in range(8)] if numeric else list("abcabcab")
        for part, where in (("TRAIN", slice(0, 5)), ("TEST", slice(5, 8))):
            path = root / "uea" / f"X_{part}.{suffix}"
            write(path, found[where], labels[where], None if numeric else ["a", "b", "c"])

    return make


def zipped_series(root: Path) -> None:
    series(archives.write_ts, "ts")(root)
    archives.zipped(root / "uea", "X.zip", root / "uea" / "X_TRAIN.ts", root / "uea" / "X_TEST.ts")


def task_of(config) -> Callable[[Path], list]:
    def read(root: Path) -> list:
        task = config.build(0, root)
        return [task.samples, task.targets, task.lengths, task.classes]

    return read


def good_series(samples, targets, lengths, classes) -> bool:
    fit = torch.isfinite(targets).all() if classes is None else (targets >= 0).all() and (targets < len(classes)).all()
    return bool(fit and samples.abs().max() <= LARGEST and (lengths >= 1).all())


def good_har(windows, labels, subjects, train) -> bool:
    ranges = ((windows, -100, 100), (labels, 1, 6), (subjects, 1, 30))
    fit = all(((values >= low) & (values <= high)).all() for values, low, high in ranges)
    return bool(fit and len(windows) == len(labels) == len(subjects) and windows.shape[1:] == (128, 9) and train)


def read_imdb(root: Path) -> list:
    text, types, _ = imdb.read(root, "regex", False)
    found = imdb.read_vectors(root, "glove.6B.50d", types)
    return [text["tokens"], text["lengths"], types, found["types"], found["vectors"]]


def good_imdb(tokens, lengths, types, found, vectors) -> bool:
    whole = len(lengths) == 4 * imdb.REVIEWS and (lengths >= 1).all() and lengths.sum() == len(tokens)
    words = set(tokens.tolist()) == set(range(len(types))) and "" not in types
    return bool(whole and words and vectors.abs().max() <= 100 and len(found) == len(vectors) > 0)


def read_glove(root: Path) -> list:
    found = imdb.read_vectors(root, "glove.6B.50d", ["bad", "film", "good", "the"])
    return [found["types"], found["vectors"]]


def good_glove(types, vectors) -> bool:
    return bool(vectors.abs().max() <= 100) and len(types.unique()) == len(types) == len(vectors) > 0


def read_ptb(root: Path) -> list:
    texts, characters, _ = ptb_char.read(root, True)
    return [*texts.values(), characters]


def good_ptb(*found) -> bool:
    *texts, characters = found
    return all(len(text) and text.max() < len(characters) for text in texts) and len(characters) <= 256


def make_mnist(root: Path) -> None:
    (root / "MNIST" / "raw").mkdir(parents=True)
    for name in mnist.SHA256:
        head = struct.pack(">IIII", 2051, 3, 28, 28) if "images" in name else struct.pack(">II", 2049, 3)
        body = np.arange(3 * 784 if "images" in name else 3) % 10
        (root / "MNIST" / "raw" / name).write_bytes(head + body.astype(np.uint8).tobytes())


def make_imdb(root: Path) -> None:
    stand_ins.imdb(root, 3)
    stand_ins.glove(root, (50,))


def packed(make: Callable[[Path], None], folder: str, archive: str) -> Callable[[Path], None]:
    def make_archive(root: Path) -> None:
        make(root)
        stand_ins.pack(root / archive, root / folder)
        shutil.rmtree(root / folder)

    return make_archive


PTB, REVIEWS = ptb_char.SOURCES["ptb_char"][0].path, imdb.SOURCES["imdb"][0].path
UEA, FILLED = (uea.Config(dataset="X", validation=0.2, missing=missing) for missing in ("refuse", "interpolate"))

LOADERS = {
    "ts": Loader(series(archives.write_ts, "ts"), task_of(UEA), good_series),
    "interpolated": Loader(series(archives.write_ts, "ts"), task_of(FILLED), good_series, numeric=False),
    "regression": Loader(series(archives.write_ts, "ts", numeric=True), task_of(UEA), good_series),
    "arff": Loader(series(archives.write_arff, "arff"), task_of(UEA), good_series),
    "zip": Loader(zipped_series, task_of(UEA), good_series, checked=True),
    "eigenworms": Loader(archives.eigenworms, task_of(eigenworms.Config(protocol="lem")), good_series, checked=True),
    "bidmc": Loader(
        lambda root: archives.bidmc(root, train=9, test=5), task_of(bidmc.Config(protocol="s4")), good_series
    ),
    "har2": Loader(lambda root: stand_ins.har(root, 6, 4), lambda root: list(har2.read(root)[:4]), good_har),
    "imdb": Loader(make_imdb, read_imdb, good_imdb, text=False, numeric=False),
    "glove": Loader(lambda root: stand_ins.glove(root, (50,)), read_glove, good_glove, numeric=False),
    "reviews": Loader(
        packed(lambda root: stand_ins.imdb(root, 3), "aclImdb", REVIEWS),
        lambda root: [imdb.read(root, "regex", False)[0]["tokens"]], lambda *_: False, checked=True,
    ),
    "ptb": Loader(stand_ins.ptb, read_ptb, good_ptb),
    "ptb archive": Loader(packed(stand_ins.ptb, "simple-examples", PTB), read_ptb, good_ptb, checked=True),
    "mnist": Loader(make_mnist, lambda root: list(mnist.read(root)), lambda *_: False, checked=True),
    "ncifar10": Loader(
        lambda root: stand_ins.cifar10(root, 2), lambda root: list(ncifar10.read(root)[:2]), lambda *_: False,
        checked=True,
    ),
}  # fmt: skip


def at_a_line(content: bytes, rng: random.Random, change: Callable[[list[bytes], int], None]) -> bytes:
    lines = content.split(b"\n")
    change(lines, rng.randrange(len(lines)))
    return b"\n".join(lines)


def at_a_number(content: bytes, rng: random.Random, new: bytes) -> bytes:
    """Replaces a number or word of the data, not of the header."""
    head, mark, body = content.rpartition(b"@data")
    spans = [i for i in range(len(body)) if body[i : i + 1].isalnum() and not body[i - 1 : i].isalnum()]
    if not spans:
        return content
    start = rng.choice(spans)
    end = start
    while end < len(body) and body[end : end + 1] not in b" ,:\r\n'\\":
        end += 1
    return head + mark + body[:start] + new + body[end:]


def flipped(content: bytes, rng: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 5, 50])):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def swap_lines(lines: list[bytes], i: int) -> None:
    lines[i], lines[-i] = lines[-i], lines[i]


JUNK = [
    b"nan",
    b"inf",
    b"-inf",
    b"1e60",
    b"-1e300",
    b"1e30",
    b"?",
    b"",
    b"x",
    b"1.7",
    b"0",
    b"300",
    b"0x1",
    b"1_0",
    b"\t",
]

# New content from the old one and a generator.
DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": lambda old, rng: old[: rng.randrange(len(old))],
    "flipped": flipped,
    "beginning lost": lambda old, rng: old[rng.randrange(1, len(old)) :],
    "middle lost": lambda old, rng: old[: (at := rng.randrange(len(old)))] + old[at + rng.randrange(1, 200) :],
    "zeros": lambda old, rng: old[: (at := rng.randrange(len(old)))] + bytes(len(old) - at),
    "appended": lambda old, rng: old + rng.randbytes(rng.randrange(1, 100)),
    "twice": lambda old, rng: old + old,
    "line lost": lambda old, rng: at_a_line(old, rng, lambda lines, i: lines.pop(i)),
    "line twice": lambda old, rng: at_a_line(old, rng, lambda lines, i: lines.insert(i, lines[i])),
    "line of junk": lambda old, rng: at_a_line(old, rng, lambda lines, i: lines.insert(i, rng.choice(JUNK))),
    "line cut": lambda old, rng: at_a_line(
        old, rng, lambda lines, i: lines.insert(i, lines.pop(i)[: rng.randrange(9)])
    ),
    "lines swapped": lambda old, rng: at_a_line(old, rng, swap_lines),
    "number": lambda old, rng: at_a_number(old, rng, rng.choice(JUNK)),
    "not a number": lambda old, rng: at_a_number(old, rng, b"nan"),
    "infinite": lambda old, rng: at_a_number(old, rng, b"inf"),
    "byte": lambda old, rng: old[: (at := rng.randrange(len(old)))] + rng.randbytes(1) + old[at:],
    "latin-1": lambda old, rng: at_a_number(old, rng, b"caf\xe9"),
    "tabs": lambda old, rng: old.replace(b" ", b"\t").replace(b",", b"\t"),
    "crlf": lambda old, rng: old.replace(b"\n", b"\r\n"),
    "empty": lambda old, rng: b"",
    "html": lambda old, rng: HTML,
    "gzip": lambda old, rng: gzip.compress(old),
    "utf-16": lambda old, rng: old.decode("latin-1").encode("utf-16"),
    "byte order mark": lambda old, rng: b"\xef\xbb\xbf" + old,
    "noise": lambda old, rng: rng.randbytes(len(old)),
}
# Of a text, whatever stands in it.
NO_TEXT = {"empty", "html", "gzip", "utf-16", "byte order mark", "noise"}


def same(found: list, expected: list) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
        for a, b in zip(found, expected, strict=True)
    )


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    """A function from the name of a loader to its data root and what is loaded from there."""
    nowhere = ("http://127.0.0.1:9/x",)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imdb, "REVIEWS", 3)
        for module in (har2, imdb, ptb_char, mnist, ncifar10):
            unchecked = {
                name: tuple(dataclasses.replace(one, urls=nowhere, sha256=None, md5=None) for one in sources)
                for name, sources in module.SOURCES.items()
            }
            patch.setattr(module, "SOURCES", unchecked)
        patch.setattr(eigenworms, "FALLBACKS", {"eigenworms": ()})
        roots = {}
        for name, loader in LOADERS.items():
            root = roots[name] = tmp_path_factory.mktemp(name.replace(" ", "_"))
            sums = loader.make(root)
            if name == "ncifar10":
                patch.setattr(ncifar10, "MD5", sums)
            if name == "mnist":
                raw = root / "MNIST" / "raw"
                patch.setattr(mnist, "SHA256", {file: stand_ins.sha256(raw / file) for file in mnist.SHA256})
        loaded = {}
        for name, root in roots.items():
            with tempfile.TemporaryDirectory() as folder:
                shutil.copytree(root, folder, dirs_exist_ok=True)
                loaded[name] = LOADERS[name].read(Path(folder))

        def of(name: str) -> tuple[Path, list]:
            return roots[name], loaded[name]

        # Not the dicts: hypothesis would print all that they hold.
        yield of


def run(undamaged, name: str, kind: str, number: int) -> None:
    whole, expected = undamaged(name)
    loader, rng = LOADERS[name], random.Random(number)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(whole, root, dirs_exist_ok=True)
        files = sorted(path for path in root.rglob("*") if path.is_file() and path.parent.name != "unsup")
        if name == "bidmc":
            files = [path for path in files if "32RR" in path.name]
        path = rng.choice(files)
        old, named = path.read_bytes(), [path.name]
        if kind == "swapped":
            other = rng.choice(files)
            new = other.read_bytes()
            other.write_bytes(old)
            named.append(other.name)
        else:
            new = DAMAGES[kind](old, rng)
        path.write_bytes(new)
        found, message = [], None
        try:
            found = loader.read(root)
        except DataError as error:
            message = str(error)
    if message is not None:
        assert any(one in message for one in named), message
        assert message.isprintable()
        assert len(message) < 800
        return
    if same(found, expected):
        return
    assert not loader.checked
    assert not (loader.text and kind in NO_TEXT)
    assert not (loader.numeric and kind in ("not a number", "infinite"))
    assert loader.good(*found)


def damages(examples: int):
    """So many damages, always the same ones."""

    def decorate(test):
        damage = given(
            st.sampled_from(sorted(LOADERS)), st.sampled_from([*sorted(DAMAGES), "swapped"]), st.integers(0, 2**32)
        )
        return settings(
            max_examples=examples, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow],
        )(damage(test))  # fmt: skip

    return decorate


@damages(40)
def test_any_damage(undamaged, name, kind, number):
    run(undamaged, name, kind, number)


@pytest.mark.slow
@damages(1000)
def test_a_thousand_damages(undamaged, name, kind, number):
    run(undamaged, name, kind, number)
