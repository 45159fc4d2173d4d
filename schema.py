"""Constraints and marks of the fields of a configuration, declared beside them.

    hidden: Annotated[int, Ge(1), Le(65536)] = 128
    damping: Annotated[str, OneOf("explicit", "implicit")] = "explicit"

A section that derives from :class:`Section` is checked when it is made; :func:`marked` gives the fields with a mark.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

__all__ = [
    "LATER",
    "NEUTRAL",
    "REPEAT",
    "Annotated",
    "Ge",
    "Gt",
    "Le",
    "Lt",
    "OneOf",
    "Section",
    "counted",
    "marked",
    "one_line",
]

# A setting that cannot change a number of a run, up to rounding: where it runs, what is kept and shown of it.
NEUTRAL = "neutral"
# A setting that came after runs were made without it: its default is what they did, and leaves their identity as it is.
LATER = "later"
# A setting that makes it another repetition of the same experiment, as the seed does: tables take the mean over it.
REPEAT = "repeat"


@dataclass(frozen=True)
class OneOf:
    """The values that are allowed; in ``OneOf(1, None)`` None has to be named, as it has nowhere else."""

    values: tuple

    def __init__(self, *values):
        object.__setattr__(self, "values", values)


class Section:
    """A dataclass whose fields are checked when it is made.

    Raises:
        ValueError: for the first field whose value is not allowed: ``hidden=0: must be at least 1``.
    """

    def __post_init__(self):
        for key, constraints in _constraints(type(self)).items():
            value = getattr(self, key)
            reason = _violation(value, constraints)
            if reason is not None:
                raise ValueError(f"{key}={shown(value)}: {reason}")


def shown(value: Any) -> str:
    """A value as a command line has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return "''" if value == "" else one_line(str(value))


def one_line(text: str, most: int = 60) -> str:
    """A text that somebody typed, or that stands in a file, as a message can show it."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def counted(number: int, noun: str) -> str:
    """``1 run``, ``2 runs``, ``1,200 runs``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def marked(section: type, mark: str) -> frozenset[str]:
    """Fields of a section that carry ``mark``."""
    return frozenset(key for key, constraints in _constraints(section).items() if mark in constraints)


@functools.cache
def _constraints(section: type) -> dict[str, tuple]:
    hints = get_type_hints(section, include_extras=True)
    fields = [field.name for field in dataclasses.fields(section)]
    return {key: get_args(hints[key])[1:] if get_origin(hints[key]) is Annotated else () for key in fields}


_BOUNDS = {
    Ge: ("ge", "at least", lambda value, bound: value >= bound),
    Gt: ("gt", "greater than", lambda value, bound: value > bound),
    Le: ("le", "at most", lambda value, bound: value <= bound),
    Lt: ("lt", "less than", lambda value, bound: value < bound),
}


def _violation(value: Any, constraints: tuple) -> str | None:
    """Why a value is not allowed, or None. Null is left to the type; a list is checked element by element."""
    if isinstance(value, list):
        return next(filter(None, (_violation(element, constraints) for element in value)), None)
    for constraint in constraints:
        if isinstance(constraint, OneOf) and value not in constraint.values:
            return f"must be one of {', '.join(map(shown, constraint.values))}"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be finite"
    for constraint in constraints:
        if type(constraint) in _BOUNDS and value is not None:
            key, words, holds = _BOUNDS[type(constraint)]
            if not holds(value, getattr(constraint, key)):
                return f"must be {words} {getattr(constraint, key)}"
    return None
