"""Overrides, ``key=value`` or ``group=choice``, checked before Hydra reads them.

Hydra refuses some with its own messages of several lines, and silently misunderstands others.
"""

import difflib
import itertools
import os
import re
import shutil
import sys
from collections.abc import Iterator

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from longwave import CONF
from longwave.schema import one_line
from longwave.training.errors import UserError

# More can only be a slip, and each is composed before the first starts.
MOST_RUNS = 1000
# Runs that take seconds to check: their number is said first.
MANY = 20
LONGEST = 2000
DEEPEST = 8

# Hydra's own settings that may be set; the others are fixed in conf/, as the folders of runs follow from them.
HYDRA = ("hydra/launcher", "hydra/sweeper", "hydra.searchpath", "hydra.launcher.", "hydra.sweeper.")


def choices(group: str) -> list[str]:
    """The files of a group in conf/, without their suffix."""
    folder = CONF / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def check(text: str, known: list[str]) -> Override:
    """One override, as Hydra parses it.

    Args:
        known: the first parts of all keys, and the groups.

    Raises:
        UserError: for whatever Hydra would refuse with its own message, or accept and misunderstand.
    """
    short = one_line(text)
    if len(text) > LONGEST:
        raise UserError(f"{short}: has {len(text)} characters; at most {LONGEST} are read")
    if not text.isprintable():
        raise UserError(f"{short}: has a line break or another control character")
    depths = itertools.accumulate((c in "[{(") - (c in ")}]") for c in text)
    if max(depths, default=0) > DEEPEST:
        raise UserError(f"{short}: more than {DEEPEST} brackets within each other")
    override = read(text)
    key = override.key_or_group
    root = re.split(r"[./]", key)[0]
    if override.is_delete():
        raise UserError(f"{short}: a setting cannot be removed; write {key}=<another value>")
    if override.package is not None:
        raise UserError(f"{short}: has a package; write {key}=<choice>")
    if root == "hydra":
        if key not in HYDRA[:3] and not key.startswith(HYDRA[3:]):
            offered = f"{', '.join(HYDRA[:3])}, hydra.launcher.<key>, hydra.sweeper.<key>"
            raise UserError(f"{one_line(key)}: is fixed; of Hydra's settings there are {offered}")
        if not isinstance(override.value(), str) and key in HYDRA[:2]:
            raise UserError(f"{short}: must be the name of a {key.partition('/')[2]}")
        if key == HYDRA[0] and override.value() == "submitit_slurm" and shutil.which("sbatch") is None:
            raise UserError(f"{short}: no SLURM here (sbatch not found)")
        return override
    if root not in known:
        raise UserError(unknown_key(one_line(key), root, known))
    index = re.search(r"\.\d+(\.|$)", key)
    if index:
        raise UserError(f"{short}: write the whole list, {one_line(key[: index.start()])}=[...]")
    if override.is_add() or override.is_force_add():
        # Every key is there already; and Hydra leaves out the recipe of a model that is added, without a word.
        raise UserError(f"{short}: write it without +")
    # pathlib raises an error for a name that is too long.
    if os.path.isdir(CONF / key):
        _check_choices(override, key)
    elif not override.is_sweep_override() and override.value() == "???":
        raise UserError(f"{one_line(key)}=???: must be a value")
    return override


def read(text: str) -> Override:
    """One override, as Hydra parses it.

    Raises:
        UserError: where it is none.
    """
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise UserError(f"cannot read '{one_line(text)}': write key=value, a list as [1,2]") from error


def _check_choices(override: Override, group: str) -> None:
    """A group takes names of files in conf/, no values."""
    if override.is_sweep_override() and not override.is_discrete_sweep():
        raise UserError(f"{one_line(override.input_line)}: must be choices; there are {listing(choices(group))}")
    for text in alternatives(override):
        name = text.partition("=")[2].strip("'\"")
        if name not in choices(group):
            raise UserError(no_choice(group, name, choices(group)))


def alternatives(override: Override) -> Iterator[str]:
    """The overrides of single runs that one of a multirun stands for; none for a sweeper's own space."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        yield override.input_line
    elif override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        group = override.key_or_group
        names = override.value().filter(choices(group))
        if not names:
            raise UserError(f"{one_line(override.input_line)}: matches none of {listing(choices(group))}")
        yield from (f"{key}={name}" for name in names)
    elif override.is_discrete_sweep():
        # One more than allowed is enough to see that there are too many.
        try:
            yield from (f"{key}={v}" for v in itertools.islice(override.sweep_string_iterator(), MOST_RUNS + 1))
        except (HydraException, ValueError) as error:
            raise UserError(f"{one_line(override.input_line)}: is no range or list of values") from error


def check_count(runs: int, text: str, fewer: str) -> None:
    """Print how many runs are about to be checked if that takes a while; UserError for too many.

    Args:
        text: description of the runs, for the message.
        fewer: what to use fewer of.
    """
    if runs > MOST_RUNS:
        raise UserError(f"{text}; at most {MOST_RUNS} can be started at once; use fewer {fewer}")
    if runs > MANY:
        print(f"checking {runs} runs", file=sys.stderr, flush=True)


def listing(names: list[str]) -> str:
    """Names in one line; of many, the first."""
    kept = list(itertools.takewhile(lambda index: len(", ".join(names[: index + 1])) < 180, range(len(names))))
    return ", ".join(names[: len(kept)]) + (f", ... ({len(names)} in all)" if len(kept) < len(names) else "")


def no_choice(group: str, value: str, options: list[str]) -> str:
    """The line on a choice that is not there."""
    # Of recipes, those of the model that is meant.
    same = [name for name in options if "/" in value and name.startswith(value.partition("/")[0] + "/")]
    close = difflib.get_close_matches(value, options, n=1, cutoff=0.8)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return f"{group}={one_line(value)}: no such choice{meant}; there are {listing(same or options)}"


def unknown_key(full_key: str, key: str, known: list[str]) -> str:
    """The line on a key that is not there."""
    full_key = one_line(full_key)
    if not known:
        group = full_key.partition(".")[0]
        others = [choice for choice in choices(group) if choice != "none"]
        return f"{full_key}: there is no {group}; choose {group}={' | '.join(others)}"
    close = difflib.get_close_matches(key, known, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return f"{full_key}: no such key{meant}; there are {listing(known)}"
