"""The Python side of the C kernels: a cell of ``dense.h`` or ``diagonal.h`` as a differentiable operator of PyTorch."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import compile


@dataclass(frozen=True)
class Cell:
    """The operator ``longwave::<name>``, of which ``cpu.c`` in the folder of that name is the kernel.

    It takes ``pre`` (T, B, gates * H), the parameters and the initial states, and returns the sequence, which is the
    first state after every step, the final states, and a tape for the backward pass.

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
        inputs = ["pre", *_numbered("p", self.parameters), *_numbered("s", self.states)]
        kept = ["y", *_numbered("final", self.states)]
        given = ["g_y", *_numbered("g_final", self.states)]
        schema = f"({_tensors(inputs)}, int anchor) -> ({_returns(2 + self.states)})"
        forward = library.custom_op(
            f"longwave::{self.name}", self._forward, mutates_args=(), device_types="cpu", schema=schema
        )
        forward.register_fake(lambda pre, *rest: self._outputs(pre, rest[-1]))
        forward.register_autograd(self._differentiate, setup_context=self._keep)
        # What is not kept, and gradients that nobody asked for, are None.
        schema = f"(Tensor? pre, {_tensors(inputs[1:])}, {_tensors(kept, '?')}, Tensor tape, {_tensors(given, '?')}, "
        schema += f"int anchor) -> ({_returns(len(inputs))})"
        backward = library.custom_op(
            f"longwave::{self.name}_backward", self._backward, mutates_args=(), device_types="cpu", schema=schema
        )
        backward.register_fake(self._gradients)

    def __call__(self, pre: Tensor, parameters: Sequence[Tensor], state: Sequence[Tensor], anchor: int = 0):
        """The sequence (T, B, H), and each final state (B, H)."""
        operator = getattr(torch.ops.longwave, self.name)
        return operator(pre, *parameters, *state, anchor)[: 1 + self.states]

    def _outputs(self, pre: Tensor, anchor: int) -> tuple[Tensor, ...]:
        steps, batch, hidden = pre.shape[0], pre.shape[1], pre.shape[2] // self.gates
        if self.reversible:
            # The states after steps anchor, 2 anchor ... before the last.
            tape = ((steps - 1) // anchor if anchor else 0, batch, self.states * hidden)
        else:
            tape = (steps, batch, self.tape * hidden)
        final = [pre.new_empty(batch, hidden) for _ in range(self.states)]
        return pre.new_empty(steps, batch, hidden), *final, pre.new_empty(tape)

    def _forward(self, pre: Tensor, *rest) -> tuple[Tensor, ...]:
        *arguments, anchor = rest
        pre, arguments = pre.contiguous(), _contiguous(arguments)
        y, *final, tape = outputs = self._outputs(pre, anchor)
        parameters, state = arguments[: self.parameters], arguments[self.parameters :]
        self._call("forward", y, anchor, pre, parameters, state, y, final, tape)
        return outputs

    def _keep(self, ctx, inputs, output):
        pre, *arguments, ctx.anchor = inputs
        y, *final, tape = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(tape)
        pre = pre if self.reversible or self.incremental else None
        y, final = (None, final) if self.reversible else (y, [None] * self.states)
        ctx.save_for_backward(pre, *arguments, y, *final, tape)

    def _differentiate(self, ctx, *gradients):
        operator = getattr(torch.ops.longwave, f"{self.name}_backward")
        return *operator(*ctx.saved_tensors, *gradients[:-1], ctx.anchor), None

    def _gradients(self, pre: Tensor | None, *rest) -> list[Tensor]:
        count = self.parameters + self.states
        arguments, y = rest[:count], rest[count]
        d_pre = torch.empty_like(pre) if pre is not None else y.new_empty(*y.shape[:2], self.gates * y.shape[2])
        # Contiguous, whatever the strides of the argument.
        return d_pre.contiguous(), *(a.new_empty(a.shape) for a in arguments)

    def _backward(self, pre: Tensor | None, *rest) -> tuple[Tensor, ...]:
        *tensors, anchor = _contiguous([pre, *rest])
        d_pre, *d_arguments = gradients = self._gradients(*tensors, anchor)
        p, s = self.parameters, self.states
        pre, parameters, state = tensors[0], tensors[1 : 1 + p], tensors[1 + p : 1 + p + s]
        y, *final = tensors[1 + p + s : 2 + p + 2 * s]
        tape, g_y, *g_final = tensors[2 + p + 2 * s :]
        kept = (pre, parameters, state, y, final, tape)
        self._call("backward", d_pre, anchor, *kept, g_y, g_final, d_pre, d_arguments[:p], d_arguments[p:])
        return gradients

    def _call(self, function: str, like: Tensor, anchor: int, *tensors):
        """Calls a function of the C kernel: threads, sizes, then pointers; a list becomes an array of pointers.

        ctypes releases the interpreter's lock for the time of the call.
        """
        entry = getattr(compile.library(self.name, like.dtype), function)
        steps, batch = like.shape[:2]
        hidden = next(t for t in tensors if isinstance(t, list) and t[0] is not None)[-1].shape[-1]
        sizes = (torch.get_num_threads(), steps, batch, hidden, anchor)
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
