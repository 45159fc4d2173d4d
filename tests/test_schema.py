"""Constraints and marks of the fields of a configuration."""

import math
from dataclasses import dataclass, field

import pytest

from longwave.schema import NEUTRAL, Annotated, Ge, Gt, Le, Lt, OneOf, Section, marked


@dataclass
class Example(Section):
    size: Annotated[int, Ge(1), Le(8)] = 2
    rate: Annotated[float, Gt(0), Lt(1)] = 0.5
    mode: Annotated[str, OneOf("a", "b")] = "a"
    limit: Annotated[int | None, Ge(1), NEUTRAL] = None
    lengths: Annotated[list[int] | None, Ge(1)] = None
    choice: Annotated[str | None, OneOf("x", None)] = None
    free: float = field(default=0.0)


@dataclass
class Larger(Example):
    more: Annotated[int, Ge(0), NEUTRAL] = 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 0}, "size=0: must be at least 1"),
        ({"size": 9}, "size=9: must be at most 8"),
        ({"rate": 0.0}, "rate=0.0: must be greater than 0"),
        ({"rate": 1.0}, "rate=1.0: must be less than 1"),
        ({"rate": math.nan}, "rate=nan: must be finite"),
        ({"free": math.inf}, "free=inf: must be finite"),
        ({"mode": "c"}, "mode=c: must be one of a, b"),
        ({"mode": ""}, "mode='': must be one of a, b"),
        ({"limit": 0}, "limit=0: must be at least 1"),
        ({"lengths": [3, 0]}, r"lengths=\[3, 0\]: must be at least 1"),
        ({"choice": "y"}, "choice=y: must be one of x, null"),
    ],
)
def test_a_violation_is_one_line(given, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Example(**given)


def test_what_is_allowed():
    Example(size=8, rate=0.999, mode="b", limit=1, lengths=[1, 2], choice="x")
    Example(size=1, limit=None, lengths=[])


def test_marks():
    assert marked(Example, NEUTRAL) == {"limit"}
    assert marked(Larger, NEUTRAL) == {"limit", "more"}
    with pytest.raises(ValueError, match="size=0"):
        Larger(size=0)
