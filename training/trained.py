"""A finished run as a model to use: ``longwave.load(run)``; docs/after-training.md shows how."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longwave.models.network import Network
from longwave.tasks.data import no_downloads
from longwave.training import environment, weights
from longwave.training.build import build_task
from longwave.training.config import Config, restore
from longwave.training.errors import UserError
from longwave.training.record import Record
from longwave.training.run import KEPT_OF_TASK


def load(run: str | Path, device: str = "auto") -> "Trained":
    """The trained network of a finished run, with the weights that its record's metrics belong to.

    The data set is not needed, except for checkpoints of older versions, which lack what the task makes of its data,
    and for tasks with their own kind of embedding.

    Args:
        run: its folder, or its name or identity in ``outputs/runs``.
        device: auto (cuda, else mps, else cpu), cpu, cuda or mps.

    Raises:
        UserError: where there is no such run, or it is not finished or damaged.
    """
    folder = weights.find(run)
    record = weights.read_record(folder)
    config = restore(record.config)
    chosen, saved = weights.selected(folder)
    task, embedding = saved.get("task"), chosen.get("embedding.weight")
    own = [key for key in chosen if key.startswith("embedding.")]
    if task is None or (own and (own != ["embedding.weight"] or embedding.dim() != 2)):
        with no_downloads():
            built = build_task(config)
        task, module = {key: getattr(built, key) for key in KEPT_OF_TASK}, built.embedding()
    else:
        # Whatever else an embedding of the task does, it does in training.
        module = None if embedding is None else nn.Embedding(*embedding.shape)
    # What it starts from is drawn, and not kept.
    with torch.random.fork_rng(devices=[]):
        network = config.model.build(task["inputs"], task["outputs"])
    network.reads, network.embedding = task["read"], module
    try:
        weights.assign(network, chosen)
    except ValueError as error:
        raise UserError(f"{folder}: the run was made by another version of the code: {error}") from error
    return Trained(network.eval().to(environment.pick_device(device)), config, record, task, folder)


@dataclass(frozen=True)
class Prediction:
    """The network's predictions for N samples, on the CPU, in their order.

    Args:
        outputs: (N, outputs), or (N, T, outputs) where the task reads every step; then a list of (T, outputs) where
            lengths differ, and so with the two below.
        probabilities: (N, classes), or (N, T, classes); None in regression.
        classes: (N,) or (N, T), numbers of the most probable classes; None in regression.
        names: of the classes; None where they are numbered.
    """

    outputs: Tensor | list[Tensor]
    probabilities: Tensor | list[Tensor] | None
    classes: Tensor | list[Tensor] | None
    names: list[str] | None


@dataclass
class Trained:
    """A trained network, and the preparation of its inputs.

    Args:
        network: in evaluation mode; it can be moved and cast like any module, and its inputs follow.
        config: of the run.
        record: of the run.
        task: what is kept of the task, see :data:`longwave.training.run.KEPT_OF_TASK`.
        folder: of the run.
    """

    network: Network
    config: Config
    record: Record
    task: dict[str, Any]
    folder: Path

    def prepare(self, samples: Sequence) -> list[Tensor]:
        """What the network reads of each raw sample, (T, D) or tokens (T,), on the CPU.

        Raises:
            ValueError: which names the sample, for one that is none of the task's.
        """
        prepared = self._prepared(samples)
        if self.config.transform is None:
            return prepared
        found: list[Tensor] = [None] * len(prepared)
        for places, x in self._by_length(prepared):
            for place, one in zip(places, x.unbind(1), strict=True):
                found[place] = one
        return found

    @torch.no_grad()
    def predict(self, x: Any, batch_size: int = 256) -> Prediction:
        """Predictions for raw samples, each read at its own end as if it were alone.

        Args:
            x: an array (N, T, D) or a list of arrays (T, D), of any lengths, raw, as the data set has them (see
                :meth:`longwave.tasks.base.TaskConfig.prepare` of the task); texts for a task on texts; or a batch of
                the task, a tuple, which is prepared already.
            batch_size: number of samples computed at once.

        Raises:
            ValueError: which names the sample, for one that is none of the task's.
        """
        self.network.eval()
        if isinstance(x, tuple):
            x, _, *lengths = x
            outputs = self._run(x.to(self._dtype) if x.is_floating_point() else x, *lengths)
            return self._prediction(list(outputs.unbind(int(self.network.reads == "every"))))
        samples = [x] if isinstance(x, str) else x
        found: list[Tensor] = [None] * len(samples)
        for places, batch in self._by_length(self._prepared(samples)):
            for part, ends in zip(batch.split(batch_size, 1), torch.tensor(places).split(batch_size), strict=True):
                outputs = self._run(part).unbind(int(self.network.reads == "every"))
                for place, output in zip(ends.tolist(), outputs, strict=True):
                    found[place] = output
        return self._prediction(found)

    def stream(self, length: int | None = None) -> "Stream":
        """Outputs while a sequence comes in, step by step: see :class:`Stream`.

        Args:
            length: steps of the whole sequence, over which the time of log-signatures goes from 0 to 1; None is that of
                the training.

        Raises:
            ValueError: where the task prepares a sample as a whole.
        """
        return Stream(self, length)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def prepare_one(self, sample: Any, start: int = 0) -> Tensor:
        """A sample, or the part of it that begins at step ``start``, before the transform."""
        if isinstance(sample, Tensor):
            # The statistics are there.
            sample = sample.detach().cpu()
        try:
            x = self.config.task.prepare(sample, self.task["statistics"], start)
        # What torch says of what is no array.
        except (TypeError, RuntimeError) as error:
            raise ValueError(str(error).partition("\n")[0]) from error
        self._check(x)
        return x.to(self._dtype) if x.is_floating_point() else x

    def _prepared(self, samples: Sequence) -> list[Tensor]:
        """Each sample before the transform."""
        found = []
        for number, sample in enumerate(samples):
            try:
                found.append(self.prepare_one(sample))
            except ValueError as error:
                raise ValueError(f"sample {number}: {error}") from error
        return found

    def _check(self, x: Tensor) -> None:
        if self.network.embedding is not None:
            rows = self.network.embedding.num_embeddings
            if x.is_floating_point() or not x.numel() or not 0 <= x.min() <= x.max() < rows:
                raise ValueError(f"tokens must be whole numbers from 0 to {rows - 1}")
        elif self.config.transform is None and x.shape[1] != self.task["inputs"]:
            raise ValueError(f"must have {self.task['inputs']} channels, got {x.shape[1]}")

    def _by_length(self, prepared: list[Tensor]):
        """Places of the samples of each length, and what the network reads of them, (T, B, D) or (T, B)."""
        groups: dict[int, list[int]] = {}
        for place, x in enumerate(prepared):
            groups.setdefault(len(x), []).append(place)
        for places in groups.values():
            x = torch.stack([prepared[place] for place in places], 1)
            if self.config.transform is not None:
                x = self.config.transform.prepare(x)
                if x.shape[2] != self.task["inputs"]:
                    raise ValueError(f"sample {places[0]}: has another number of channels than in training")
            yield places, x

    def _run(self, x: Tensor, *lengths: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        with self.autocast():
            output = self.network(x.to(device), *(one.to(device) for one in lengths))
        return self.in_units(output)

    def autocast(self) -> torch.autocast:
        """The precision of the training."""
        device = next(self.network.parameters()).device
        return torch.autocast(device.type, torch.bfloat16, enabled=self.config.training.precision == "bf16")

    def in_units(self, output: Tensor) -> Tensor:
        """An output on the CPU, in the unit of the targets; logits of classes as they are."""
        output = (output.float() if output.dtype == torch.bfloat16 else output).cpu()
        if self.task["predicts"] != "values":
            return output
        return self.config.task.in_units(output, self.task["statistics"])

    def _prediction(self, outputs: list[Tensor]) -> Prediction:
        equal = len({output.shape for output in outputs}) <= 1
        found = torch.stack(outputs) if equal and outputs else outputs
        if self.task["predicts"] == "values":
            return Prediction(found, None, None, None)
        parts = [probabilities(output, self.task["predicts"]) for output in outputs]
        classes = [part.argmax(-1) for part in parts]
        if equal and outputs:
            parts, classes = torch.stack(parts), torch.stack(classes)
        return Prediction(found, parts, classes, self.task["classes"])


def probabilities(output: Tensor, predicts: str) -> Tensor:
    """Of the classes, (..., classes), from logits (..., classes), or (..., 1) of the second of two classes."""
    if predicts == "binary":
        return torch.cat([-output, output], -1).sigmoid()
    return output.softmax(-1)


class Stream:
    """Outputs of a trained network while a sequence comes in, each equal to that of the whole sequence up to this step.

    Args:
        trained: its network is copied.
        length: see :meth:`Trained.stream`.
    """

    def __init__(self, trained: Trained, length: int | None = None):
        config = trained.config
        if not config.task.stepwise:
            raise ValueError(f"task={config.task.name} prepares a sample as a whole: there is no stream")
        self.trained = trained
        self.network = copy.deepcopy(trained.network)
        self.network.layer.freeze()
        self.state, self.steps = None, 0
        self._blocks = None
        if config.transform is not None:
            self._blocks = config.transform.stream(length or trained.task["statistics"]["length"])

    @torch.no_grad()
    def step(self, x: Any) -> Tensor | None:
        """The output (outputs,) after one more raw step x, (D,), a number or a character.

        With log-signatures it is the output at the end of each block and at the first step, and None between.

        Raises:
            ValueError: for what is no step of the task.
        """
        raw = x if isinstance(x, str) else torch.as_tensor(x).unsqueeze(0)
        prepared = self.trained.prepare_one(raw, self.steps)
        if len(prepared) != 1:
            raise ValueError(f"must be one step, got {len(prepared)}")
        self.steps += 1
        entry = prepared if self._blocks is None else self._blocks.push(prepared)
        if entry is None:
            return None
        device = next(self.network.parameters()).device
        with self.trained.autocast():
            output, self.state = self.network.step(entry.to(device), self.state)
        return self.trained.in_units(output)[0]
