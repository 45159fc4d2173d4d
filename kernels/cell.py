"""The Python side of the C kernels: a cell of ``dense.h`` or ``diagonal.h`` as a differentiable operator of PyTorch."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longwave.kernels import compile
from longwave.kernels.linear import Input


@dataclass(frozen=True)
class Cell:
    """The operator ``longwave::<name>``, of which ``cpu.c`` in the folder of that name is the kernel.

    It takes ``pre`` (T, B, gates * H), the parameters and the initial states, and returns the sequence, which is the
    first state after every step, the final states, and a tape for the backward pass. A cell of ``dense.h`` takes the
    three tensors of an :class:`Input` as well.

    Args:
        name: of the operator.
        states: number of states, each (B, H).
        parameters: number of tensors of parameters.
        gates: ``pre`` is (T, B, gates * H).
        tape: number of (B, H) blocks that a step leaves for the backward pass, beside the sequence.
        reversible: the backward pass rebuilds the states from the final ones and from those that are stored every
            ``anchor`` steps; it reads ``pre`` again, and not the sequence.
        incremental: the second state is what the first has grown by in the step; the backward pass takes it from the
            sequence, and reads ``pre`` again, too.
    """

    name: str
    states: int
    parameters: int
    gates: int = 1
    tape: int = 0
    reversible: bool = False
    incremental: bool = False

    def __post_init__(self):
        library = torch.library
        arguments = [*_numbered("p", self.parameters), *_numbered("s", self.states)]
        # With a weight, pre is an Input's x.
        affine = "Tensor? weight, Tensor? bias"
        kept = ["y", *_numbered("final", self.states)]
        given = ["g_y", *_numbered("g_final", self.states)]
        schema = f"(Tensor pre, {affine}, {_tensors(arguments)}, int anchor) -> ({_returns(2 + self.states)})"
        forward = library.custom_op(
            f"longwave::{self.name}", self._forward, mutates_args=(), device_types="cpu", schema=schema
        )
        forward.register_fake(lambda pre, weight, bias, *rest: self._outputs(pre, weight, rest[-1]))
        forward.register_autograd(self._differentiate, setup_context=self._keep)
        # What is not kept, and gradients that nobody asked for, are None.
        schema = f"(Tensor? pre, {affine}, {_tensors(arguments)}, {_tensors(kept, '?')}, Tensor tape, "
        schema += f"{_tensors(given, '?')}, int anchor) -> ({_returns(3 + len(arguments))})"
        backward = library.custom_op(
            f"longwave::{self.name}_backward", self._backward, mutates_args=(), device_types="cpu", schema=schema
        )
        backward.register_fake(self._gradients)

    def __call__(self, pre: Tensor | Input, parameters: Sequence[Tensor], state: Sequence[Tensor], anchor: int = 0):
        """The sequence (T, B, H), and each final state (B, H)."""
        operator = getattr(torch.ops.longwave, self.name)
        pre, weight, bias = pre if isinstance(pre, Input) else (pre, None, None)
        return operator(pre, weight, bias, *parameters, *state, anchor)[: 1 + self.states]

    def _outputs(self, pre: Tensor, weight: Tensor | None, anchor: int) -> tuple[Tensor, ...]:
        steps, batch, width = pre.shape
        hidden = (width if weight is None else len(weight)) // self.gates
        if self.reversible:
            # The states after steps anchor, 2 anchor ... before the last.
            tape = ((steps - 1) // anchor if anchor else 0, batch, self.states * hidden)
        else:
            tape = (steps, batch, self.tape * hidden)
        final = [pre.new_empty(batch, hidden) for _ in range(self.states)]
        return pre.new_empty(steps, batch, hidden), *final, pre.new_empty(tape)

    def _forward(self, *tensors) -> tuple[Tensor, ...]:
        *tensors, anchor = _contiguous(tensors)
        pre, weight, bias, *arguments = tensors
        y, *final, tape = outputs = self._outputs(pre, weight, anchor)
        parameters, state = arguments[: self.parameters], arguments[self.parameters :]
        self._call("forward", y, weight, anchor, pre, weight, bias, parameters, state, y, final, tape)
        return outputs

    def _keep(self, ctx, inputs, output):
        pre, weight, bias, *arguments, ctx.anchor = inputs
        y, *final, tape = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(tape)
        pre = pre if self.reversible or self.incremental or weight is not None else None
        y, final = (None, final) if self.reversible else (y, [None] * self.states)
        ctx.save_for_backward(pre, weight, bias, *arguments, y, *final, tape)

    def _differentiate(self, ctx, *gradients):
        operator = getattr(torch.ops.longwave, f"{self.name}_backward")
        d_pre, *rest = operator(*ctx.saved_tensors, *gradients[:-1], ctx.anchor)
        d_weight, d_bias, *d_arguments = rest
        weight, bias = ctx.saved_tensors[1:3]
        affine = (None if weight is None else d_weight, None if bias is None else d_bias)
        return d_pre if weight is None else None, *affine, *d_arguments, None

    def _gradients(self, pre: Tensor | None, weight: Tensor | None, bias: Tensor | None, *rest) -> list[Tensor]:
        """Empty tensors, of no elements for what has no gradient: contiguous, whatever the strides of an argument."""
        arguments = [weight, bias, *rest[: self.parameters + self.states]]
        y, (batch, hidden) = rest[self.parameters + self.states], arguments[-1].shape
        new_empty = arguments[-1].new_empty
        shape = 0 if weight is not None else (len(pre if y is None else y), batch, self.gates * hidden)
        return new_empty(shape), *(new_empty(0 if a is None else a.shape) for a in arguments)

    def _backward(self, *tensors) -> tuple[Tensor, ...]:
        *tensors, anchor = _contiguous(tensors)
        gradients = self._gradients(*tensors, anchor)
        d_pre, d_weight, d_bias, *d_arguments = (d if d.numel() else None for d in gradients)
        pre, weight, _, *tensors = tensors
        p, s = self.parameters, self.states
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
        entry = getattr(compile.library(self.name, like.dtype), function)
        hidden = next(t for t in tensors if isinstance(t, list) and t[0] is not None)[-1].shape[-1]
        channels = 0 if weight is None else weight.shape[1]
        sizes = (torch.get_num_threads(), *like.shape[:2], hidden, anchor, channels)
        pointers = [_array(t) if isinstance(t, list) else _pointer(t) for t in tensors]
        if entry(*map(ctypes.c_long, sizes), *pointers):
            raise MemoryError(f"{self.name}: no memory for the working space of the {function} pass")


def _numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{i}" for i in range(count)]


def _tensors(names: list[str], mark: str = "") -> str:
    return ", ".join(f"Tensor{mark} {name}" for name in names)


def _returns(count: int) -> str:
    return ", ".join(["Tensor"] * count)


def _contiguous(values: Sequence) -> list:
    return [value.contiguous() if isinstance(value, Tensor) else value for value in values]


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _array(tensors: list[Tensor | None]):
    return (ctypes.c_void_p * len(tensors))(*map(_pointer, tensors))
