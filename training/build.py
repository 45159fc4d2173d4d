"""Task and model of a configuration."""

import torch

from longwave.models.network import Network
from longwave.tasks.base import Task, data_root, start_readout
from longwave.tasks.data import Absent, no_downloads
from longwave.tasks.randomness import counted_seed
from longwave.training import memory
from longwave.training.config import Config
from longwave.training.errors import UserError
from longwave.training.progress import log
from longwave.training.record import Record, refuse_changed
from longwave.training.run import files_of


def compare_data(config: Config, earlier: Record) -> None:
    """UserError where the data are not those of a finished run; missing files are not compared."""
    if earlier.data is None or not earlier.data.files:
        return
    try:
        with no_downloads():
            task = config.task.build(config.seed, data_root(config.data.root))
    except Absent as error:
        log.info("the data of this run are not compared: %s", error)
    except OSError as error:
        raise UserError(f"the data of this run have changed: {error}") from error
    else:
        refuse_changed(earlier.data.files, files_of(task))


def build_task(config: Config) -> Task:
    """The task with its transform; UserError where data are missing or damaged, or settings do not go with it."""
    root = data_root(config.data.root)
    try:
        task = config.task.build(config.seed, root)
    except OSError as error:
        raise UserError(str(error)) from error
    if config.transform is not None:
        try:
            task = config.transform.apply(task, root)
        except (OSError, ValueError) as error:
            raise UserError(str(error)) from error
    return task


def build(config: Config, device: torch.device | None = None) -> tuple[Task, Network]:
    """Builds the task, with its transform, and the model, whose initialisation depends on the seed alone.

    Raises:
        UserError: where data are missing or damaged, settings do not go with the task or the model, or the run
            cannot fit into the memory of ``device``, where that is given.
    """
    task = build_task(config)
    config.training.check(task)
    if device is not None:
        memory.check(config, task, device)
    torch.manual_seed(counted_seed(config.seed, "init"))
    model = config.model.build(task.inputs, task.outputs)
    model.reads, model.embedding = task.read, task.embedding()
    start_readout(model.readout, task.readout)
    return task, model
