"""One run: compose, build task and model, fit, write the record. ``python train.py --help`` lists the choices."""

import logging.config
import os
import shlex
import signal
import sys
from collections.abc import Callable

# Hydra then hands errors on, and they are shown here, in one line.
os.environ.setdefault("HYDRA_FULL_ERROR", "1")
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    # Ctrl-C during the imports is no traceback; entry.in_one_line takes over.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import yaml
from omegaconf import DictConfig

from longwave import CONF
from longwave.training import command as command_line
from longwave.training import config as configuration
from longwave.training import entry
from longwave.training.errors import UserError
from longwave.training.progress import log

USAGE = """\
usage: python train.py model=<model> task=<task> [key=value ...]

  python train.py model=cornn task=adding task.T=5000     the adding problem over 5,000 steps, some minutes
  python train.py --help                                  models, tasks, recipes and keys"""


def main() -> None:
    command_line.refuse_other_checkout(__file__)
    command = command_line.parse(sys.argv[1:])
    if command.help is not None:
        print(command.help)
        return
    flags = {text for text in command.arguments if text.startswith("-")}
    if flags <= {"-m", "--multirun"} and not command_line.names_a_run(command.overrides):
        sys.exit(USAGE)
    if command.config is not None:
        logging.config.dictConfig(yaml.safe_load((CONF / "hydra" / "job_logging" / "longwave.yaml").read_text()))
        log.info(command_line.choice_of(command.config, command.recipe, command.overrides))
        train(command.config, command.recipe, command_of(command.overrides))
        return
    import hydra
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    # It would compose every job once more.
    BasicSweeper.validate_batch_is_legal = lambda sweeper, batch: None
    sys.argv[1:] = command.arguments
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(job)()
    finally:
        if command.configs:
            show(command.configs)


def show(configs: list[configuration.Config]) -> None:
    """The table of the runs of a multirun, as a sweep ends with."""
    from longwave.sweeps.plan import Planned
    from longwave.sweeps.show import show_table
    from longwave.training.run import folder_of

    # The same run, asked for twice, is one.
    folders = {folder_of(config): config for config in configs}
    show_table([Planned(folder.name, [], config, folder) for folder, config in folders.items()])


def command_of(overrides: list[str]) -> str:
    """The command that makes the run again; repeating it does not start it over."""
    return shlex.join(["python", "train.py", *(text for text in overrides if not text.startswith("fresh="))])


def job(cfg: DictConfig, on_score: Callable | None = None) -> float:
    """One job of a multirun; gives the metric on the monitored split, for sweepers; ``on_score`` as in train."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from longwave.training import progress

    about = HydraConfig.get()
    if about.mode == RunMode.MULTIRUN and not about.launcher._target_.endswith("BasicLauncher"):
        # Several bars on one terminal write over each other.
        progress.plain = True
    try:
        with configuration.in_one_line(about.overrides.task):
            config = configuration.resolve(cfg, about.runtime.choices)
        recipe = configuration.recipe_of(about.runtime.choices)
        log.info(command_line.choice_of(config, recipe, about.overrides.task))
        return train(config, recipe, command_of(about.overrides.task), on_score)
    except UserError as error:
        if about.mode == RunMode.MULTIRUN:
            log.error("job %s failed: %s", about.job.num, error)
            raise
        # Not an Exception: Hydra lets it pass without a line of its own.
        sys.exit(f"error: {error}")


def train(config: configuration.Config, recipe: str | None, command: str, on_score: Callable | None = None) -> float:
    """Runs, resumes or reports one run; gives its objective.

    Args:
        config: checked.
        recipe: name of the recipe it was composed from, or None.
        command: what to type to run it again.
        on_score: called with the run, the task, the step and the metric on the monitored split at every evaluation.

    Raises:
        UserError: for what a user can fix.
    """
    from longwave.results import published
    from longwave.results.tables import verdict_of
    from longwave.training import environment, memory
    from longwave.training.build import build, compare_data
    from longwave.training.loop import Signals, Trainer
    from longwave.training.record import FINISHED
    from longwave.training.report import report
    from longwave.training.run import Run
    from longwave.training.tracking import track

    try:
        target = published.lookup(config.published)
    except ValueError as error:
        raise UserError(str(error)) from error
    changed = {}
    if recipe is not None:
        whole, following = configuration.compose_recipe(recipe, config)
        changed = configuration.changed_from_recipe(config, whole, following)
    run = Run(config, command, recipe=recipe, changed=changed, published=target)
    earlier = None if config.fresh else run.earlier()
    if earlier is not None and earlier.status == FINISHED:
        compare_data(config, earlier)
        log.info("%s is finished already; fresh=true runs it again", run.name)
        return report(earlier, run.folder)
    device = environment.pick_device(config.device)
    environment.set_up_process(config.threads)
    with memory.in_one_line():
        task, model = build(config, device)
    run.describe(task, model, device, steps_in_recipe=whole.training.total_steps(task) if recipe else None)
    with run, memory.in_one_line():
        signals = run.enter(Signals())
        environment.reset_peak_memory()
        trainer = Trainer(config, task, model, device, run, signals)
        if on_score is not None:
            trainer.on_score = lambda step, value: on_score(run, task, step, value)
        trainer.restore()
        trainer.tracker = run.enter(track(run, task, verdict_of))
        trainer.announce()
        run.finish(trainer.fit())
    return report(run.record, run.folder)


if __name__ == "__main__":
    with entry.in_one_line():
        main()
