"""An operation, declared once, and its C kernel as a differentiable operator of PyTorch."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longwave.kernels import library
from longwave.kernels.derivatives import refuse_second_derivatives
from longwave.kernels.library import DeclarationError, Source
from longwave.kernels.linear import Input

OPERATIONS: dict[str, "Operation"] = {}

# The shape of a parameter that is one number for all units, or one for each: a float, a 0-d tensor or (H,).
SCALAR = "scalar"


@dataclass(frozen=True, eq=False)
class Operation:
    """Signature of one operation, and the numbers that its C kernel is compiled with.

    Args:
        reference: the definition; takes the arguments as the user gave them.
        parameters: name to shape, in units of H: ``(1, 1)`` is (H, H), ``(4, 1)`` is (4H, H); or ``SCALAR``.
        states: names of the states, each (B, H).
        gates: ``pre`` is (T, B, gates * H).
        name: of the operation; by default that of ``reference``.
        folder: name of the folder of ``cpu.c`` and ``triton.py``, and of the public function; by default ``name``.
        options: arguments that are no tensors: whether a value is allowed, and how a message describes those that are.
        optional: parameters (H,) that may be None, for zeros.
        per_step: ``SCALAR`` parameters that may also differ by step and sequence, (T, B, 1) or (T, B, H): then the
            reference runs.
        half: whether a bfloat16 or float16 ``pre`` is computed on in float32: then each other tensor may be float32 or
            of the type of ``pre``, the sequence is of the type of ``pre``, and final states are float32.
        products: of a dense cell (``dense.h``), for each phase of a step: the neighbouring states that its matrix
            multiplies, as ``"y z"``, and the number of (B, H) blocks in the product. Without it, the cell is diagonal
            (``diagonal.h``).
        units: number of parameters of the C kernel with one value a unit, (H,).
        tape: number of (B, H) blocks that a step of a dense cell leaves for the backward pass, beside the sequence:
            all states but the first, then the cell's own.
        reversible: the backward pass of a diagonal cell rebuilds the states from the final ones and from those that
            are stored every ``anchor`` steps; it reads ``pre`` again, and not the sequence.
        incremental: the second state of a diagonal cell is what the first has grown by in the step; the backward pass
            takes it from the sequence, and reads ``pre`` again, too.
        cpu: ``cpu(kernel, pre, *parameters, *state, **options)`` calls :meth:`kernel` where that takes other arguments
            than the operation; of a dense cell the Triton kernel, too.

    Raises:
        DeclarationError: where the numbers contradict each other. Where they are not those of ``cpu.c``, or of the
            arguments of the kernel, the first use raises it.
    """

    reference: Callable
    parameters: dict[str, tuple[int, ...] | str]
    states: tuple[str, ...]
    gates: int = 1
    name: str = ""
    folder: str = ""
    options: dict[str, tuple[Callable[[Any], bool], str]] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    per_step: tuple[str, ...] = ()
    half: bool = False
    products: dict[str, int] = field(default_factory=dict)
    units: int = 0
    tape: int = 0
    reversible: bool = False
    incremental: bool = False
    cpu: Callable | None = None

    def __post_init__(self):
        object.__setattr__(self, "name", self.name or self.reference.__name__)
        object.__setattr__(self, "folder", self.folder or self.name)
        wrong = self._contradiction()
        if wrong:
            raise DeclarationError(f"{self.name}: {wrong}")
        OPERATIONS[self.name] = self
        if self.source.path.exists():
            self._register()

    @property
    def dense(self) -> bool:
        return bool(self.products)

    @cached_property
    def source(self) -> Source:
        """The C kernel, and the declaration as options of the compiler."""
        numbers = {"STATES": len(self.states), "UNITS": self.units}
        if self.dense:
            phases = [f"{{{','.join(map(str, phase))}}}" for phase in self.phases()]
            numbers |= {"GATES": self.gates, "TAPE": self.tape, "PRODUCTS": sum(self.products.values())}
            numbers |= {"PHASES": len(phases), "PHASE_TABLE": ",".join(phases)}
        options = [f"-D{key}={value}" for key, value in numbers.items()]
        options += ["-DREVERSIBLE"] * self.reversible + ["-DINCREMENTAL"] * self.incremental
        return Source(self.name, Path(__file__).parent / self.folder / "cpu.c", tuple(options))

    def kernel(self, pre: Tensor | Input, parameters: Sequence[Tensor], state: Sequence[Tensor], anchor: int = 0):
        """The C kernel, the operator ``longwave::<name>``: the sequence (T, B, H), and each final state (B, H).

        Args:
            pre: (T, B, gates * H); of a dense cell an :class:`Input`, too.
            parameters: the matrix of each phase, then ``units`` tensors (H,).
            state: the initial states, each (B, H).
            anchor: steps between stored states of a reversible cell; 0 stores none.
        """
        if (len(parameters), len(state)) != (self._parameters, len(self.states)):
            raise DeclarationError(
                f"{self.name}: {len(self.products)} matrices, {self.units} units and {len(self.states)} states are "
                f"declared, but the kernel gets {len(parameters)} parameters and {len(state)} states"
            )
        pre, weight, bias = pre if isinstance(pre, Input) else (pre, None, None)
        operator = getattr(torch.ops.longwave, self.name)
        return operator(pre, weight, bias, *parameters, *state, anchor)[: 1 + len(self.states)]

    def phases(self) -> list[tuple[int, int, int, int]]:
        """Rows of ``Phase`` in ``dense.h``."""
        phases, product = [], 0
        for states, count in self.products.items():
            phases.append((self.states.index(states.split()[0]), len(states.split()), product, count))
            product += count
        return phases

    def _contradiction(self) -> str | None:
        if not self.dense:
            if self.gates != 1 or self.tape:
                return f"gates={self.gates}, tape={self.tape}: a cell without products has one gate and no tape"
            if self.reversible and self.incremental:
                return "a cell is reversible or incremental, not both"
            return None
        if self.reversible or self.incremental:
            return "a cell with products is neither reversible nor incremental"
        if len(self.products) > 2 or min(self.products.values()) < 1:
            return f"products={self.products}: must be one or two, of at least one block"
        if any(f" {states} " not in f" {' '.join(self.states)} " for states in self.products):
            return f"products={self.products}: must be of neighbours among the states {self.states}"
        if self.tape < len(self.states) - 1:
            return f"tape={self.tape}: must hold the {len(self.states) - 1} states beside the first"
        return None

    @property
    def _parameters(self) -> int:
        """Number of parameters of the C kernel."""
        return len(self.products) + self.units

    def check_parameters(self, parameters: Sequence[Tensor], hidden: int):
        expected = [(outputs * hidden, inputs * hidden) for _, inputs, _, outputs in self.phases()]
        expected += [(hidden,)] * self.units
        given = [tuple(p.shape) for p in parameters]
        if given != expected:
            raise DeclarationError(
                f"{self.name}: parameters of {expected} are declared by products={self.products}, units={self.units}, "
                f"but the kernel gets {given}"
            )

    def _register(self):
        operator = partial(torch.library.custom_op, mutates_args=(), device_types="cpu")
        states, count = len(self.states), self._parameters + len(self.states)
        # With a weight, pre is an Input's x.
        arguments = f"Tensor? weight, Tensor? bias, {_tensors('argument', count)}"
        schema = f"(Tensor pre, {arguments}, int anchor) -> ({_returns(2 + states)})"
        forward = operator(f"longwave::{self.name}", self._forward, schema=schema)
        forward.register_fake(lambda pre, weight, bias, *rest: self._outputs(pre, weight, rest[-1]))
        forward.register_autograd(self._differentiate, setup_context=self._keep)
        # What is not kept, and gradients that nobody asked for, are None.
        kept = f"Tensor? y, {_tensors('final', states, '?')}, Tensor tape"
        given = f"Tensor? g_y, {_tensors('g_final', states, '?')}"
        schema = f"(Tensor? pre, {arguments}, {kept}, {given}, int anchor) -> ({_returns(3 + count)})"
        backward = operator(f"longwave::{self.name}_backward", self._backward, schema=schema)
        backward.register_fake(self._gradients)
        refuse_second_derivatives(self.name, backward)

    def _outputs(self, pre: Tensor, weight: Tensor | None, anchor: int) -> tuple[Tensor, ...]:
        steps, batch, width = pre.shape
        hidden = (width if weight is None else len(weight)) // self.gates
        if self.reversible:
            # The states after steps anchor, 2 anchor ... before the last.
            tape = ((steps - 1) // anchor if anchor else 0, batch, len(self.states) * hidden)
        else:
            tape = (steps, batch, self.tape * hidden)
        final = [pre.new_empty(batch, hidden) for _ in range(len(self.states))]
        return pre.new_empty(steps, batch, hidden), *final, pre.new_empty(tape)

    def _forward(self, *tensors) -> tuple[Tensor, ...]:
        *tensors, anchor = _contiguous(tensors)
        pre, weight, bias, *arguments = tensors
        y, *final, tape = outputs = self._outputs(pre, weight, anchor)
        parameters, state = arguments[: self._parameters], arguments[self._parameters :]
        self.check_parameters(parameters, y.shape[-1])
        self._call("forward", y, weight, anchor, pre, weight, bias, parameters, state, y, final, tape)
        return outputs

    def _keep(self, ctx, inputs, output):
        pre, weight, bias, *arguments, ctx.anchor = inputs
        y, *final, tape = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(tape)
        pre = pre if self.reversible or self.incremental or weight is not None else None
        y, final = (None, final) if self.reversible else (y, [None] * len(self.states))
        ctx.save_for_backward(pre, weight, bias, *arguments, y, *final, tape)

    def _differentiate(self, ctx, *gradients):
        operator = getattr(torch.ops.longwave, f"{self.name}_backward")
        d_pre, d_weight, d_bias, *d_arguments = operator(*ctx.saved_tensors, *gradients[:-1], ctx.anchor)
        weight, bias = ctx.saved_tensors[1:3]
        affine = (None if weight is None else d_weight, None if bias is None else d_bias)
        return d_pre if weight is None else None, *affine, *d_arguments, None

    def _gradients(self, pre: Tensor | None, weight: Tensor | None, bias: Tensor | None, *rest) -> list[Tensor]:
        """Empty tensors, of no elements for what has no gradient: contiguous, whatever the strides of an argument."""
        arguments = [weight, bias, *rest[: self._parameters + len(self.states)]]
        y, (batch, hidden) = rest[self._parameters + len(self.states)], arguments[-1].shape
        new_empty = arguments[-1].new_empty
        shape = 0 if weight is not None else (len(pre if y is None else y), batch, self.gates * hidden)
        return new_empty(shape), *(new_empty(0 if a is None else a.shape) for a in arguments)

    def _backward(self, *tensors) -> tuple[Tensor, ...]:
        *tensors, anchor = _contiguous(tensors)
        gradients = self._gradients(*tensors, anchor)
        d_pre, d_weight, d_bias, *d_arguments = (d if d.numel() else None for d in gradients)
        pre, weight, _, *tensors = tensors
        p, s = self._parameters, len(self.states)
        parameters, state = tensors[:p], tensors[p : p + s]
        y, *final = tensors[p + s : 1 + p + 2 * s]
        tape, g_y, *g_final = tensors[1 + p + 2 * s :]
        kept = (pre, parameters, state, y, final, tape)
        gradient = (d_pre, d_weight, d_bias, d_arguments[:p], d_arguments[p:])
        self._call("backward", pre if y is None else y, weight, anchor, *kept, g_y, g_final, *gradient)
        return gradients

    def _call(self, function: str, like: Tensor, weight: Tensor | None, anchor: int, *tensors):
        """Calls a function of the C kernel: threads, sizes, then pointers; a list becomes an array of pointers.

        ``like`` is a sequence, (T, B, ...).
        ctypes releases the interpreter's lock for the time of the call.
        """
        entry = getattr(library.load(self.source, like.dtype), function)
        hidden = next(t for t in tensors if isinstance(t, list) and t[0] is not None)[-1].shape[-1]
        channels = 0 if weight is None else weight.shape[1]
        sizes = (torch.get_num_threads(), *like.shape[:2], hidden, anchor, channels)
        if entry(*map(ctypes.c_long, sizes), *map(_address, tensors)):
            raise MemoryError(f"{self.name}: no memory for the working space of the {function} pass")


def _tensors(name: str, count: int, mark: str = "") -> str:
    return ", ".join(f"Tensor{mark} {name}{i}" for i in range(count))


def _returns(count: int) -> str:
    return ", ".join(["Tensor"] * count)


def _contiguous(values: Sequence) -> list:
    return [value.contiguous() if isinstance(value, Tensor) else value for value in values]


def _address(value: Tensor | list[Tensor | None] | None):
    if isinstance(value, list):
        return (ctypes.c_void_p * len(value))(*map(_address, value))
    return ctypes.c_void_p(None if value is None else value.data_ptr())
