"""The command line of ``sweep.py``: its schema and its checks."""

import dataclasses
import re
import sys
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

from longwave.schema import Annotated, Ge, Le, Section, one_line
from longwave.sweeps.plan import key_of
from longwave.training.command import flags, help_of
from longwave.training.config import compose_object, keys_of_a_run
from longwave.training.errors import UserError
from longwave.training.overrides import check, choices


@dataclass
class Sweep(Section):
    """The table or search to run.

    Args:
        table: the table to run.
        search: or the search for hyperparameters to run.
        seeds: of a table: a number N for 0 to N - 1, or a list; null is the table's own.
        dry_run: only print what would run and how long it would take.
        trials: of a search: total number of trials; null is the search's own.
        parallel: of a search: trials that are started together; null is 1.
        overrides: of all runs: the rest of the command line.
    """

    table: Any = None
    search: Any = None
    seeds: Any = None
    dry_run: bool = False
    trials: Annotated[int | None, Ge(1), Le(1_000_000)] = None
    parallel: Annotated[int | None, Ge(1), Le(10_000)] = None
    overrides: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__post_init__()
        if self.table is not None and self.search is not None:
            raise ValueError("search: cannot go with a table; choose one of them")
        if self.table is None and self.search is None:
            found = f"{', '.join(choices('table'))}; or a search={', '.join(choices('search'))}"
            raise ValueError(f"table=null: choose one table={found}")
        if self.search is not None and self.seeds is not None:
            raise ValueError(f"seeds={self.seeds}: is a setting of a table; a search has seed=0")
        for key in ("trials", "parallel"):
            if self.search is None and getattr(self, key) is not None:
                raise ValueError(f"{key}={getattr(self, key)}: is a setting of a search, not of a table")


def arguments(given: list[str]) -> tuple[list[str], Sweep | None, str | None]:
    """Check a command line, and gather the overrides of the runs in ``overrides``; print the help if asked for.

    Returns:
        The command line for Hydra, its sweep (None where Hydra shows something else), and the name of its table.

    Raises:
        UserError: for the first thing that is wrong.
    """
    parsed = flags(given)
    if parsed.multirun:
        raise UserError("--multirun: a sweep is made of several runs anyway; omit it")
    fields = {item.name for item in dataclasses.fields(Sweep)} - {"overrides"}
    known = [*sorted(fields), *keys_of_a_run()]
    own, rest = [], []
    for text in parsed.overrides:
        override = check(text, known)
        key, name = override.key_or_group, text.partition("=")[2]
        if override.is_sweep_override():
            raise UserError(f"{one_line(text)}: several values, where one is needed; write a list as {key}=[{name}]")
        (own if re.split(r"[./]", key)[0] in {*fields, "hydra"} else rest).append(text)
    quoted = ",".join("'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'" for text in rest)
    own += [f"overrides=[{quoted}]"] if rest else []
    if parsed.help:
        print(help_of("sweep", own))
        sys.exit()
    sweep = None if parsed.shown_by_hydra else compose_object("sweep", own)
    table = next((text.partition("=")[2] for text in own if key_of(text) == "table"), None)
    return [text for text in given if text not in parsed.overrides] + own, sweep, table


ConfigStore.instance().store(group="schema", name="sweep", node=Sweep)
