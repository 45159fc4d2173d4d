"""Training runs by ``train.py``: the headline, and seconds an epoch."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path

from longwave import CONF
from longwave.benchmarks.gpu_report import Item, OutOfTime, Report, Skipped


def runs(report: Report, small: bool, out: Path) -> Iterator[Item]:
    device = f"device={report.device.type}"
    common = ["tracking=none", f"output={out}", "fresh=true", device]
    few = ["task.T=9", "model.hidden=3", "training.steps=4", "training.batch_size=4", "training.evaluate_every=2"]
    headline = ["model=cornn", "task=adding", *(few if small else ["task.T=5000"])]
    yield Item(" ".join(headline[:3]), functools.partial(whole_run, [*headline, *common]), 0.5)
    epoch = ["model=unicornn", "task=psmnist", "training.epochs=1"]
    if small:
        epoch += ["training.steps=2", "model.hidden=4", "training.limit_evaluation=1"]
    yield Item(" ".join(epoch[:3]), functools.partial(whole_run, [*epoch, *common]))
    each = 1 if small else 20
    steps = [f"training.steps={3 * each}", f"training.log_every={each}", f"training.evaluate_every={3 * each}"]
    for path in sorted((CONF / "recipe").glob("*/smnist*.yaml")):
        name = f"{path.parent.name}/{path.stem}"
        given = [*steps, "training.limit_evaluation=1", *["model.hidden=4"] * small, *common]
        yield Item(f"an epoch of {name}", functools.partial(seconds_per_epoch, name, given))


def whole_run(overrides: list[str]) -> Iterator[dict]:
    """A run of ``train.py``, to its end or to that of the time."""
    record, stopped = record_of(overrides)
    steps, seconds = record.budget.steps_done or 0, record.wall_seconds or 0.0
    found = {"steps": steps, "seconds": seconds, "milliseconds a step": 1e3 * seconds / steps if steps else None}
    found |= {"status": record.status, "stopped": record.stopped, "metrics": record.metrics, "backend": record.backend}
    yield found
    if stopped is not None:
        raise stopped


def seconds_per_epoch(recipe: str, overrides: list[str]) -> Iterator[dict]:
    """From the steps between the first entry of the history and the second, before anything is evaluated."""
    from longwave.training.build import build
    from longwave.training.config import compose_run, recipe_overrides
    from longwave.training.run import folder_of

    overrides = [*recipe_overrides(recipe), *overrides]
    record, stopped = record_of(overrides)
    if stopped is not None:
        raise stopped
    config, _ = compose_run(overrides)
    lines = (folder_of(config) / "history.jsonl").read_text().splitlines()
    first, second = (json.loads(line) for line in lines[:2])
    per_epoch = build(config)[0].steps_per_epoch(config.training.batch_size)
    step = (second["seconds"] - first["seconds"]) / (second["step"] - first["step"])
    found = {"seconds": step * per_epoch, "milliseconds a step": 1e3 * step, "steps": per_epoch}
    yield found | {"backend": record.backend}


def record_of(overrides: list[str]):
    """The record of a run of ``train.py`` with these overrides, and what ended it early, or None."""
    from longwave import train
    from longwave.tasks.data import Absent, no_downloads
    from longwave.training import record
    from longwave.training.config import compose_run
    from longwave.training.errors import UserError
    from longwave.training.run import folder_of

    config, recipe = compose_run(overrides)
    stopped = None
    try:
        with no_downloads():
            train.train(config, recipe, train.command_of(overrides))
    except OutOfTime as error:
        stopped = error
    except UserError as error:
        if isinstance(error.__cause__, Absent):
            raise Skipped(str(error)) from error
        raise
    return record.read(folder_of(config)), stopped
