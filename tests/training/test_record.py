"""A record is whole, or one line says what is wrong with it."""

import copy
import json

import pytest

from longwave.training import record
from longwave.training.report import report

WRONG = [None, True, -1, 1.5, 10**400, "x", "", [], {}, [1], {"a": 1}]


def paths(value, path=()):
    """Of every part of a JSON value."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0):
        yield from paths(value[key], (*path, key))


def damaged(whole):
    """A record with one part replaced, or left out."""
    yield from WRONG
    for *parents, last in filter(None, paths(whole)):
        for wrong in [*WRONG, "left out"]:
            found = part = copy.deepcopy(whole)
            for key in parents:
                part = part[key]
            part[last] = wrong
            if wrong == "left out":
                del part[last]
            yield found


def test_a_record_of_any_shape_is_refused_or_reported(fit_here):
    _, folder = fit_here(
        "task.T=6", "model.hidden=3", "training.batch_size=2", "task.test_samples=10", "training.steps=4",
        "curriculum=lengths", "curriculum.lengths=[3]", "recipe=cornn/adding_paper",
    )  # fmt: skip
    whole = json.loads((folder / "record.json").read_text())
    whole["published"] |= {"value": 0.1}
    taken = 0
    for one in damaged(whole):
        try:
            found = record.parse(json.dumps(one))
        except ValueError:
            continue
        if found.status == record.FINISHED:
            taken += 1
            report(found, folder)
    assert taken > 100


@pytest.mark.parametrize("content", [b"", b"null", b"\xff\xfe", b"[" * 10_000, b"1e999"])
def test_what_is_no_record_is_refused(content):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        record.parse(content)
