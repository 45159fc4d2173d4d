"""Log-signatures of the blocks of a path, the input of Neural RDEs (Morrill et al., ICML 2021)."""

import copy
import hashlib
import importlib.metadata
import importlib.util
import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from longwave.schema import NEUTRAL, Annotated, Ge, Le, OneOf, Section
from longwave.tasks.base import ArrayTask, Batch, Task
from longwave.tasks.data import cached

# Numbers that are transformed at once, to bound the memory.
CHUNK = 1 << 20


def log_signatures(x: Tensor, depth: int, step: int, time: bool = True, backend: str = "auto") -> Tensor:
    """Log-signatures of the blocks of ``step`` increments of a path.

    The path has time, linspace(0, 1, L), as its first channel, then those of ``x``. Block k is samples k step to
    (k + 1) step, both included, so that neighbours share an end point; blocks start at 0, step, 2 step, ... while
    start < L - step: an incomplete last one is left out. A log-signature is not divided by the length of its block.
    Its components are the coefficients of the Lyndon words in the channels up to length ``depth``, by length, then in
    lexicographic order: signatory's "words" (Morrill et al.: ncdes/data; signatory: logsignature).

    A log-signature does not depend on the start of its path, so the first entry of the result has the first sample,
    with the time, in its first channels, and zeros after them, as in torchcde's ``logsig_windows``.

    Args:
        x: (L, B, C).
        depth, step, time, backend: see :class:`Config`.

    Returns:
        (1 + blocks, B, D), in the type of ``x``; blocks = (L - 1) // step, and D is 3, 6, 14 for 3 channels with time
        and 7, 28, 140 for 7, at depth 1, 2, 3.

    Raises:
        ValueError: if there is no complete block.
    """
    if step >= len(x):
        raise ValueError(f"transform.step={step}: must be less than {len(x)}, the length of the sequences")
    if time:
        stamps = torch.linspace(0, 1, len(x), dtype=x.dtype, device=x.device)
        x = torch.cat([stamps.view(-1, 1, 1).expand(-1, x.shape[1], 1), x], -1)
    blocks = x.unfold(0, step + 1, step).transpose(2, 3)  # (blocks, B, step + 1, C)
    found = BACKENDS[_pick(backend)](blocks.flatten(0, 1), depth).unflatten(0, blocks.shape[:2])  # (blocks, B, D)
    return torch.cat([F.pad(x[:1], (0, found.shape[-1] - x.shape[-1])), found])


def of_unequal_lengths(x: Tensor, lengths: Tensor, *settings) -> tuple[Tensor, Tensor]:
    """:func:`log_signatures` of series that differ in length, each as if it were alone.

    Args:
        x: (L, B, C), padded at the ends.
        lengths: (B,), samples.
        settings: the other arguments of :func:`log_signatures`.

    Returns:
        (entries, B, D), zeros behind the end of a shorter one, and the lengths in entries, (B,).
    """
    columns = [torch.nonzero(lengths == length).flatten() for length in lengths.unique()]
    parts = [log_signatures(x[: lengths[one[0]], one], *settings) for one in columns]
    found = x.new_zeros(max(map(len, parts)), x.shape[1], parts[0].shape[-1])
    entries = torch.empty_like(lengths)
    for one, part in zip(columns, parts, strict=True):
        found[: len(part), one] = part
        entries[one] = len(part)
    return found, entries


class Blocks:
    """The entries of :func:`log_signatures` of a path that comes sample by sample.

    Args:
        config: of the transform.
        length: samples of the whole path, over which the time goes from 0 to 1, and on behind them.
    """

    def __init__(self, config: "Config", length: int):
        self.config, self.length = config, length
        self._samples, self._count = [], 0

    def push(self, x: Tensor) -> Tensor | None:
        """The entry (B, D) that the next sample (B, C) completes; None within a block."""
        config = self.config
        if config.time:
            stamp = x.new_full((len(x), 1), self._count / max(self.length - 1, 1))
            x = torch.cat([stamp, x], 1)
        self._count += 1
        self._samples.append(x)
        if self._count == 1:
            return F.pad(x, (0, config.components(x.shape[1]) - x.shape[1]))
        if len(self._samples) <= config.step:
            return None
        block = torch.stack(self._samples, 1)  # (B, step + 1, C)
        # Neighbours share an end point.
        self._samples = [x]
        return BACKENDS[_pick(config.backend)](block, config.depth)


def _pick(backend: str) -> str:
    if backend != "auto":
        return backend
    return "pysiglib" if importlib.util.find_spec("pysiglib") else "torch"


def lyndon_words(channels: int, length: int) -> list[tuple[int, ...]]:
    """Words over 0 ... channels - 1 that come before all their rotations, in lexicographic order."""
    words = itertools.product(range(channels), repeat=length)
    return [word for word in words if all(word < word[i:] + word[:i] for i in range(1, length))]


def _pysiglib(paths: Tensor, depth: int) -> Tensor:
    import pysiglib

    pysiglib.prepare_log_sig(paths.shape[-1], depth, 1, device="cpu")
    # It warns about an input that is not contiguous.
    paths = paths.clone(memory_format=torch.contiguous_format)
    return pysiglib.log_sig(paths, depth, method=1, n_jobs=torch.get_num_threads())


def _signatory(paths: Tensor, depth: int) -> Tensor:
    import signatory

    return signatory.logsignature(paths, depth, mode="words")


def _torch(paths: Tensor, depth: int) -> Tensor:
    """The definition, (N, n, C) to (N, D): the logarithm of the signature in the tensor algebra, up to level 3.

    The signature grows with each increment d as S <- S (x) exp(d), from (1, 0, 0, 0); and
    log(1 + s) = s - s (x) s / 2 + s (x) s (x) s / 3.
    """
    _, samples, channels = paths.shape
    size = samples * channels**2 + channels**3
    return torch.cat([_log_signature(part, depth) for part in paths.split(max(1, CHUNK // size))])


def _log_signature(path: Tensor, depth: int) -> Tensor:
    d = path.diff(dim=1)  # (N, t, C)
    before = path[:, :-1] - path[:, :1]  # level 1 of the signature before each increment
    s1 = path[:, -1] - path[:, 0]
    levels = [s1]
    if depth >= 2:
        grown = torch.einsum("nti,ntj->ntij", before + d / 2, d)  # what each increment adds to level 2
        s2 = grown.sum(1)
        levels.append(s2 - torch.einsum("ni,nj->nij", s1, s1) / 2)
    if depth >= 3:
        before2 = grown.cumsum(1) - grown  # level 2 before each increment
        inner = before2 + torch.einsum("nti,ntj->ntij", before / 2 + d / 6, d)
        s3 = torch.einsum("ntij,ntk->nijk", inner, d)
        products = torch.einsum("ni,njk->nijk", s1, s2) + torch.einsum("nij,nk->nijk", s2, s1)
        levels.append(s3 - products / 2 + torch.einsum("ni,nj,nk->nijk", s1, s1, s1) / 3)
    found = []
    for length, level in enumerate(levels, 1):
        words = torch.tensor(lyndon_words(path.shape[-1], length), dtype=torch.long).view(-1, length)
        found.append(level[:, *words.T])
    return torch.cat(found, 1)


BACKENDS = {"pysiglib": _pysiglib, "signatory": _signatory, "torch": _torch}


@dataclass
class Config(Section):
    """The first sample of a sequence, then the log-signatures of its blocks (docs/transforms.md).

    Args:
        depth: of the log-signature: 1 (increments), 2 (and areas) or 3.
        step: increments per block; less than the length of the shortest sequence.
        time: whether time, from 0 to 1, is the first channel of the path.
        backend: auto (pysiglib if it is installed, else torch), pysiglib, signatory or torch. They agree up to
            rounding.
    """

    name: str = "log_signature"
    depth: Annotated[int, OneOf(1, 2, 3)] = 1
    step: Annotated[int, Ge(1), Le(10_000_000)] = 1
    time: bool = True
    backend: Annotated[str, OneOf("auto", *BACKENDS), NEUTRAL] = "auto"

    def __post_init__(self):
        super().__post_init__()
        if self.backend not in ("auto", "torch") and importlib.util.find_spec(self.backend) is None:
            how = "make signatory" if self.backend == "signatory" else "pip install pysiglib"
            raise ValueError(f"backend={self.backend}: is not installed; use {how}, or backend=auto")

    def components(self, channels: int) -> int:
        """Width of a log-signature of so many channels, with time."""
        return sum(len(lyndon_words(channels, length)) for length in range(1, self.depth + 1))

    def prepare(self, x: Tensor) -> Tensor:
        """:func:`log_signatures` of (L, B, C)."""
        return log_signatures(x, self.depth, self.step, self.time, self.backend)

    def stream(self, length: int) -> Blocks:
        """The same sample by sample, for a path of ``length`` samples."""
        return Blocks(self, length)

    def apply(self, task: Task, data_root: Path) -> Task:
        """A copy of ``task`` with transformed inputs.

        A data set in memory is transformed once, and kept in ``data_root/cache``; generated batches are transformed one
        by one. Where series differ in length, each is transformed as if it were alone, and lengths count entries.

        Raises:
            ValueError: for sequences that are too short for ``step`` or are tokens, for tasks that read every step or
                carry the hidden state.
        """
        x, _, *lengths = task.batch(0, 1)
        if task.carries_state or task.read != "last" or not x.is_floating_point():
            raise ValueError(
                "transform=log_signature: is for tasks with one output a sequence and numbers as inputs; "
                "use transform=none"
            )
        if lengths and task.lengths.min() <= self.step:
            raise ValueError(
                f"transform.step={self.step}: must be less than {task.lengths.min()}, the length of the shortest series"
            )
        backend = _pick(self.backend)
        settings = self.depth, self.step, self.time, backend

        def transform(x: Tensor, *lengths: Tensor) -> tuple[Tensor, ...]:
            return of_unequal_lengths(x, *lengths, *settings) if lengths else (log_signatures(x, *settings),)

        transformed = copy.copy(task)
        transformed.inputs = transform(x, *lengths)[0].shape[-1]
        longest = len(x)
        if lengths:
            longest, transformed.lengths = int(task.lengths.max()), 1 + (task.lengths - 1) // self.step
        transformed.split_id = f"{task.split_id}/log_signature/depth={self.depth}/step={self.step}/time={self.time}"
        transformed.notes = task.notes | {"log_signature": backend}
        transformed.statistics = task.statistics | {"length": longest}
        transformed.at_length = lambda length: self.apply(task.at_length(length), data_root)
        # A task with a batch method of its own adds what is not in its samples, such as noise; without samples they
        # are on the disk.
        if isinstance(task, ArrayTask) and type(task).batch is ArrayTask.batch and len(task.samples):
            shape = (len(task.samples), 1 + (longest - 1) // self.step, transformed.inputs)
            size, memory = 4 * math.prod(shape), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            if size > memory:
                raise ValueError(
                    f"transform.depth={self.depth}: the data would take {size / 1e9:.0f} GB, and this machine has "
                    f"{memory / 1e9:.0f} GB; use a larger transform.step or a smaller depth"
                )

            def build() -> dict[str, Tensor]:
                samples = torch.empty(shape)
                for indices, x in _chunks(task):
                    found, *_ = transform(x, *(task.lengths[indices] for _ in lengths))
                    samples[indices] = F.pad(found, (0, 0, 0, 0, 0, shape[1] - len(found))).transpose(0, 1)
                return {"samples": samples}

            key = {"data": _digest(task), "depth": self.depth, "step": self.step, "time": self.time}
            key["backend"] = f"{backend} {importlib.metadata.version(backend)}"
            transformed.samples = cached(data_root, "log_signature", key, build)["samples"]
            transformed.prepare = lambda samples: samples.transpose(0, 1).contiguous()
            return transformed

        def through(batch: Batch) -> Batch:
            x, target, *lengths = batch
            x, *entries = transform(x, *lengths)
            return x, target, *entries

        transformed.batch = lambda step, batch_size: through(task.batch(step, batch_size))
        transformed.evaluation = lambda split: (through(batch) for batch in task.evaluation(split))
        return transformed


def _chunks(task: ArrayTask) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices and inputs of all samples, in parts that CHUNK allows."""
    size = max(1, CHUNK // task.prepare(task.samples[:1]).numel())
    for indices in torch.arange(len(task.samples)).split(size):
        yield indices, task.prepare(task.samples[indices])


def _digest(task: ArrayTask) -> str:
    """The sha256 of all inputs, with their lengths where these differ."""
    found = hashlib.sha256()
    if task.lengths is not None and len(task.lengths.unique()) > 1:
        found.update(task.lengths.numpy())
    for _, x in _chunks(task):
        found.update(str(tuple(x.shape)).encode())
        found.update(x.contiguous().numpy())
    return found.hexdigest()
