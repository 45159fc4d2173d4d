"""The typed configuration of a run: its schemas, its checks, and its errors in one line.

Schemas are found, not listed: every ``Config`` in ``models/*.py``, ``tasks/*.py`` and ``tasks/transforms/*.py`` is
registered under the name of its file, as ``schema/model/<file>``, ``schema/task/<file>`` and
``schema/transform/<file>``, for ``conf/model/*.yaml``, ``conf/task/*.yaml`` and ``conf/transform/*.yaml``.
"""

import contextlib
import copy
import dataclasses
import functools
import gc
import hashlib
import importlib
import inspect
import json
import os
import pkgutil
import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException, MissingConfigException
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException

from longwave import CONF, home, models, tasks
from longwave.schema import LATER, NEUTRAL, REPEAT, Annotated, Ge, Le, Lt, OneOf, Section, marked, one_line
from longwave.tasks import transforms
from longwave.training.budget import Diagnostics, Training
from longwave.training.curriculum import Curriculum
from longwave.training.errors import UserError
from longwave.training.optimizers import Optimizer, Scheduler
from longwave.training.overrides import check, choices, no_choice, unknown_key
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
        transform: transform of the task's inputs; None is none.
        seed: seed of all random numbers.
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
        if dataclasses.is_dataclass(self.model):
            self.model.check(self.transform)
            _check_times(self.model.spacing, self.task, self.transform)

    def as_dict(self) -> dict:
        """All keys; a curriculum that is none is None, as a transform is."""
        values = dataclasses.asdict(self)
        return values if self.curriculum.name != "none" else values | {"curriculum": None}

    def identity(self, with_seed: bool = True) -> str:
        """Hash of every setting that can change a number; it names the run, or without seed and fold its group."""
        kept = numbers(self.as_dict()) if with_seed else experiment(self.as_dict())
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]


def _check_times(spacing: float | None, task: Any, transform: Any) -> None:
    """Raises ValueError unless what a model with a ``spacing`` takes for the time is the time."""
    if spacing is None:
        return
    if transform is not None:
        raise ValueError(f"model.spacing={spacing}: needs the time of each sample; use transform=none")
    if not task.time:
        raise ValueError(f"model.spacing={spacing}: needs the time of each sample; use a task with task.time=true")


def numbers(config: dict) -> dict:
    """The settings of a configuration, as ``Config.as_dict`` gives them, that can change a number of the run.

    Left out are those marked NEUTRAL, sections that are None (an older record has no curriculum), and those marked
    LATER that have their default. Of the run that training starts from, the content of its weights counts.
    """
    found = _numbers(config)
    for section, value in found.items():
        later = _later(section) if isinstance(value, dict) else {}
        if later:
            found[section] = {k: v for k, v in value.items() if k not in later or v != later[k]}
    return found


def _numbers(config: dict) -> dict:
    """:func:`numbers` with the settings marked LATER."""
    found = {}
    for section, value in config.items():
        if section in marked(Config, NEUTRAL) or value is None:
            continue
        neutral = _marked(section, NEUTRAL) if isinstance(value, dict) else ()
        found[section] = {k: v for k, v in value.items() if k not in neutral} if neutral else value
    start = (found.get("training") or {}).get("start_from")
    if start is not None:
        found["training"] = found["training"] | {"start_from": start.rpartition("@")[2]}
    return found


def experiment(config: dict) -> dict:
    """The :func:`numbers` that repetitions of a run share: all but the seed, and the fold where the task has folds."""
    found = {section: value for section, value in numbers(config).items() if section != "seed"}
    repeated = _marked("task", REPEAT)
    return found | {"task": {key: value for key, value in found["task"].items() if key not in repeated}}


@functools.cache
def _marked(section: str, mark: str) -> frozenset[str]:
    """The keys of a section that have a mark in any of its schemas."""
    return frozenset().union(*(marked(schema, mark) for _, schema in schemas(section)))


@functools.cache
def _later(section: str) -> dict[str, Any]:
    """The keys of a section that are marked LATER in any of its schemas, with their defaults."""
    found = {}
    for _, schema in schemas(section):
        defaults = {field.name: field.default for field in dataclasses.fields(schema)}
        found |= {key: defaults[key] for key in marked(schema, LATER)}
    return found


def schemas(group: str) -> list[tuple[str, type]]:
    """Name and dataclass of every schema of a group."""
    if group in SECTIONS:
        return [(group, SECTIONS[group])]
    package = PACKAGES[group]
    modules = [importlib.import_module(m.name) for m in pkgutil.iter_modules(package.__path__, package.__name__ + ".")]
    return [(module.__name__.rpartition(".")[2], module.Config) for module in modules if hasattr(module, "Config")]


@functools.cache
def register() -> None:
    """Register the schemas of models and tasks, once a configuration has to be composed: they import torch."""
    store = ConfigStore.instance()
    store.store(group="schema", name="train", node=Config)
    store.store(group="schema", name="training", node=Training)
    store.store(group="schema", name="tracking", node=Tracking)
    # torch's modules are a million objects, which every collection would look at: some 0.2 s here and in each job.
    gc.disable()
    for group in PACKAGES:
        for name, schema in schemas(group):
            store.store(group=f"schema/{group}", name=name, node=schema)
    gc.freeze()
    gc.enable()


def about(overrides: list[str]) -> str:
    """The docstrings of the schemas of all groups that are chosen."""
    texts = []
    for override in overrides:
        group, _, name = override.partition("=")
        if group not in (*PACKAGES, *SECTIONS) or name not in choices(group) or name == "none":
            continue
        schema = SECTIONS.get(group)
        if schema is None:
            schema = _schema_of(group, name)
        text = inspect.getdoc(schema).replace("Args:", f"Keys, as {group}.<key>=<value>:")
        texts.append("\n" + textwrap.indent(f"{override}: {text}", "  "))
    return "\n".join(texts)


def _schema_of(group: str, name: str) -> type:
    file = OmegaConf.load(CONF / group / f"{name}.yaml").defaults[0].rsplit("/")[-1].removesuffix("@_here_")
    return dict(schemas(group))[file]


def restore(values: dict) -> Config:
    """The configuration of a record; settings that are newer than it have their defaults.

    Raises:
        UserError: for a choice or a setting that no longer exists.
    """
    kinds = SECTIONS | {"data": Data, "diagnostics": Diagnostics}
    found = {}
    try:
        for key, value in values.items():
            if isinstance(value, dict):
                kind = _schema_of(key, value["name"]) if key in PACKAGES else kinds[key]
                found[key] = kind(**value)
            # An older record has no curriculum, or None.
            elif value is not None or key not in SECTIONS:
                found[key] = value
        return Config(**found)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"the run was made by another version of the code: {one_line(str(error), 150)}") from error


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
    if config.training.start_from is not None:
        from longwave.training import weights

        config.training.start_from = weights.pinned(config.training.start_from, config.output)
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
    """The settings of a run that can change its numbers and differ from its recipe's, ``{"task.T": 500}``.

    Args:
        recipe: the run of the recipe as it is; see :func:`compose_recipe`.
        interpolated: settings that follow others, ``{"training.steps": "${task.T}"}``: they are compared with what
            they would be in ``config``.
    """
    own, theirs = _numbers(config.as_dict()), _numbers(recipe.as_dict())
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
    target = OmegaConf.to_container(OmegaConf.load(CONF / "recipe" / f"{name}.yaml")).get("published") or ""
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


def compose_run(overrides: list[str]) -> tuple[Config, str | None]:
    """The checked configuration that a list of overrides makes, and the name of its recipe or None.

    Raises:
        UserError: see :func:`resolve`.
    """
    for text in overrides:
        check(text, keys_of_a_run())
    _check_recipe(dict(text.split("=", 1) for text in overrides))
    with in_one_line(overrides):
        cfg, chosen = _compose("train", overrides)
        return resolve(cfg, chosen), recipe_of(chosen)


def compose_object(name: str, overrides: list[str]) -> Any:
    """The checked object that the primary config ``name`` makes with a list of overrides.

    Raises:
        UserError: see :func:`resolve`.
    """
    with in_one_line(overrides):
        return _to_object(_compose(name, overrides)[0], "")


def _compose(name: str, overrides: list[str]) -> tuple[DictConfig, dict[str, str | None]]:
    choices, settings = [], []
    for override in OverridesParser.create().parse_overrides(overrides):
        # Hydra's own settings end with its part, and it refuses several values at once.
        hydras = re.match(r"hydra\b", override.key_or_group) or override.is_sweep_override()
        group = hydras or override.type != OverrideType.CHANGE or os.path.isdir(CONF / override.key_or_group)
        (choices if group else settings).append(override)
    cfg, chosen = copy.deepcopy(_choose(CONF, name, *(override.input_line for override in choices)))
    try:
        for override in settings:
            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException:
        # Hydra says what is wrong.
        return copy.deepcopy(_choose(CONF, name, *overrides))
    return cfg, chosen


@functools.cache
def _choose(conf: Path, name: str, *choices: str) -> tuple[DictConfig, dict[str, str | None]]:
    """The primary config ``name`` with these choices of groups; kept, as Hydra takes 0.1 s and runs share choices."""
    register()
    # Inside a job Hydra is initialised already, on the same folder.
    ready = GlobalHydra.instance().is_initialized()
    with contextlib.nullcontext() if ready else initialize_config_dir(str(conf), version_base="1.3"):
        cfg = compose(name, list(choices), return_hydra_config=True)
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
        raise UserError(no_choice("recipe", name, choices("recipe")))
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
    except OmegaConfBaseException:
        raise
    except ValueError as error:
        raise UserError(f"{prefix}{error}") from error


def keys_of_a_run() -> list[str]:
    """The first parts of all keys of ``train.py``, and the groups."""
    fields = [field.name for field in dataclasses.fields(Config)]
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    return fields + sorted(groups.difference(fields, NOT_OF_A_RUN))


_TYPES = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}


@contextlib.contextmanager
def in_one_line(overrides: list[str]):
    """Hydra's and OmegaConf's errors as one line that names the key, the value and what is allowed."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as error:
        raise UserError(_one_line(error, overrides)) from error


def _related(key: str, other: str) -> bool:
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _one_line(error: Exception, overrides: list[str]) -> str:
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return no_choice(group, name, error.options)
    cause = error
    while cause is not None and not getattr(cause, "full_key", None):
        cause = cause.__cause__ or cause.__context__
    key = str(getattr(cause, "full_key", ""))
    # The setting itself, or one beside or inside it.
    mine = [text for text in overrides if key and _related(key, text.partition("=")[0])]
    following = [text for text in overrides if "${" in text]
    message = " ".join(str(cause or error).split())
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        where = re.match(r"In '(recipe/[^']+)'", str(error))
        known = [str(key) for key in cause.parent_node or () if key != "hydra"]
        return unknown_key(key, str(cause.key), known) + (f" (set in {where[1]})" if where else "")
    if following and (isinstance(cause, InterpolationResolutionError) or not mine):
        missing = re.search(r"Interpolation key '([^']*)' not found", message)
        reason = f"there is no {missing[1]}" if missing else "it follows itself, or what it follows is no such value"
        return f"{one_line((mine or following)[0])}: cannot be resolved: {one_line(reason)}"
    expected = re.search(r"Value '(.*?)' (?:of type .* could not be converted to|is not a valid) (\w+)", message)
    if expected:
        return f"{key}={one_line(expected[1])}: must be {_TYPES.get(expected[2], expected[2])}"
    found = re.match(r"(?:In ')?([^':]+)'?: (?:Could not override '(\w+)'|.*\(override (\w+)=)", message)
    if found:
        group = found[2] or found[3]
        return f"conf/{found[1]}.yaml: cannot choose another {group}; set its keys there ({group}.name, ...)"
    if mine or overrides:
        return f"{one_line((mine or overrides)[0])}: no such value"
    return one_line(message, 250)


OmegaConf.register_new_resolver("choices", lambda group: ", ".join(choices(group)), replace=True)
OmegaConf.register_new_resolver("about", about, replace=True)
OmegaConf.register_new_resolver("home", lambda path: str(home() / Path(path).expanduser()), replace=True)
