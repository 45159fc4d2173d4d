"""Penn Treebank by characters (Marcus et al. 1993; Mikolov's preparation): the next character."""

import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longwave.schema import LATER, Annotated, Ge, Le, OneOf, one_line
from longwave.tasks.base import READOUTS, Task, TaskConfig
from longwave.tasks.checks import DataError, decoded, lines
from longwave.tasks.data import Source, cached, content, fetch, unpack
from longwave.tasks.randomness import generator

SOURCES = {
    "ptb_char": (
        Source(
            path="downloads/simple-examples.tgz",
            urls=("http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz",),
        ),
    )
}

FILES = {"train": "ptb.char.train.txt", "validation": "ptb.char.valid.txt", "test": "ptb.char.test.txt"}
END = "<eos>"
# The text has 50.
MOST_CHARACTERS = 256
UNKNOWN = "<unk>"


@dataclass
class Config(TaskConfig):
    """Predict each character of a text from those before it.

    The text is cut into as many strips as a batch has samples, which are read side by side in chunks of ``T``:
    truncated BPTT, the hidden state is carried, detached, from chunk to chunk.

    Args:
        T: characters in a chunk: 150 or 300 in the tables of nnRNN and asRNN, 50 or 150 in IndRNN's.
        end_of_line: whether every line ends with a symbol of its own (as in nnRNN's and asRNN's code).
        embedding: width of the vectors of the characters.
        vectors: initial vectors: ``normal``, N(0, 1), or ``uniform``, U(-0.1, 0.1) (nnRNN's and asRNN's code).
        evaluation_batch: strips of the validation and the test text; 10 in nnRNN's and asRNN's code.
        readout: initialisation of the readout: ``model`` (the model's own), ``uniform`` or ``kaiming``; ``uniform``
            (U(-0.1, 0.1), biases 0) in nnRNN's, asRNN's and expRNN's code.
    """

    name: str = "ptb_char"
    T: Annotated[int, Ge(1), Le(10_000_000)] = 150
    end_of_line: bool = True
    embedding: Annotated[int, Ge(1), Le(65536)] = 200
    evaluation_batch: Annotated[int, Ge(1), Le(100_000)] = 10
    readout: Annotated[str, OneOf(*READOUTS)] = "model"
    vectors: Annotated[str, OneOf("normal", "uniform"), LATER] = "normal"

    def build(self, seed: int, data_root: Path) -> "PTBChar":
        return PTBChar(self, seed, data_root)

    def prepare(self, sample: Any, statistics: dict[str, Any], start: int = 0) -> Tensor:
        """A text, of which a line's end is a symbol where the training had one; or numbers of characters (T,)."""
        if not isinstance(sample, str):
            return torch.as_tensor(sample).view(-1)
        place = {character: number for number, character in enumerate(statistics["characters"])}
        written = [{" ": "_", "\n": END}.get(character, character) for character in sample]
        for character in written:
            if character not in place and UNKNOWN not in place:
                raise ValueError(f"{one_line(character)!r} is none of the characters of the training")
        return torch.tensor([place.get(character, place.get(UNKNOWN)) for character in written])


class PTBChar(Task):
    """Characters (T, B) as integers; cross-entropy of the next one at every step, in bits per character as the metric.

    The end of a text that does not fill the strips is left out (at most one character a strip); the first character of
    a strip is no target. An epoch reads the strips once, in their order; its last chunk may be shorter.
    """

    read = "every"
    carries_state = True
    objective, metric = "cross_entropy", "bpc"
    higher_is_better = False

    def __init__(self, config: Config, seed: int, data_root: Path):
        self.T, self.evaluation_batch, self.seed = config.T, config.evaluation_batch, seed
        self.readout, self.vectors = config.readout, config.vectors
        self.texts, self.characters, self.files = read(data_root, config.end_of_line)
        for split in ("validation", "test"):
            if not self._chunks(split, config.evaluation_batch):
                reason = f"{len(self.texts[split])} characters, too few for task.evaluation_batch="
                raise DataError(FILES[split], None, f"{reason}{config.evaluation_batch}")
        self.inputs, self.outputs = config.embedding, len(self.characters)
        self.statistics = {"characters": self.characters}
        counts = torch.bincount(self.texts["train"], minlength=self.outputs).clamp(min=1).double()
        # Of predicting each character with its frequency in the training text.
        bits = -(counts / counts.sum()).log2()
        self.baseline = {"bpc": bits[self.texts["test"]].mean().item()}
        self.split_id = f"ptb_char/T={config.T}/{'eos' if config.end_of_line else 'no eos'}"

    def embedding(self) -> nn.Embedding:
        draw = torch.randn if self.vectors == "normal" else torch.rand
        vectors = draw(self.outputs, self.inputs, generator=generator(self.seed, "vectors"))
        if self.vectors == "uniform":
            vectors = 0.2 * vectors - 0.1
        return nn.Embedding.from_pretrained(vectors, freeze=False)

    def steps_per_epoch(self, batch_size: int) -> int:
        return self._chunks("train", batch_size)

    def batch(self, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        return self._chunk("train", step % self._chunks("train", batch_size), batch_size)

    def evaluation(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(self._chunks(split, self.evaluation_batch)):
            yield self._chunk(split, index, self.evaluation_batch)

    def scores(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        nats = F.cross_entropy(output.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        return {"cross_entropy": nats, "bpc": nats / math.log(2)}

    def _strips(self, split: str, count: int) -> Tensor:
        text = self.texts[split]
        length = len(text) // count
        return text[: length * count].view(count, length).T  # (length, count)

    def _chunks(self, split: str, count: int) -> int:
        return -(-max(len(self._strips(split, count)) - 1, 0) // self.T)

    def _chunk(self, split: str, index: int, count: int) -> tuple[Tensor, Tensor]:
        strips = self._strips(split, count)
        chunk = strips[index * self.T : (index + 1) * self.T + 1]
        return chunk[:-1], chunk[1:]


def read(root: Path, end_of_line: bool) -> tuple[dict[str, Tensor], list[str], tuple[tuple[str, str], ...]]:
    """Reads the three texts.

    In the files, characters are separated by spaces and "_" is the space; a line is a sentence.

    Returns:
        The texts as integers; their characters, in the order of first appearance; (name, sha256) of each file.

    Raises:
        DataError: offline, or a damaged archive or text.
    """
    folder = root / "simple-examples" / "data"
    if not all((folder / name).exists() for name in FILES.values()):
        unpack(fetch(SOURCES["ptb_char"][0], root), [f"data/{name}" for name in FILES.values()], folder.parent)
    contents = {split: content(folder / name) for split, name in FILES.items()}
    files = tuple((FILES[split], hashlib.sha256(text).hexdigest()) for split, text in contents.items())

    def build() -> dict:
        found: dict[str, int] = {}
        texts = {}
        for split, text in contents.items():
            end, path = [END] if end_of_line else [], folder / FILES[split]
            if not text.strip():
                raise DataError(path, None, "is empty")
            numbers = []
            for number, line in lines(io.BytesIO(text), path, ended=False):
                place = f"line {number}"
                characters = decoded(line, path, place).split()
                numbers += [found.setdefault(c, len(found)) for c in (*characters, *end)]
                if long := [c for c in characters if len(c) > 1 and c != UNKNOWN]:
                    raise DataError(path, place, f"{one_line(long[0])!r} is more than one character")
                if len(found) > MOST_CHARACTERS:
                    raise DataError(path, place, f"more than {MOST_CHARACTERS} different characters")
            texts[split] = torch.tensor(numbers, dtype=torch.uint8)
        return {**texts, "characters": list(found)}

    kept = cached(root, "ptb_char", {"files": files, "end_of_line": end_of_line}, build)
    return {split: kept[split].long() for split in FILES}, kept["characters"], files
