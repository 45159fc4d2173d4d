"""Fused backends beside the definition: arguments, results and gradients by name, and what is good enough."""

import importlib

import torch

from longwave import kernels
from longwave.benchmarks.cases import FUNCTIONS, case_by_unit
from longwave.kernels.operation import OPERATIONS

EPSILON = torch.finfo(torch.float32).eps


def backend(name: str):
    return getattr(importlib.import_module(f"longwave.kernels.{OPERATIONS[name].folder}.triton"), name)


def arguments(name: str, steps: int, batch: int, hidden: int) -> dict[str, torch.Tensor]:
    """All arguments of an operation by name, initial states last, in float64 but exact in float32."""
    if OPERATIONS[name].dense:
        inputs = {key: value.detach() for key, value in case_by_unit(name, steps, batch, hidden).inputs.items()}
        states = {key: inputs.pop(f"state_{key}") for key in OPERATIONS[name].states}
        return inputs | states
    generator = torch.Generator().manual_seed(steps + batch + hidden)

    def normal(*shape, scale=1.0):
        return (scale * torch.randn(shape, generator=generator)).double()

    def uniform(low, high):
        return (low + (high - low) * torch.rand(hidden, generator=generator)).double()

    own = {
        "unicornn": lambda: {
            "w": uniform(0, 1),
            "c": uniform(-0.5, 0.5),
            "dt": uniform(0.1, 0.3),
            "alpha": uniform(0, 10),
        },
        "indrnn": lambda: {"u": uniform(-1, 1.01)},
        "linoss": lambda: {"a": uniform(0, 2), "dt": uniform(0.1, 0.9)},
    }[name]()
    states = {key: normal(batch, hidden) for key in OPERATIONS[name].states}
    return {"pre": normal(steps, batch, hidden), **own, **states}


def cotangents(name: str, given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """One for the sequence and one for each final state."""
    generator = torch.Generator().manual_seed(0)
    states = [given[key] for key in OPERATIONS[name].states]
    like = [given["pre"][:, :, : states[0].shape[1]], *states]
    return [torch.randn(t.shape, generator=generator).double() for t in like]


def call(name: str, given: dict[str, torch.Tensor], backend: str, **options) -> list[torch.Tensor]:
    """The sequence and the final states."""
    states = tuple(given[key] for key in OPERATIONS[name].states)
    rest = {key: value for key, value in given.items() if key not in OPERATIONS[name].states}
    state = states if len(states) > 1 else states[0]
    if name == "gated_antisymmetric_rnn":
        options["gated"] = True
    sequence, final = getattr(kernels, FUNCTIONS[name])(**rest, state=state, backend=backend, **options)
    return [sequence, *(final if isinstance(final, tuple) else [final])]


def run(name, given, grads, backend, **options) -> dict[str, torch.Tensor]:
    """Results and gradients by name."""
    given = {key: value.detach().requires_grad_() for key, value in given.items()}
    results = call(name, given, backend, **options)
    pulled = torch.autograd.grad(
        results, list(given.values()), [g.to(r.dtype) for g, r in zip(grads, results, strict=True)]
    )
    names = ["sequence", *(f"final {key}" for key in OPERATIONS[name].states)]
    return dict(zip(names, results, strict=True)) | {
        f"gradient of {key}": g for key, g in zip(given, pulled, strict=True)
    }


def single(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.float() for key, value in given.items()}


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest error, relative to the largest value."""
    assert found.shape == exact.shape
    return ((found.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-30)).item()


def assert_as_good(found: dict, exact: dict, plain: dict):
    """No error beyond four times that of the definition itself in float32, or a few roundings."""
    assert found.keys() == exact.keys()
    for key in exact:
        assert error(found[key], exact[key]) <= 4 * error(plain[key], exact[key]) + 16 * EPSILON, key
