"""LinOSS in Triton: both discretisations, the serial loop and the scan over segments."""

import importlib

import pytest
import torch

from tests.kernels.checks import arguments as example
from tests.kernels.checks import assert_as_good, cotangents, error, run, single

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("poison")


@pytest.fixture
def module(interpreter):
    return importlib.import_module("longwave.kernels.linoss.triton")


def in_segments(module, monkeypatch, segment):
    monkeypatch.setattr(module, "segment_length", lambda steps, columns: segment)


@pytest.mark.parametrize("discretisation", ["im", "imex"])
@pytest.mark.parametrize(
    ("steps", "batch", "hidden", "segment"),
    [
        # One segment; whole ones; a last one of one step; of less than the steps that are loaded at once; more segments
        # than are joined at once.
        *((1, 1, 1, 1), (40, 2, 5, 40), (32, 3, 33, 8), (17, 1, 3, 16), (27, 2, 17, 8), (83, 1, 2, 8)),
    ],
)
def test_values_and_gradients(module, monkeypatch, steps, batch, hidden, segment, discretisation):
    in_segments(module, monkeypatch, segment)
    given = example("linoss", steps, batch, hidden)
    grads = cotangents("linoss", given)
    other = {"im": "imex", "imex": "im"}[discretisation]
    exact, wrong = (run("linoss", given, grads, "reference", discretisation=d) for d in (discretisation, other))
    assert error(wrong["sequence"], exact["sequence"]) > 1e-3
    plain = run("linoss", single(given), grads, "reference", discretisation=discretisation)
    assert_as_good(run("linoss", single(given), grads, "triton", discretisation=discretisation), exact, plain)


@pytest.mark.parametrize("discretisation", ["im", "imex"])
def test_the_scan_is_as_exact_as_the_loop(module, discretisation):
    """At the length that the scan is taken from, where an associative scan in float32 would have squared 10 times."""
    steps = 1200
    assert module.segment_length(steps, 2) == 64
    given = example("linoss", steps, 1, 2)
    grads = cotangents("linoss", given)
    exact = run("linoss", given, grads, "reference", discretisation=discretisation)
    plain = run("linoss", single(given), grads, "reference", discretisation=discretisation)
    assert_as_good(run("linoss", single(given), grads, "triton", discretisation=discretisation), exact, plain)


def test_bfloat16_in_segments_keeps_the_state_in_float32(module, monkeypatch):
    in_segments(module, monkeypatch, 16)
    given = example("linoss", 70, 2, 9)
    given["pre"] = given["pre"].bfloat16().double()
    grads = cotangents("linoss", given)
    grads[0] = grads[0].bfloat16().double()
    exact, plain = run("linoss", given, grads, "reference"), run("linoss", single(given), grads, "reference")
    found = run("linoss", single(given) | {"pre": given["pre"].bfloat16()}, grads, "triton")
    for key in ("sequence", "gradient of pre"):
        assert found[key].dtype == torch.bfloat16
        assert error(found.pop(key), exact.pop(key)) < torch.finfo(torch.bfloat16).eps
    assert_as_good(found, exact, {key: plain[key] for key in found})


def test_segments_twice_are_the_same_to_the_bit(module, monkeypatch):
    in_segments(module, monkeypatch, 8)
    given = example("linoss", 37, 3, 33)
    grads = cotangents("linoss", given)
    first, second = (run("linoss", single(given), grads, "triton") for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_nan_in_a_segment_is_kept_to_the_end(module, monkeypatch):
    in_segments(module, monkeypatch, 8)
    given = single(example("linoss", 37, 2, 3))
    given["pre"][11, 0, 0] = torch.nan
    found, expected = (run("linoss", given, cotangents("linoss", given), by) for by in ("triton", "reference"))
    for key in expected:
        assert torch.equal(found[key].isnan(), expected[key].isnan()), key


@pytest.mark.parametrize(
    ("steps", "columns", "segment"),
    [
        (784, 32, 784),  # the launches would take longer
        (17_984, 4 * 128, 256),
        (17_984, 32 * 128, 2048),
        (17_984, 128 * 1024, 17_984),  # the columns alone fill the card
        (1_000_000, 1, 512),
    ],
)
def test_the_scan_is_for_few_columns_and_many_steps(module, steps, columns, segment):
    assert module.segment_length(steps, columns) == segment
