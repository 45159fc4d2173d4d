"""The command line of a run: its flags and overrides, checked before Hydra reads them.

What is wrong ends in one line that names the key, the value and what is allowed, whatever was typed.
"""

import argparse
import itertools
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import OmegaConf

from longwave import CONF, PACKAGE
from longwave.schema import one_line
from longwave.training.config import Config, compose_run, keys_of_a_run, recipe_overrides
from longwave.training.errors import UserError
from longwave.training.overrides import MOST_RUNS, alternatives, check, check_count, choices


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown:
            flags = [action.option_strings[0] for action in self._actions if action.option_strings]
            raise UserError(f"{one_line(unknown[1])}: no such flag; there are {', '.join(flags)}")
        raise UserError(one_line(message.removeprefix("argument ")))


def flags(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of a command line, in ``overrides`` the rest, and whether it asks for what is ``shown_by_hydra``.

    Raises:
        UserError: for a flag that does not exist or lacks its value.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd")
    # Hydra answers these itself.
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=["all", "config", "defaults", "plugins"])
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    parser.add_argument("overrides", nargs="*")
    found = parser.parse_intermixed_args(arguments)
    found.shown_by_hydra = bool(found.cfg or found.info or found.hydra_help or found.shell_completion)
    if found.config_dir is not None and not os.path.isdir(found.config_dir):
        raise UserError(f"--config-dir={one_line(found.config_dir)}: no such folder")
    return found


@dataclass
class Command:
    """A command line of train.py.

    Args:
        arguments: for Hydra, flags in front: it takes no overrides on both sides of a flag.
        overrides: those among them.
        configs: of a multirun's, where no sweeper decides.
        config: of its one run; None where Hydra has to do something else: several runs, ...
        recipe: of that run.
        help: what to show instead, where that is asked for.
    """

    arguments: list[str]
    overrides: list[str]
    configs: list[Config] = field(default_factory=list)
    config: Config | None = None
    recipe: str | None = None
    help: str | None = None


def parse(arguments: Sequence[str]) -> Command:
    """Compose and check every run that a command line asks for, before anything is created.

    Sweeps over lists and ranges are expanded; the spaces of a sweeper of its own (``interval(...)``) are left to it.

    Raises:
        UserError: for the first thing that is wrong.
    """
    given = flags(arguments)
    overrides = _complete(given.overrides)
    parsed = [check(text, keys_of_a_run()) for text in overrides]
    command = Command([text for text in arguments if text not in given.overrides] + overrides, overrides)
    if given.help:
        command.help = help_of("longwave", overrides)
        return command
    sweeps = [override for override in parsed if override.is_sweep_override()]
    if sweeps and not given.multirun:
        raise UserError(f"{one_line(sweeps[0].input_line)}: several values make several runs; add -m")
    values = {override.key_or_group: list(alternatives(override)) for override in parsed}
    # Of each key, no more values than that are expanded.
    count = math.prod(max(1, len(texts)) for texts in values.values())
    check_count(count, f"more than {MOST_RUNS} runs", "values")
    if given.config_dir is not None:
        values["hydra.searchpath"] = [f"hydra.searchpath=[file://{Path(given.config_dir).absolute()}]"]
    # Seeds that are numbers differ in nothing else: one of them is checked.
    seeds = values.get("seed", [])
    values["seed"] = [text for text in seeds if not re.fullmatch(r"seed=\d{1,18}", text)] or seeds[:1]
    runs = [compose_run(list(job)) for job in itertools.product(*(texts for texts in values.values() if texts))]
    if given.multirun and not given.shown_by_hydra and all(override.is_discrete_sweep() for override in sweeps):
        numbers = [int(text.partition("=")[2]) for text in seeds if text not in values["seed"]]
        configs = [config for config, _ in runs]
        command.configs = configs + [replace(config, seed=number) for config in configs for number in numbers]
    if command.arguments == overrides and not sweeps and not any(o.key_or_group.startswith("hydra") for o in parsed):
        ((command.config, command.recipe),) = runs
    return command


def names_a_run(overrides: Sequence[str]) -> bool:
    """True if a model, a task or a recipe is among the overrides."""
    return any(text.partition("=")[0] in ("model", "task", "recipe") for text in overrides)


def choice_of(config: Config, recipe: str | None, overrides: Sequence[str]) -> str:
    """The line that names a run's model, task and recipe, and which of them are defaults."""
    given = {text.partition("=")[0] for text in overrides}
    # A variant of a recipe chooses model and task.
    own = {"model", "task"} if "recipe" in given and recipe is not None else set()
    default = [group for group in ("model", "task") if group not in given | own]
    line = f"model={config.model.name} task={config.task.name} recipe={recipe or 'none'}"
    return line + (f" ({' and '.join(default)} by default)" if default else "")


def _complete(overrides: list[str]) -> list[str]:
    """Add model and task where only a recipe is named that follows from them, as in ``recipe=cornn/psmnist``."""
    given = dict(text.split("=", 1) for text in overrides if "=" in text)
    name = given.get("recipe")
    if name in choices("recipe") and name != "none" and not {"model", "task"} & given.keys():
        return [text for text in recipe_overrides(name) if not text.startswith("recipe=")] + overrides
    return overrides


def help_of(name: str, overrides: list[str]) -> str:
    """A page of ``conf/hydra/help``. Hydra's own ``--help`` composes first and lists all groups: seconds."""
    page = OmegaConf.load(CONF / "hydra" / "help" / f"{name}.yaml")
    return OmegaConf.merge(page, {"hydra": {"overrides": {"task": overrides}}}).template


def refuse_other_checkout(script: str) -> None:
    """Raise UserError if ``train.py`` or ``sweep.py`` would run the code of another checkout than its own."""
    here = Path(script).resolve().parent
    if here != PACKAGE:
        raise UserError(f"this environment has longwave from {PACKAGE}: run `make setup` in {here}, and use its .venv")
