"""The typed configuration of a run: its schemas, its checks, and its errors in one line.

Schemas are found, not listed: every ``Config`` in ``models/*.py``, ``tasks/*.py`` and ``tasks/transforms/*.py`` is
registered under the name of its file, as ``schema/model/<file>``, ``schema/task/<file>`` and
``schema/transform/<file>``, for ``conf/model/*.yaml``, ``conf/task/*.yaml`` and ``conf/transform/*.yaml``.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import inspect
import itertools
import json
import math
import pkgutil
import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from longwave import CONF, home, models, tasks
from longwave.tasks import transforms
from longwave.training.curriculum import Curriculum
from longwave.training.diagnostics import Diagnostics
from longwave.training.errors import UserError
from longwave.training.loop import Training
from longwave.training.optimizers import Optimizer, Scheduler
from longwave.training.tracking import Tracking

DEVICES = ("auto", "cpu", "cuda", "mps")

# Where the schemas of a group are.
PACKAGES = {"model": models, "task": tasks, "transform": transforms}

# Groups with one schema for all choices.
SECTIONS = {"optimizer": Optimizer, "scheduler": Scheduler, "curriculum": Curriculum}

# What cannot change the numbers of a run, up to rounding, and therefore is no part of its identity.
NOT_IDENTITY = ("published", "output", "device", "threads", "fresh", "data", "tracking", "diagnostics")

# Folders of conf/ that hold no choices of a run.
NOT_OF_A_RUN = ("hydra", "table", "search", "wandb")


@dataclass
class Data:
    """Where data sets live.

    Args:
        root: a folder, relative to :func:`longwave.home`; null is the environment's ``LONGWAVE_DATA``, else ``data``.
    """

    root: str | None = None


@dataclass
class Config:
    """One run.

    Args:
        transform: of the inputs of the task; None is none.
        seed: of everything that is random; 0 or more.
        published: key of the published value that the run aims at, ``<paper>/<cell>``, as in ``results/published``.
        output: folder of all runs, relative to :func:`longwave.home`.
        device: auto (cuda, else mps, else cpu), cpu, cuda or mps.
        threads: CPU threads; null is torch's default.
        fresh: start over where the run has already been started or finished. The old folder is kept beside the new.
    """

    model: Any = MISSING
    task: Any = MISSING
    transform: Any = None
    training: Any = MISSING
    tracking: Any = MISSING
    optimizer: Optimizer = field(default_factory=Optimizer)
    scheduler: Scheduler = field(default_factory=Scheduler)
    curriculum: Curriculum = field(default_factory=Curriculum)
    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    data: Data = field(default_factory=Data)
    seed: int = 0
    published: str | None = None
    output: str = "outputs"
    device: str = "auto"
    threads: int | None = None
    fresh: bool = False

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must be 0 or more")
        if self.device not in DEVICES:
            raise ValueError(f"device={self.device}: must be one of {', '.join(DEVICES)}")
        if not self.output:
            raise ValueError("output='': must be a folder")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads={self.threads}: must be 1 or more")
        # A model may depend on the transform of its inputs.
        if hasattr(self.model, "check"):
            self.model.check(self.transform)

    def as_dict(self) -> dict:
        """All keys; a curriculum that is none is None, as a transform is."""
        values = dataclasses.asdict(self)
        return values if self.curriculum.name != "none" else values | {"curriculum": None}

    def identity(self, with_seed: bool = True) -> str:
        """The hash that names a run: of every key that can change its numbers. Without the seed, it names a group."""
        kept = {key: value for key, value in self.as_dict().items() if key not in NOT_IDENTITY and value is not None}
        kept["training"].pop("checkpoint_seconds")
        if self.transform is not None:
            kept["transform"].pop("backend", None)
        if not with_seed:
            kept.pop("seed")
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]


def register() -> None:
    """Puts the schemas and the resolvers of conf/ into place; called once, at import."""
    store = ConfigStore.instance()
    store.store(group="schema", name="train", node=Config)
    store.store(group="schema", name="training", node=Training)
    store.store(group="schema", name="tracking", node=Tracking)
    for kind, package in PACKAGES.items():
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            schema = getattr(importlib.import_module(module.name), "Config", None)
            if schema is not None:
                store.store(group=f"schema/{kind}", name=module.name.rsplit(".", 1)[1], node=schema)
    OmegaConf.register_new_resolver("choices", lambda group: ", ".join(choices(group)), replace=True)
    OmegaConf.register_new_resolver("about", about, replace=True)
    OmegaConf.register_new_resolver("home", lambda path: str(home() / Path(path).expanduser()), replace=True)


def choices(group: str) -> list[str]:
    """The files of a group in conf/, without their suffix."""
    folder = CONF / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def about(overrides: list[str]) -> str:
    """The docstrings of the schemas of all groups that are chosen."""
    texts = []
    for override in overrides:
        group, _, name = override.partition("=")
        if group not in (*PACKAGES, *SECTIONS) or name not in choices(group) or name == "none":
            continue
        schema = SECTIONS.get(group)
        if schema is None:
            file = OmegaConf.load(CONF / group / f"{name}.yaml").defaults[0].rsplit("/")[-1].removesuffix("@_here_")
            schema = importlib.import_module(f"{PACKAGES[group].__name__}.{file}").Config
        text = inspect.getdoc(schema).replace("Args:", f"Keys, as {group}.<key>=<value>:")
        texts.append("\n" + textwrap.indent(f"{override}: {text}", "  "))
    # The whole is a template, to Hydra.
    return "\n".join(texts).replace("$", "$$")


def resolve(cfg: DictConfig, chosen: dict[str, str | None]) -> Config:
    """The composed ``cfg`` as checked dataclasses.

    Args:
        chosen: the choice made in each group, as in ``HydraConfig.get().runtime.choices``.

    Raises:
        UserError: for an unknown key or a value out of range; one line that names the key and what is allowed.
    """
    _refuse_unknown(cfg, "")
    for section in [key for key in cfg if OmegaConf.is_dict(cfg[key])]:
        _to_object(cfg[section], f"{section}.")
    config = _to_object(cfg, "")
    _refuse_infinite(config.as_dict(), "")
    for group in ("model", "task", "transform", "tracking"):
        name = getattr(getattr(config, group), "name", "none")
        if name != chosen[group]:
            raise UserError(f"{group}.name={name}: is fixed; choose with {group}={' | '.join(choices(group))}")
    return config


def recipe_of(chosen: dict[str, str | None]) -> str | None:
    """The recipe that was composed, such as ``cornn/psmnist``, or None where there is none for this model and task."""
    name = chosen.get("recipe")
    return name if name != "none" and name in choices("recipe") else None


def recipe_overrides(name: str) -> list[str]:
    """What selects a recipe by name alone: a variant chooses model and task itself, another follows from them."""
    model, _, cell = name.partition("/")
    own = _groups(CONF / "recipe" / f"{name}.yaml")
    return [f"recipe={name}"] if own else [f"model={model}", f"task={cell}"]


def changed_from_recipe(config: Config, name: str) -> dict[str, Any]:
    """The settings of a run that are not as its recipe has them, ``{"task.T": 500}``; not how often it is looked at.

    A recipe of a whole table names its published value by some of its settings, ``..._step${transform.step}``: those
    choose the cell, and are not changed. Nor is what follows another setting as the recipe says, ``steps: ${task.T}``.
    """
    own = config.as_dict()
    target = OmegaConf.to_container(OmegaConf.load(CONF / "recipe" / f"{name}.yaml"))["published"] or ""
    cell = [key.split(".") for key in re.findall(r"\$\{([\w.]+)\}", target)]
    same = [f"{section}.{key}={own[section][key]}" for section, key in cell]
    cfg, chosen = _compose("train", [*recipe_overrides(name), *same])
    recipe = resolve(cfg, chosen).as_dict()
    for section, text in OmegaConf.to_container(cfg, resolve=False).items():
        for key, value in text.items() if isinstance(text, dict) else ():
            if OmegaConf.is_interpolation(cfg[section], key):
                recipe[section][key] = OmegaConf.create(own | {"followed": value}).followed
    ignored = {"evaluate_every", "log_every", "checkpoint_seconds", "backend"}
    # A curriculum where the recipe has none is named by what is not as the group has it.
    recipe["curriculum"] = recipe["curriculum"] or dataclasses.asdict(Curriculum())
    found = {}
    for section in ("model", "task", "transform", "training", "optimizer", "scheduler", "curriculum"):
        theirs = recipe[section] or {}
        if own[section] is None:
            found |= {section: "none"} if theirs.get("name", "none") != "none" else {}
        else:
            kept = {key: value for key, value in own[section].items() if key not in ignored}
            found |= {f"{section}.{key}": value for key, value in kept.items() if value != theirs.get(key)}
    return found


def check(arguments: list[str]) -> list[str]:
    """Composes and checks every run that a command line asks for, before anything is created.

    Sweeps over lists and ranges are expanded; the spaces of a sweeper of its own (``interval(...)``) are left to it.

    Returns:
        The same arguments with the flags in front: Hydra takes no overrides on both sides of a flag.

    Raises:
        UserError: for the first thing that is wrong.
    """
    parsed = get_args_parser().parse_intermixed_args(arguments)
    overrides = _complete(parsed.overrides)
    alternatives = []
    try:
        for text, override in zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True):
            if not override.is_sweep_override():
                alternatives.append([text])
            elif not parsed.multirun:
                raise UserError(f"{text}: several values make several runs; add -m")
            elif override.is_discrete_sweep():
                alternatives.append([f"{override.get_key_element()}={v}" for v in override.sweep_string_iterator()])
    except OverrideParseException as error:
        raise UserError(f"cannot read '{error.override}': write key=value, a list as [1,2]") from error
    if parsed.config_dir is not None:
        alternatives.append([f"hydra.searchpath=[file://{Path(parsed.config_dir).absolute()}]"])
    if parsed.help:
        # A model and a task alone need no budget.
        for group, name in (text.split("=", 1) for text in overrides if "=" in text):
            if (CONF / group).is_dir() and name not in choices(group):
                raise UserError(_no_choice(group, name, choices(group)))
        alternatives = []
    for job in itertools.product(*alternatives):
        compose_run(list(job))
    return [text for text in arguments if text not in parsed.overrides] + overrides


def _complete(overrides: list[str]) -> list[str]:
    """Adds model and task where only a recipe is named that follows from them, as in ``recipe=cornn/psmnist``."""
    given = dict(text.split("=", 1) for text in overrides if "=" in text)
    name = given.get("recipe")
    if name in choices("recipe") and name != "none" and not {"model", "task"} & given.keys():
        return [text for text in recipe_overrides(name) if not text.startswith("recipe=")] + overrides
    return overrides


def compose_run(overrides: list[str]) -> tuple[Config, str | None]:
    """The checked configuration that a list of overrides makes, and the name of its recipe or None.

    Raises:
        UserError: see :func:`resolve`.
    """
    given = dict(text.split("=", 1) for text in overrides if "=" in text)
    for group, value in given.items():
        # Hydra does not name the group when a choice reads as a number, a boolean or null.
        if (CONF / group).is_dir() and re.fullmatch(r"null|true|false|[\d.]*", value, re.IGNORECASE):
            raise UserError(_no_choice(group, value, choices(group)))
    _check_recipe(given)
    cfg, chosen = _compose("train", overrides)
    return resolve(cfg, chosen), recipe_of(chosen)


def compose_object(name: str, overrides: list[str]) -> Any:
    """The checked object that the primary config ``name`` makes with a list of overrides.

    Raises:
        UserError: see :func:`resolve`.
    """
    return _to_object(_compose(name, overrides)[0], "")


def _compose(name: str, overrides: list[str]) -> tuple[DictConfig, dict[str, str | None]]:
    try:
        # Inside a job Hydra is initialised already, on the same folder.
        ready = GlobalHydra.instance().is_initialized()
        with contextlib.nullcontext() if ready else initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(name, overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(_one_line(error)) from error
    chosen = cfg.hydra.runtime.choices
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, chosen


def _check_recipe(given: dict[str, str]) -> None:
    # Hydra passes over an optional default that does not exist, and a recipe for another model fails far from here.
    name = given.get("recipe", "none")
    if name == "none":
        return
    if name not in choices("recipe"):
        raise UserError(_no_choice("recipe", name, choices("recipe")))
    model, _, cell = name.partition("/")
    chosen = _groups(CONF / "train.yaml") | _groups(CONF / "recipe" / f"{name}.yaml") | given
    if chosen["model"] != model or not f"{cell}_".startswith(f"{chosen['task']}_"):
        raise UserError(
            f"recipe={name}: is not for model={chosen['model']} task={chosen['task']}; "
            f"leave recipe away, and it follows from model and task"
        )


def _groups(path: Path) -> dict[str, str]:
    """The groups that a file's defaults list chooses or overrides."""
    entries = OmegaConf.to_container(OmegaConf.load(path)).get("defaults", [])
    chosen = [item for entry in entries if isinstance(entry, dict) for item in entry.items()]
    return {key.removeprefix("override ").lstrip("/"): value for key, value in chosen}


def _refuse_unknown(node: DictConfig, prefix: str) -> None:
    # Hydra lets +key=value add keys even to a typed section.
    schema = OmegaConf.get_type(node)
    known = [f.name for f in dataclasses.fields(schema)] if dataclasses.is_dataclass(schema) else []
    for key in node:
        if key not in known:
            raise UserError(unknown_key(f"{prefix}{key}", key, known))
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
            _refuse_unknown(node[key], f"{prefix}{key}.")


def _refuse_infinite(values: dict, prefix: str) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _refuse_infinite(value, f"{prefix}{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{prefix}{key}={value}: must be finite")


def _to_object(node: DictConfig, prefix: str) -> Any:
    try:
        return OmegaConf.to_object(node)
    except ValueError as error:
        raise UserError(f"{prefix}{error}") from error
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error)) from error


def keys_of_a_run() -> list[str]:
    """The first parts of all keys of ``train.py``, and the groups."""
    fields = [field.name for field in dataclasses.fields(Config)]
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    return fields + sorted(groups.difference(fields, NOT_OF_A_RUN))


def unknown_key(full_key: str, key: str, known: list[str]) -> str:
    """The line on a key that is not there."""
    if not known:
        group = full_key.partition(".")[0]
        others = [choice for choice in choices(group) if choice != "none"]
        return f"{full_key}: there is no {group}; choose {group}={' | '.join(others)}"
    close = difflib.get_close_matches(key, known, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return f"{full_key}: no such key{meant}; there are {', '.join(known)}"


def _no_choice(group: str, value: str, options: list[str]) -> str:
    return f"{group}={value}: no such choice; there are {', '.join(options)}"


_TYPES = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}


def _one_line(error: Exception) -> str:
    """Hydra's and OmegaConf's message as one line that names the key, the value and what is allowed."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).partition("/")
        if group != "hydra":
            return _no_choice(group, name, choices(group))
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return _no_choice(group, name, error.options)
    cause = error
    while cause is not None and not getattr(cause, "full_key", None):
        cause = cause.__cause__ or cause.__context__
    message = " ".join(str(error).split())
    if cause is None:
        found = re.match(r"Could not override '([^']+)'. No match in the defaults list", message)
        if found:
            return unknown_key(found[1], found[1], keys_of_a_run())
        return message
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        where = re.match(r"In '(recipe/[^']+)'", message)
        known = [str(key) for key in cause.parent_node if key != "hydra"]
        return unknown_key(cause.full_key, str(cause.key), known) + (f" (set in {where[1]})" if where else "")
    expected = re.search(r"Value '(.*?)' (?:of type .* could not be converted to|is not a valid) (\w+)", str(cause))
    if expected:
        return f"{cause.full_key}={expected[1]}: must be {_TYPES.get(expected[2], expected[2])}"
    return f"{cause.full_key}: {' '.join(str(cause).split(chr(10))[0].split())}"


register()
