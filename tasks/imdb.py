"""IMDB (Maas et al., ACL 2011): the sentiment of film reviews."""

import contextlib
import functools
import hashlib
import importlib.metadata
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from longwave.schema import Annotated, Ge, Gt, Le, Lt, OneOf
from longwave.tasks import formats
from longwave.tasks.base import Batch, Task, TaskConfig, binary_scores
from longwave.tasks.checks import DataError, check, decoded, lines
from longwave.tasks.data import AGAIN, Source, cached, code, content, digest, fetch, find, log, open_archive
from longwave.tasks.randomness import generator
from longwave.tasks.splits import hold_out, index_hash

SOURCES = {
    "imdb": (
        Source(
            path="downloads/aclImdb_v1.tar.gz",
            urls=("http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",),
            sha256="c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
            size=84_125_825,
        ),
        Source(
            path="downloads/glove.6B.zip",
            urls=("http://nlp.stanford.edu/data/glove.6B.zip",),
            md5="056ea991adb4740ac6bf1b6d9b50408b",
            size=862_000_000,
            licence="PDDL 1.0",
        ),
    )
}

PARTS = ("train/pos", "train/neg", "test/pos", "test/neg")
# Not what macOS leaves beside them: ._0_9.txt.
REVIEW = re.compile(rf"({'|'.join(PARTS)})/\d+_\d+\.txt", re.ASCII)
# In each part.
REVIEWS = 12_500

UNKNOWN, PADDING = 0, 1

# Words; n't, 's and the like are tokens of their own, as in the corpus of the word vectors, and so are runs of full
# stops or hyphens and every other sign.
TOKEN = re.compile(r"n't\b|\w+?(?=n't\b)|'(?:s|re|ve|ll|d|m)\b|\w+|\.\.+|--+|[^\w\s]", re.IGNORECASE)

# In glove.6B the largest is 7.
COMPONENT = 100
VECTORS = {f"glove.6B.{width}d": width for width in (50, 100, 200, 300)}


@dataclass
class Config(TaskConfig):
    """Classify film reviews as favourable or not, word by word.

    The defaults are the protocol of coRNN and UnICORNN except for ``bucketing``, which their recipes switch off, and
    the tokenizer, which was spaCy's of 2020.

    Args:
        tokenizer: ``regex``: words, their endings as in "n't" and "'s", and signs; or ``spacy``: that of a blank
            English pipeline, if spaCy is installed.
        lower: whether words are lower-cased. The vectors are of lower-cased words: with false, a capitalised word
            starts from a random vector.
        validation: fraction of the 25,000 training reviews that is held out.
        vocabulary: number of words, the most frequent ones of the training reviews, besides <unk> and <pad>.
        vectors: initial word vectors: ``glove.6B.50d``, ``100d``, ``200d`` or ``300d``. A missing word starts from
            N(0, 1), <unk> and <pad> from zeros. All are trained except <pad>.
        lengths: ``ignored``: the network runs over the padding, up to the longest review of the batch, and the last
            step is read out; ``respected``: the last word is read out.
        bucketing: whether pools of 100 batches are sorted by length before they are cut into batches, which leaves
            about 16 steps of padding per review on average; false is the released protocol, batches of random
            reviews with about 800.
        evaluation_batch: reviews in a batch of validation and test; it matters if lengths are ignored.
        average: of the accuracy, over ``batches`` regardless of their sizes, or over ``samples``.
        dropout: probability that all occurrences of a word are dropped in a training step (0.65 in UnICORNN).
    """

    name: str = "imdb"
    tokenizer: Annotated[str, OneOf("regex", "spacy")] = "regex"
    lower: bool = False
    validation: Annotated[float, Gt(0), Lt(1)] = 0.3
    vocabulary: Annotated[int, Ge(1), Le(1_000_000)] = 25_000
    vectors: Annotated[str, OneOf(*VECTORS)] = "glove.6B.100d"
    lengths: Annotated[str, OneOf("ignored", "respected")] = "ignored"
    bucketing: bool = True
    evaluation_batch: Annotated[int, Ge(1), Le(25_000)] = 64
    average: Annotated[str, OneOf("batches", "samples")] = "batches"
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0

    stepwise = False

    def build(self, seed: int, data_root: Path) -> "IMDB":
        return IMDB(self, seed, data_root)

    def prepare(self, sample: Any, statistics: dict[str, Any], start: int = 0) -> Tensor:
        """A review, or numbers of words (T,)."""
        if not isinstance(sample, str):
            return torch.as_tensor(sample).view(-1)
        split, _ = _tokenizer(self.tokenizer)
        words = split(sample.lower() if self.lower else sample)
        if not words:
            raise ValueError("a review without words")
        place = _places(statistics["words"])
        return torch.tensor([place.get(word, UNKNOWN) for word in words])


class IMDB(Task):
    """Words (T, B) as integers, to be embedded; binary cross-entropy on one logit, accuracy as the metric."""

    outputs = 1
    objective, metric = "cross_entropy", "accuracy"
    higher_is_better = True
    baseline = {"accuracy": 0.5}

    def __init__(self, config: Config, seed: int, data_root: Path):
        self.config, self.seed = config, seed
        self.inputs = VECTORS[config.vectors]
        text, types, text_hash = read(data_root, config.tokenizer, config.lower)
        self.lengths = text["lengths"]
        self.starts = self.lengths.cumsum(0) - self.lengths
        count = len(self.lengths) // 2
        self.targets = torch.tensor([1.0, 0.0]).repeat_interleave(count // 2).repeat(2)
        self.splits = hold_out(count, round(config.validation * count), seed)
        self.splits["test"] = torch.arange(count, 2 * count)

        kept = self._vocabulary(text["tokens"], len(types))
        word = torch.full((len(types),), UNKNOWN, dtype=torch.int32)
        word[kept] = torch.arange(2, 2 + len(kept), dtype=torch.int32)
        self.words = word[text["tokens"]]
        self.statistics = {"words": "\0".join(types[index] for index in kept.tolist())}

        self.vectors = torch.randn(2 + len(kept), self.inputs, generator=generator(seed, "vectors"))
        self.vectors[[UNKNOWN, PADDING]] = 0
        glove = read_vectors(data_root, config.vectors, types)
        found = word[glove["types"]].long()
        self.vectors[found[found != UNKNOWN]] = glove["vectors"][found != UNKNOWN]

        self.files = (("aclImdb", text_hash), (f"{config.vectors}.txt", glove["sha256"]))
        self.notes = {
            "vocabulary": len(self.vectors),
            "with_vectors": int((found != UNKNOWN).sum()),
            "tokenizer": text["tokenizer"],
        }
        held_out = self.splits["validation"]
        case = "lower" if config.lower else "case"
        self.split_id = (
            f"imdb/{config.tokenizer}/{case}/{config.vocabulary}/{config.vectors}/lengths={config.lengths}/"
            f"average={config.average}/validation={len(held_out)}/{index_hash(held_out)}"
        )
        self._plan: tuple[tuple[int, int], list[Tensor]] | None = None

    def _vocabulary(self, tokens: Tensor, types: int) -> Tensor:
        """The most frequent words of the training reviews; of equal frequency, in alphabetical order."""
        of_train = torch.zeros(len(self.lengths), dtype=torch.bool)
        of_train[self.splits["train"]] = True
        counts = torch.bincount(tokens[of_train.repeat_interleave(self.lengths)], minlength=types)
        order = counts.argsort(descending=True, stable=True)
        return order[: min(self.config.vocabulary, int((counts > 0).sum()))]

    def embedding(self) -> "WordEmbedding":
        return WordEmbedding(self.vectors, self.config.dropout)

    def batch(self, step: int, batch_size: int) -> Batch:
        epoch, position = divmod(step, self.steps_per_epoch(batch_size))
        if self._plan is None or self._plan[0] != (epoch, batch_size):
            rng = generator(self.seed, "order", epoch)
            train = self.splits["train"]
            batches = []
            for pool in self._pools(train[torch.randperm(len(train), generator=rng)], batch_size):
                batches += [pool[i] for i in torch.randperm(len(pool), generator=rng)]
            self._plan = (epoch, batch_size), batches
        return self._take(self._plan[1][position])

    def evaluation(self, split: str) -> Iterator[Batch]:
        for pool in self._pools(self.splits[split], self.config.evaluation_batch):
            yield from map(self._take, pool)

    def _pools(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, ...]]:
        """The batches of each pool."""
        for pool in order.split(100 * batch_size):
            if self.config.bucketing:
                pool = pool[self.lengths[pool].argsort(stable=True)]
            yield pool.split(batch_size)

    def _take(self, indices: Tensor) -> Batch:
        lengths = self.lengths[indices]
        step = torch.arange(lengths.max())[:, None]
        there = step < lengths
        words = self.words[torch.where(there, self.starts[indices] + step, 0)]
        x = torch.where(there, words, PADDING)
        if self.config.lengths == "ignored":
            return x, self.targets[indices]
        return x, self.targets[indices], lengths

    def scores(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        scores = binary_scores(output, target)
        if self.config.average == "batches":
            scores["accuracy"] = scores["accuracy"].mean()
        return scores


class WordEmbedding(nn.Embedding):
    """Words (T, B) to vectors (T, B, D), trained except for the padding.

    Args:
        vectors: (words, D), the initial ones.
        dropout: probability p that a word is dropped from a whole training batch; the vectors of the others are scaled
            by 1/(1 - p).
    """

    def __init__(self, vectors: Tensor, dropout: float):
        super().__init__(*vectors.shape, padding_idx=PADDING, _weight=vectors.clone())
        self.dropout = dropout

    def forward(self, words: Tensor) -> Tensor:
        vectors = super().forward(words)
        if self.training and self.dropout:
            kept = torch.empty(self.num_embeddings, 1, device=vectors.device).bernoulli_(1 - self.dropout)
            vectors = vectors * (kept / (1 - self.dropout))[words]
        return vectors


def read(root: Path, tokenizer: str, lower: bool) -> tuple[dict, list[str], str]:
    """Reads the 50,000 reviews as tokens.

    Returns:
        (text, types, sha256). ``text`` has ``tokens``, those of all reviews in turn, as indices into ``types``;
        ``lengths`` of the reviews; ``tokenizer``, its name and version. The reviews are those of train/pos, train/neg,
        test/pos, test/neg, by file name. ``types`` are in alphabetical order. The hash is of the texts.

    Raises:
        DataError: offline, malformed files, or spaCy is not installed.
    """
    split, version = _tokenizer(tokenizer)
    where, state, reviews = _reviews(root)

    def build() -> dict:
        log.info("reading the reviews of IMDB, once")
        found: dict[str, int] = {}
        tokens, lengths, whole = [], [], hashlib.sha256()
        for name, review in reviews():
            whole.update(name.encode() + b"\0" + review + b"\0")
            text = decoded(review, where, name)
            words = split(text.lower() if lower else text)
            if not words:
                raise DataError(where, name, f"a review without words; {AGAIN}")
            tokens.append(np.array([found.setdefault(word, len(found)) for word in words], dtype=np.int32))
            lengths.append(len(words))
        types = sorted(found)
        place = np.empty(len(types), dtype=np.int32)
        place[[found[word] for word in types]] = np.arange(len(types))
        return {
            "tokens": torch.from_numpy(place[np.concatenate(tokens)]),
            "lengths": torch.tensor(lengths),
            "types": "\0".join(types),
            "tokenizer": version,
            "sha256": whole.hexdigest(),
        }

    text = cached(root, "imdb", {"files": state, "tokenizer": version, "lower": lower}, build)
    return text, text["types"].split("\0"), text["sha256"]


@functools.lru_cache(1)
def _places(words: str) -> dict[str, int]:
    """Numbers of the words of a vocabulary."""
    return {word: number for number, word in enumerate(words.split("\0"), 2)}


def _tokenizer(name: str) -> tuple[Callable[[str], list[str]], str]:
    """A function from a text to its tokens, and its name and version."""
    if name == "regex":
        return TOKEN.findall, "regex"
    try:
        import spacy
    except ImportError as error:
        raise DataError("task.tokenizer=spacy", None, "is not installed; use pip install spacy, or regex") from error
    pipeline = spacy.blank("en")
    version = importlib.metadata.version("spacy")
    return lambda text: [token.text for token in pipeline.tokenizer(text)], f"spacy {version}"


def _reviews(root: Path) -> tuple[Path, str, Callable[[], Iterator[tuple[str, bytes]]]]:
    """Where the files are, their fingerprint, and a function that reads the name and content of each, in order.

    The files are in the archive or, unpacked, in the folder ``aclImdb``.
    """
    source, folder = SOURCES["imdb"][0], root / "aclImdb"
    if (root / source.path).exists() or not folder.is_dir():
        archive = fetch(source, root)
        return archive, digest(archive), lambda: _from_archive(archive)
    names = _in_order((f"{part}/{path.name}" for part in PARTS for path in (folder / part).glob("*.txt")), folder)
    status = "\n".join(f"{name} {_status(folder / name)}" for name in names)
    state = hashlib.sha256(status.encode()).hexdigest()
    return folder, state, lambda: ((name, content(folder / name)) for name in names)


def _status(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _from_archive(archive: Path) -> Iterator[tuple[str, bytes]]:
    with open_archive(archive) as (names, open_member):
        names = [name.removeprefix("aclImdb/") for name in names]
        wanted = set(_in_order(names, archive))
        # In the order of the archive: a compressed file cannot seek back.
        found = {name: open_member(f"aclImdb/{name}").read() for name in names if name in wanted}
    return ((name, found[name]) for name in _in_order(found, archive))


def _in_order(names: Iterable[str], where: Path) -> list[str]:
    """The reviews among the names of files, in order; DataError unless all are there."""
    names = [name for name in names if REVIEW.fullmatch(name)]
    counts = {part: sum(name.startswith(f"{part}/") for name in names) for part in PARTS}
    if set(counts.values()) != {REVIEWS}:
        listed = ", ".join(f"{count} in {part}" for part, count in counts.items())
        raise DataError(where, None, f"{listed}, and {REVIEWS} are expected in each; {AGAIN}")
    return sorted(names, key=lambda name: (PARTS.index(name.rpartition("/")[0]), name))


def read_vectors(root: Path, name: str, types: list[str]) -> dict:
    """Reads the vectors of words.

    Returns:
        ``types`` (n,), indices of those with a vector; their ``vectors`` (n, D); the ``sha256`` of the text file.

    Raises:
        DataError: offline, or a malformed file.
    """
    source, plain = SOURCES["imdb"][1], root / f"{name}.txt"
    where = plain if plain.exists() else root / source.path
    state = _status(plain) if plain.exists() else digest(fetch(source, root))

    def build() -> dict:
        log.info("reading %s, once", name)
        place = {word: index for index, word in enumerate(types)}
        found, rows, whole = {}, [], hashlib.sha256()
        with plain.open("rb") if plain.exists() else _in_zip(root / source.path, plain.name) as file:
            for number, line in lines(file, where):
                whole.update(line)
                if (count := line.count(b" ")) != VECTORS[name]:
                    reason = f"{count} numbers, not {VECTORS[name]}, with a blank before each"
                    raise DataError(where, f"line {number}", reason)
                word, _, rest = line.rstrip().partition(b" ")
                word = decoded(word, where, f"line {number}")
                if word not in place:
                    continue
                if word in found:
                    raise DataError(where, f"line {number}", f"{word!r} is in line {found[word]} already")
                try:
                    rows.append(formats.row(rest, VECTORS[name]))
                except ValueError as error:
                    raise DataError(where, f"line {number}", str(error)) from error
                found[word] = number
        if not rows:
            raise DataError(where, None, "none of the words of the reviews is in it")
        vectors, at = np.stack(rows), list(found.values())
        check(vectors, where, lambda row, column: f"line {at[row]}, number {column + 1}", -COMPONENT, COMPONENT)
        return {
            "types": torch.tensor([place[word] for word in found]),
            "vectors": torch.from_numpy(vectors.astype(np.float32)),
            "sha256": whole.hexdigest(),
        }

    words = hashlib.sha256("\0".join(types).encode()).hexdigest()
    return cached(root, name, {"file": state, "types": words, "code": code(formats.__file__)}, build)


@contextlib.contextmanager
def _in_zip(archive: Path, member: str) -> Iterator[BinaryIO]:
    with open_archive(archive) as (names, open_member), open_member(find(archive, names, member)) as lines:
        yield lines
