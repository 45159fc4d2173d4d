"""Epochs do no work in Python for each sample."""

import sys

import pytest

from longwave.training.config import choices, compose_run
from tests.stand_ins import FIXTURES, SHORT


def calls(task, batch_size: int) -> int:
    """How many functions, of Python or built in, one batch calls."""
    count = 0

    def count_up(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(count_up)
    try:
        task.batch(0, batch_size)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("name", choices("task"))
def test_a_larger_batch_is_no_more_work_in_python(name, request):
    root = request.getfixturevalue(FIXTURES.get(name, "tmp_path"))
    config, _ = compose_run([f"task={name}", "recipe=none", "training.steps=1", *SHORT.get(name, [])])
    task = config.task.build(0, root)
    counts = []
    for size in (2, 10):
        # The first batch of an epoch draws its order.
        task.batch(0, size)
        counts.append(calls(task, size))
    assert counts[1] <= counts[0] + 2
