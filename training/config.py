"""The typed configuration of a run: its schemas, its checks, and its errors in one line.

Schemas are found, not listed: every ``Config`` in ``models/*.py``, ``tasks/*.py`` and ``tasks/transforms/*.py`` is
registered under the name of its file, as ``schema/model/<file>``, ``schema/task/<file>`` and
``schema/transform/<file>``, for ``conf/model/*.yaml``, ``conf/task/*.yaml`` and ``conf/transform/*.yaml``.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib
import inspect
import itertools
import json
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

from longwave import CONF, PACKAGE, home, models, tasks
from longwave.models.network import ModelConfig
from longwave.schema import NEUTRAL, Annotated, Ge, Le, Lt, OneOf, Section, marked
from longwave.tasks import transforms
from longwave.training.budget import Training
from longwave.training.curriculum import Curriculum
from longwave.training.diagnostics import Diagnostics
from longwave.training.errors import UserError
from longwave.training.optimizers import Optimizer, Scheduler
from longwave.training.tracking import Tracking

# Groups with a schema for each choice, and the package where those are.
PACKAGES = {"model": models, "task": tasks, "transform": transforms}

# Groups with one schema for all choices.
SECTIONS = {
    "training": Training,
    "optimizer": Optimizer,
    "scheduler": Scheduler,
    "curriculum": Curriculum,
    "tracking": Tracking,
}

# Folders of conf/ that hold no choices of a run.
NOT_OF_A_RUN = ("hydra", "table", "search", "wandb")


@dataclass
class Data(Section):
    """Where data sets live.

    Args:
        root: a folder, relative to :func:`longwave.home`; null is the environment's ``LONGWAVE_DATA``, else ``data``.
    """

    root: str | None = None


@dataclass
class Config(Section):
    """One run.

    Args:
        transform: of the inputs of the task; None is none.
        seed: of everything that is random.
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
    tracking: Annotated[Any, NEUTRAL] = MISSING
    optimizer: Optimizer = field(default_factory=Optimizer)
    scheduler: Scheduler = field(default_factory=Scheduler)
    curriculum: Curriculum = field(default_factory=Curriculum)
    diagnostics: Annotated[Diagnostics, NEUTRAL] = field(default_factory=Diagnostics)
    data: Annotated[Data, NEUTRAL] = field(default_factory=Data)
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    published: Annotated[str | None, NEUTRAL] = None
    output: Annotated[str, NEUTRAL] = "outputs"
    device: Annotated[str, OneOf("auto", "cpu", "cuda", "mps"), NEUTRAL] = "auto"
    threads: Annotated[int | None, Ge(1), Le(4096), NEUTRAL] = None
    fresh: Annotated[bool, NEUTRAL] = False

    def __post_init__(self):
        super().__post_init__()
        if not self.output:
            raise ValueError("output='': must be a folder")
        # A model may depend on the transform of its inputs.
        if isinstance(self.model, ModelConfig):
            self.model.check(self.transform)

    def as_dict(self) -> dict:
        """All keys; a curriculum that is none is None, as a transform is."""
        values = dataclasses.asdict(self)
        return values if self.curriculum.name != "none" else values | {"curriculum": None}

    def identity(self, with_seed: bool = True) -> str:
        """Hash of every setting that can change a number; it names the run, or without the seed its group."""
        kept = numbers(self.as_dict())
        if not with_seed:
            kept.pop("seed")
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]


def numbers(config: dict) -> dict:
    """The settings of a configuration, as ``Config.as_dict`` gives them, that can change a number of the run.

    Left out are those marked NEUTRAL, and sections that are None: an older record has no curriculum.
    """
    found = {}
    for section, value in config.items():
        if section in marked(Config, NEUTRAL) or value is None:
            continue
        neutral = _neutral(section) if isinstance(value, dict) else ()
        found[section] = {k: v for k, v in value.items() if k not in neutral} if neutral else value
    return found


@functools.cache
def _neutral(section: str) -> frozenset[str]:
    """The keys of a section that are marked NEUTRAL in any of its schemas."""
    return frozenset().union(*(marked(schema, NEUTRAL) for _, schema in schemas(section)))


def schemas(group: str) -> list[tuple[str, type]]:
    """Name and dataclass of every schema of a group."""
    if group in SECTIONS:
        return [(group, SECTIONS[group])]
    package = PACKAGES[group]
    modules = [importlib.import_module(m.name) for m in pkgutil.iter_modules(package.__path__, package.__name__ + ".")]
    return [(module.__name__.rpartition(".")[2], module.Config) for module in modules if hasattr(module, "Config")]


def register() -> None:
    """Puts the schemas and the resolvers of conf/ into place; called once, at import."""
    store = ConfigStore.instance()
    store.store(group="schema", name="train", node=Config)
    store.store(group="schema", name="training", node=Training)
    store.store(group="schema", name="tracking", node=Tracking)
    for group in PACKAGES:
        for name, schema in schemas(group):
            store.store(group=f"schema/{group}", name=name, node=schema)
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
            schema = dict(schemas(group))[file]
        text = inspect.getdoc(schema).replace("Args:", f"Keys, as {group}.<key>=<value>:")
        texts.append("\n" + textwrap.indent(f"{override}: {text}", "  "))
    return "\n".join(texts)


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
    """Overrides that select a recipe by name alone: a variant chooses model and task, another follows from them."""
    model, _, cell = name.partition("/")
    own = _groups(CONF / "recipe" / f"{name}.yaml")
    return [f"recipe={name}"] if own else [f"model={model}", f"task={cell}"]


def changed_from_recipe(config: Config, recipe: Config, interpolated: dict[str, str]) -> dict[str, Any]:
    """The settings of a run that can change its numbers and are not as its recipe has them, ``{"task.T": 500}``.

    Args:
        recipe: the run of the recipe as it is; see :func:`compose_recipe`.
        interpolated: settings that follow others, ``{"training.steps": "${task.T}"}``: they are compared with what
            they would be in ``config``.
    """
    own, theirs = numbers(config.as_dict()), numbers(recipe.as_dict())
    # A curriculum where the recipe has none is named by what is not as the group has it.
    theirs.setdefault("curriculum", dataclasses.asdict(Curriculum()))
    for name, text in interpolated.items():
        section, _, key = name.partition(".")
        theirs[section][key] = OmegaConf.create(own | {"followed": text}).followed
    found = {}
    for section, settings in theirs.items():
        if section not in own:
            found |= {section: "none"} if settings.get("name", "none") != "none" else {}
    for section, settings in own.items():
        if isinstance(settings, dict):
            before = theirs.get(section, {})
            found |= {f"{section}.{key}": value for key, value in settings.items() if value != before.get(key)}
    return found


def compose_recipe(name: str, config: Config) -> tuple[Config, dict[str, str]]:
    """The run of a recipe as it is, and its settings that follow others, by key.

    A recipe of a whole table names its published value by some of its settings, ``..._step${transform.step}``: those
    choose the cell, and are as in ``config``.
    """
    own = config.as_dict()
    target = OmegaConf.to_container(OmegaConf.load(CONF / "recipe" / f"{name}.yaml"))["published"] or ""
    cell = [key.split(".") for key in re.findall(r"\$\{([\w.]+)\}", target)]
    same = [f"{section}.{key}={own[section][key]}" for section, key in cell]
    return _compose_recipe(*recipe_overrides(name), *same)


@functools.cache
def _compose_recipe(*overrides: str) -> tuple[Config, dict[str, str]]:
    # Cached: the seeds of a sweep have one recipe.
    cfg, chosen = _compose("train", list(overrides))
    interpolated = {
        f"{section}.{key}": value
        for section, text in OmegaConf.to_container(cfg, resolve=False).items()
        for key, value in (text.items() if isinstance(text, dict) else ())
        if OmegaConf.is_interpolation(cfg[section], key)
    }
    return resolve(cfg, chosen), interpolated


@dataclass
class Command:
    """A command line of train.py.

    Args:
        arguments: for Hydra, flags in front: it takes no overrides on both sides of a flag.
        overrides: those among them.
        config: of its one run; None where Hydra has to do something else: several runs, ...
        recipe: of that run.
        help: what to show instead, where that is asked for.
    """

    arguments: list[str]
    overrides: list[str]
    config: Config | None = None
    recipe: str | None = None
    help: str | None = None


def parse(arguments: list[str]) -> Command:
    """Composes and checks every run that a command line asks for, before anything is created.

    Sweeps over lists and ranges are expanded; the spaces of a sweeper of its own (``interval(...)``) are left to it.

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
    flags = [text for text in arguments if text not in parsed.overrides]
    command = Command(flags + overrides, overrides)
    if parsed.help:
        # A model and a task alone need no budget.
        for group, name in (text.split("=", 1) for text in overrides if "=" in text):
            if (CONF / group).is_dir() and name not in choices(group):
                raise UserError(_no_choice(group, name, choices(group)))
        command.help = help_of("train", overrides)
        return command
    runs = [compose_run(list(job)) for job in itertools.product(*alternatives)]
    if not flags and not any(text.lstrip("+~").startswith("hydra") for text in overrides):
        ((command.config, command.recipe),) = runs
    return command


def refuse_other_checkout(script: str) -> None:
    """Raises UserError if ``train.py`` or ``sweep.py`` would run the code of another checkout than its own."""
    here = Path(script).resolve().parent
    if here != PACKAGE:
        raise UserError(f"this environment has longwave from {PACKAGE}: run `make setup` in {here}, and use its .venv")


def help_of(name: str, overrides: list[str]) -> str:
    """The help of the primary config ``name``. Hydra's own ``--help`` first lists all groups, which takes seconds."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides, return_hydra_config=True).hydra.help.template


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
            f"omit recipe, and it follows from model and task"
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
