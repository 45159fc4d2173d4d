"""One example of each operation at any size: what the tests and the benchmark run on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from longwave import kernels
from longwave.kernels.dispatch import OPERATIONS

# The first parameter of a test that is one operation's. Beside each operation, what an option makes of one.
EVERY_EQUATION = [*sorted(OPERATIONS), "implicit_cornn", "imex_linoss", "input_cornn", "input_gru", "input_lem"]


def operation_of(equation: str) -> str:
    """The function of ``kernels`` that computes an equation."""
    return equation.removeprefix("input_").removeprefix("gated_").removeprefix("implicit_").removeprefix("imex_")


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

    def to(self, dtype: torch.dtype) -> "Case":
        """The same numbers, as leaves of that type."""
        inputs = {key: value.detach().to(dtype).requires_grad_() for key, value in self.inputs.items()}
        return Case(self.operation, inputs, self.constants)


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

    if name.startswith("input_"):
        example = case(name.removeprefix("input_"), steps, batch, hidden, seed)
        x, width = normal(steps, batch, 3).float().double(), example.inputs.pop("pre").shape[2]

        def operation(weight: Tensor, bias: Tensor, **rest):
            return getattr(kernels, operation_of(name))(kernels.Input(x.to(weight.dtype), weight, bias), **rest)

        affine = {"weight": normal(width, 3), "bias": normal(width)}
        affine = {key: value.float().double().requires_grad_() for key, value in affine.items()}
        return Case(operation, affine | example.inputs, example.constants)

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
    elif name == "lstm":
        inputs = {"pre": drive(4), "w_h": matrix(4), **states("h", "c")}
    elif name == "gru":
        inputs = {"pre": drive(3), "w_h": matrix(3), "b_n": normal(hidden), **states("h")}
    elif name == "lem":
        inputs = {"pre": drive(4), "w_y": matrix(3), "w_z": matrix(), "dt": uniform(0.3, 0.9), **states("y", "z")}
    elif name == "modrelu_rnn":
        w, bias, start = 0.9 * torch.linalg.qr(normal(hidden, hidden))[0], uniform(-0.12, -0.08, hidden), states("h")
        pre = away_from_kinks(lambda v: v.sign() * (v.abs() + bias).relu(), lambda h: h @ w.T, start["state_h"])
        inputs = {"pre": pre, "w": w, "bias": bias, **start}
    elif name == "indrnn":
        u, start = uniform(-0.9, 0.9, hidden), states("h")
        inputs = {"pre": away_from_kinks(torch.relu, lambda h: u * h, start["state_h"]), "u": u, **start}
    else:
        constants["gated"] = name.startswith("gated")
        inputs = {"pre": drive(1 + constants["gated"]), "w": matrix(), **states("h")}
        inputs |= {"epsilon": uniform(0.05, 0.1, hidden), "gamma": uniform(0.01, 0.1)}
    inputs = {key: value.float().double().requires_grad_() for key, value in inputs.items()}
    return Case(getattr(kernels, operation_of(name)), inputs, constants)
