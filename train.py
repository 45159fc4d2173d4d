"""One run: compose, build task and model, fit, write the record. ``python train.py --help`` says what can be chosen."""

import os
import shlex
import signal
import sys
from collections.abc import Callable

# Hydra then hands errors on, and they are shown here, in one line.
os.environ.setdefault("HYDRA_FULL_ERROR", "1")

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from longwave import CONF
from longwave.results import published
from longwave.results.tables import verdict_of
from longwave.tasks.base import data_root, start_readout
from longwave.tasks.randomness import counted_seed
from longwave.training import progress
from longwave.training.config import Config, check, recipe_of, resolve
from longwave.training.errors import Interrupted, UserError
from longwave.training.loop import fit, pick_device, set_up_process
from longwave.training.progress import log
from longwave.training.run import Run


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> float:
    return job(cfg)


def job(cfg: DictConfig, on_score: Callable | None = None) -> float:
    """Trains and tests; gives the metric on the monitored split, for sweepers; ``on_score`` as in Run."""
    about = HydraConfig.get()
    if about.mode == RunMode.MULTIRUN and not about.launcher._target_.endswith("BasicLauncher"):
        # Several bars on one terminal write over each other.
        progress.plain = True
    try:
        config = resolve(cfg, about.runtime.choices)
        # Repeating a run is not starting it afresh.
        overrides = [text for text in about.overrides.task if not text.startswith("fresh=")]
        command = shlex.join(["python", "train.py", *overrides])
        return train(config, recipe_of(about.runtime.choices), command, on_score)
    except UserError as error:
        if about.mode == RunMode.MULTIRUN:
            log.error("job %s failed: %s", about.job.num, error)
            raise
        # Not an Exception: Hydra lets it pass without a line of its own.
        sys.exit(f"error: {error}")


def train(config: Config, recipe: str | None, command: str, on_score: Callable | None = None) -> float:
    """Runs, resumes or reports one run; gives its objective.

    Args:
        config: checked.
        recipe: the name of the recipe it was composed from, or None.
        command: what to type to run it again.
        on_score: as in :class:`longwave.training.run.Run`.

    Raises:
        UserError: for what a user can mend.
    """
    try:
        run = Run(config, recipe, published.lookup(config.published), command, on_score)
    except ValueError as error:
        raise UserError(str(error)) from error
    record = run.record()
    if record is not None and record["status"] == "finished" and not config.fresh:
        log.info("%s is finished already; fresh=true runs it again", run.name)
        return run.report(record)
    device = pick_device(config.device)
    set_up_process(config.threads)
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
    config.training.check(task)
    torch.manual_seed(counted_seed(config.seed, "init"))
    model = config.model.build(task.inputs, task.outputs)
    model.reads, model.embedding = task.read, task.embedding()
    start_readout(model.readout, task.readout)
    config.diagnostics.check(model)
    with run:
        run.describe(task, model, device)
        run.finish(fit(config, task, model, device, run), verdict_of)
    return run.report(run.record())


if __name__ == "__main__":
    try:
        sys.argv[1:] = check(sys.argv[1:])
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as error:
        print(error if str(error) else "interrupted; the same command goes on", file=sys.stderr)
        sys.exit(128 + (error.signal if isinstance(error, Interrupted) else signal.SIGINT))
