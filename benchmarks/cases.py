"""Examples of each operation at any size, and how far a backend is from the definition on them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from longwave import kernels
from longwave.kernels.operation import OPERATIONS

# Each operation, and what an option makes of one, with the function of ``kernels`` that computes it.
FUNCTIONS = {name: operation.folder for name, operation in sorted(OPERATIONS.items())}
FUNCTIONS |= {"implicit_cornn": "cornn", "imex_linoss": "linoss"}
FUNCTIONS |= {f"input_{name}": name for name in ("cornn", "gru", "lem")}
EVERY_EQUATION = list(FUNCTIONS)

# A subset of all sizes in which each T, B and H is.
SIZES = [
    *((1, 1, 1), (1, 50, 256), (2, 3, 5), (2, 1, 256), (17, 50, 127), (17, 3, 32)),
    *((255, 3, 32), (256, 1, 128), (257, 3, 5), (257, 50, 32), (1000, 3, 1), (1000, 1, 32)),
]

# Of the Neural RDE: T, B, H, D, and the options that each is tried with.
NRDE_SIZES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 1, 16, 28), (70, 8, 6, 4), (2, 30, 33, 14), (3, 17, 70, 3)]
NRDE_OPTIONS = [
    {},
    {"adjoint": True},
    {"solver": "heun", "inner": 0, "repeat_last": True},
    {"solver": "euler", "inner": 2, "repeats": 2, "adjoint": True, "repeat_last": True},
    {"solver": "heun", "inner": 1, "repeats": 3},
    {"inner": 2, "width": 3},
]


@dataclass
class Case:
    """An operation with its arguments.

    Args:
        operation: of ``kernels``.
        inputs: every tensor that gets a gradient, by name; states are called ``state_...``.
        constants: the other arguments.
    """

    operation: Callable
    inputs: dict[str, Tensor]
    constants: dict

    def run(self, backend: str, inputs: dict[str, Tensor] | None = None) -> list[Tensor]:
        """The sequence and the final states."""
        inputs = dict(self.inputs if inputs is None else inputs)
        states = [inputs.pop(key) for key in self.inputs if key.startswith("state_")]
        state = None if not states else states[0] if len(states) == 1 else tuple(states)
        y, final = self.operation(**inputs, **self.constants, state=state, backend=backend)
        return [y, final] if isinstance(final, Tensor) else [y, *final]

    def changed(self, function: Callable[[Tensor], Tensor]) -> "Case":
        """With ``function`` of every input, as leaves."""
        inputs = {key: function(value.detach()).requires_grad_() for key, value in self.inputs.items()}
        return Case(self.operation, inputs, self.constants)

    def to(self, dtype: torch.dtype) -> "Case":
        return self.changed(lambda value: value.to(dtype))


def case(name: str, steps: int, batch: int, hidden: int, seed: int = 0) -> Case:
    """Operation ``name`` in float64, with random arguments that are the same each time and fit into float32.

    "implicit_cornn" is cornn with implicit damping, "imex_linoss" is linoss by symplectic Euler, "input_cornn" is cornn
    of an Input of three channels.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    def matrix(blocks: int = 1) -> Tensor:
        return normal(blocks * hidden, hidden) * 0.7 / hidden**0.5

    def drive(gates: int = 1) -> Tensor:
        return normal(steps, batch, gates * hidden)

    def states(*names: str) -> dict[str, Tensor]:
        return {f"state_{key}": 0.5 * normal(batch, hidden) for key in names}

    def away_from_kinks(react: Callable[[Tensor], Tensor], product: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        # A drive such that what the kinked function gets is never near a kink, where rounding decides on which side.
        sequence = []
        for _ in range(steps):
            v = torch.where(uniform(0, 1, batch, hidden) < 0.3, 0.03, uniform(0.2, 1, batch, hidden))
            v = v * normal(batch, hidden).sign()
            sequence.append(v - product(h))
            h = react(v)
        return torch.stack(sequence)

    def exact(value: Tensor) -> Tensor:
        return value.float().double()

    if name.startswith("input_"):
        example = case(name.removeprefix("input_"), steps, batch, hidden, seed)
        x, width = exact(normal(steps, batch, 3)), example.inputs.pop("pre").shape[2]

        def operation(weight: Tensor, bias: Tensor, **rest):
            return getattr(kernels, FUNCTIONS[name])(kernels.Input(x.to(weight), weight, bias), **rest)

        affine = {"weight": normal(width, 3), "bias": normal(width)}
        return Case(operation, affine | example.inputs, example.constants).changed(exact)

    constants = {}
    if name in ("cornn", "implicit_cornn"):
        constants["damping"] = "implicit" if name == "implicit_cornn" else "explicit"
        inputs = {"pre": drive(), "w_y": matrix(), "w_z": matrix(), **states("y", "z")}
        inputs |= {"dt": uniform(0.05, 0.1), "gamma": uniform(0.5, 1.5, hidden), "epsilon": uniform(0.5, 1.5)}
    elif name == "unicornn":
        inputs = {"pre": drive(), "w": uniform(0, 1, hidden), "c": uniform(-0.1, 0.1, hidden), **states("y", "z")}
        inputs |= {"dt": uniform(0.05, 0.1), "alpha": uniform(1, 5, hidden)}
        constants["anchor"] = 100
    elif name in ("linoss", "imex_linoss"):
        constants["discretisation"] = "imex" if name == "imex_linoss" else "im"
        inputs = {"pre": drive(), "a": uniform(0, 1, hidden), **states("y", "z"), "dt": uniform(0.3, 0.8)}
    elif name == "rnn":
        inputs = {"pre": drive(), "w_h": matrix(), **states("h")}
    elif name == "fastrnn":
        inputs = {"pre": drive(), "w_h": matrix(), **states("h")}
        inputs |= {"alpha": uniform(0.05, 0.3, hidden), "beta": uniform(0.7, 0.95)}
    elif name == "fastgrnn":
        inputs = {"pre": drive(), "w_h": matrix(), "b_z": normal(hidden), "b_h": normal(hidden), **states("h")}
        inputs |= {"zeta": uniform(0.6, 0.8, hidden), "nu": uniform(0.02, 0.1)}
    elif name == "lstm":
        inputs = {"pre": drive(4), "w_h": matrix(4), **states("h", "c")}
    elif name == "gru":
        inputs = {"pre": drive(3), "w_h": matrix(3), "b_n": normal(hidden), **states("h")}
    elif name == "ugrnn":
        inputs = {"pre": drive(2), "w_h": matrix(2), **states("h")}
    elif name == "lem":
        inputs = {"pre": drive(4), "w_y": matrix(3), "w_z": matrix(), "dt": uniform(0.3, 0.9), **states("y", "z")}
    elif name == "modrelu_rnn":
        w, bias, start = 0.9 * torch.linalg.qr(normal(hidden, hidden))[0], uniform(-0.12, -0.08, hidden), states("h")
        pre = away_from_kinks(lambda v: v.sign() * (v.abs() + bias).relu(), lambda h: h @ w.T, start["state_h"])
        inputs = {"pre": pre, "w": w, "bias": bias, **start}
    elif name == "leaky_relu_rnn":
        w, slope, start = 0.9 * torch.linalg.qr(normal(hidden, hidden))[0], uniform(0.05, 0.3, hidden), states("h")
        pre = away_from_kinks(lambda v: torch.where(v > 0, v, slope * v), lambda h: h @ w.T, start["state_h"])
        inputs = {"pre": pre, "w": w, "slope": slope, **start}
    elif name == "indrnn":
        u, start = uniform(-0.9, 0.9, hidden), states("h")
        inputs = {"pre": away_from_kinks(torch.relu, lambda h: u * h, start["state_h"]), "u": u, **start}
    elif FUNCTIONS[name] == "antisymmetric_rnn":
        constants["gated"] = name == "gated_antisymmetric_rnn"
        inputs = {"pre": drive(1 + constants["gated"]), "w": matrix(), **states("h")}
        inputs |= {"epsilon": uniform(0.05, 0.1, hidden), "gamma": uniform(0.01, 0.1)}
    else:
        raise KeyError(f"benchmarks/cases.py has no example of {name}")
    return Case(getattr(kernels, FUNCTIONS[name]), inputs, constants).changed(exact)


def nrde_case(
    steps: int, batch: int, hidden: int, channels: int = 5, inner: int = 1, width: int | None = None, **options
) -> Case:
    """The Neural RDE as :func:`case` has the others: ``steps`` blocks of ``channels``; outputs are all h and the last.

    ``width`` is 2 H - 1 where not given; ``options`` are arguments of :func:`longwave.kernels.nrde`.
    """
    generator, width = torch.Generator().manual_seed(0), width or 2 * hidden - 1
    inputs = {"x": torch.randn(steps, batch, channels, generator=generator) / channels**0.5}
    inputs["state_h"] = torch.randn(batch, hidden, generator=generator)
    shapes = [(width, hidden), *[(width, width)] * inner, (hidden * channels, width)]
    for i, (outputs, terms) in enumerate(shapes):
        inputs[f"weight {i}"] = torch.randn(outputs, terms, generator=generator) / terms**0.5
        inputs[f"bias {i}"] = torch.randn(outputs, generator=generator) / 2

    def operation(x: Tensor, state: Tensor, backend: str, **parameters: Tensor):
        kinds = ([value for key, value in parameters.items() if key.startswith(kind)] for kind in ("weight", "bias"))
        sequence = kernels.nrde(x, state, *kinds, **options, backend=backend)
        return sequence, sequence[-1]

    return Case(operation, inputs, {}).to(torch.float64)


def case_by_unit(name: str, steps: int, batch: int, hidden: int) -> Case:
    """With one of each scalar for each unit: the sum over all units may cancel, and what is left is rounding."""
    return case(name, steps, batch, hidden).changed(lambda value: value.expand(value.shape or (hidden,)).clone())


def everything(example: Case, backend: str, seed: int = 1) -> dict[str, Tensor]:
    """All outputs, and all gradients for a random cotangent on every output."""
    outputs = example.run(backend)
    generator = torch.Generator().manual_seed(seed)
    # Drawn in float64, so that they are the same for each type.
    cotangents = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in outputs]
    gradients = torch.autograd.grad(outputs, list(example.inputs.values()), cotangents)
    named = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    return named | {f"gradient of {key}": g for key, g in zip(example.inputs, gradients, strict=True)}


def differences(example: Case, backend: str = "cpu") -> list[str]:
    """The tensors that differ from the reference's in float64, by more than 1e-11 of the largest number."""
    expected, result = everything(example, "reference"), everything(example, backend)
    found = []
    for key, exact in expected.items():
        if (result[key].dtype, result[key].shape) != (exact.dtype, exact.shape):
            found.append(f"{key}: {result[key].dtype} {result[key].shape}, not {exact.dtype} {exact.shape}")
            continue
        error, scale = (result[key] - exact).abs().max().item(), exact.abs().max().item()
        # Not NaN, either.
        if not error <= 1e-11 * scale:
            found.append(f"{key}: differs by {error:.2e}, the largest number is {scale:.2e}")
    return found


def excess_errors(example: Case, backend: str = "cpu", factor: float = 3.0) -> list[str]:
    """The tensors whose error in float32 is not of the size of the reference's, both measured against float64.

    What rounding leaves of one long sequence is luck: the reference errs fourfold more or less with the last bit of its
    inputs. Where one draw misses the bar, the medians over seven nearby ones decide.
    """
    missed = _missed([example], backend, factor)
    return missed and _missed([example, *(_nearby(example, seed) for seed in range(6))], backend, factor)


def _missed(examples: list[Case], backend: str, factor: float) -> list[str]:
    """The tensors whose error, the median over the examples, is above the bar."""
    errors = {"reference": [], backend: []}
    for example in examples:
        truth = everything(example, "reference")
        # Relative to the largest number in the tensor.
        scales = {key: exact.abs().max().clamp_min(1e-3) for key, exact in truth.items()}
        for by, found in errors.items():
            result = everything(example.to(torch.float32), by)
            found.append([((result[key] - exact).abs().max() / scales[key]).item() for key, exact in truth.items()])
    usual, fused = (torch.tensor(found).median(0).values.tolist() for found in errors.values())
    # The error of a few numbers may be small by luck: those have the bar of the worst tensor.
    worst, missed = max(usual), []
    for key, allowed, error in zip(truth, usual, fused, strict=True):
        bar = factor * (allowed if truth[key].numel() >= 100 else worst) + 4 * torch.finfo(torch.float32).eps
        # Not NaN, either.
        if not error <= bar:
            missed.append(f"{key}: relative error {error:.2e}, allowed are {bar:.2e}")
    return missed


def _nearby(example: Case, seed: int) -> Case:
    """The same with inputs that differ in the last bit of float32."""
    generator, eps = torch.Generator().manual_seed(seed), torch.finfo(torch.float32).eps

    def moved(value: Tensor) -> Tensor:
        noise = torch.rand(value.shape, generator=generator, dtype=value.dtype) - 0.5
        return (value * (1 + eps * noise)).float().double()

    return example.changed(moved)
