"""The Neural RDE's steps: not a time loop of cells, but a solver over blocks, with an operator of its own."""

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from longwave.kernels import library
from longwave.kernels.derivatives import refuse_transforms, transformed
from longwave.kernels.dispatch import SOURCES, backend_for, described_by
from longwave.kernels.library import DeclarationError, Source
from longwave.kernels.nrde import reference
from longwave.kernels.nrde.reference import SOLVERS


def source(solvers: dict) -> Source:
    """The C kernel, compiled for the longest of the ``solvers``.

    Raises:
        DeclarationError: where one is no explicit method.
    """
    for name, (rows, ends) in solvers.items():
        for stage, row in enumerate(rows):
            if len(row) != stage:
                raise DeclarationError(f"nrde: {name}: stage {stage} must have {stage} weights, has {len(row)}")
        if len(ends) != len(rows) or not rows:
            raise DeclarationError(f"nrde: {name}: {len(rows)} stages and {len(ends)} weights of their slopes")
    stages = max(len(ends) for _, ends in solvers.values())
    return Source("nrde", Path(__file__).parent / "cpu.c", (f"-DSTAGES={stages}",))


SOURCES["nrde"] = source(SOLVERS)


@described_by(reference.nrde)
def nrde(x, state, weights, biases, repeats=1, *, solver="rk4", adjoint=False, repeat_last=False, backend="auto"):
    inner = _check(x, state, weights, biases, repeats, solver)
    chosen = backend_for("nrde", x, backend)
    if chosen == "reference":
        if adjoint and transformed():
            raise RuntimeError("nrde: no torch.func and no forward mode with adjoint=True; use adjoint=False")
        options = {"repeats": repeats, "solver": solver, "adjoint": adjoint, "repeat_last": repeat_last}
        return reference.nrde(x, state, weights, biases, **options)
    refuse_transforms("nrde", _instead(adjoint))
    parameters = torch.cat([p.flatten() for layer in zip(weights, biases, strict=True) for p in layer])
    # A Triton kernel computes on what is float16 or bfloat16 in float32.
    leaves = [leaf.float() if chosen == "triton" else leaf for leaf in (x, state, parameters)]
    keep = not adjoint and torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
    numbers = (len(weights[0]), inner, repeats, solver, adjoint, repeat_last)
    operator = torch.ops.longwave.nrde if chosen == "cpu" else torch.ops.longwave.nrde_triton
    return operator(*leaves, *numbers, keep)[0].to(x.dtype)


def _instead(adjoint: bool) -> str:
    """What has the derivatives that the kernel does not have."""
    return "adjoint=False" if adjoint else "backend='reference'"


def _check(x, state, weights: Sequence[Tensor], biases: Sequence[Tensor], repeats: int, solver: str) -> int:
    """The number of inner layers; ValueError or TypeError in one line where an argument is wrong."""
    if solver not in SOLVERS:
        raise ValueError(f"nrde: solver={solver!r}: must be one of {', '.join(SOLVERS)}")
    if not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"nrde: repeats={repeats!r}: must be a whole number, 1 or more")
    if len(weights) < 2 or len(biases) != len(weights):
        raise ValueError(f"nrde: {len(weights)} weights and {len(biases)} biases: must be equally many, two or more")
    given = {"x": x, "state": state}
    given |= {f"{key}[{i}]": p for key, ps in (("weights", weights), ("biases", biases)) for i, p in enumerate(ps)}
    for key, value in given.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"nrde: {key} must be a tensor, got {type(value).__name__}")
        if value.dtype != x.dtype or not x.dtype.is_floating_point:
            wanted = f"{x.dtype} as x is" if x.dtype.is_floating_point else "floating-point tensors"
            raise TypeError(f"nrde: {key} must be {wanted}, got {value.dtype}")
        if value.device != x.device:
            raise ValueError(f"nrde: {key} must be on {x.device} as x is, got {value.device}")
    if x.dim() != 3 or state.dim() != 2 or weights[0].dim() != 2:
        shapes = ", ".join(str(tuple(value.shape)) for value in (x, state, weights[0]))
        raise ValueError(f"nrde: x must be (T, B, D), state (B, H), weights[0] (W, H), got {shapes}")
    (_, batch, channels), hidden, width, inner = x.shape, state.shape[1], len(weights[0]), len(weights) - 2
    expected = {"state": ("(B, H)", (batch, hidden)), "weights[0]": ("(W, H)", (width, hidden))}
    for i in range(1, inner + 1):
        expected[f"weights[{i}]"] = ("(W, W)", (width, width))
    expected[f"weights[{inner + 1}]"] = ("(H * D, W)", (hidden * channels, width))
    for i in range(inner + 1):
        expected[f"biases[{i}]"] = ("(W,)", (width,))
    expected[f"biases[{inner + 1}]"] = ("(H * D,)", (hidden * channels,))
    for key, (words, shape) in expected.items():
        if tuple(given[key].shape) != shape:
            raise ValueError(f"nrde: {key} must be {words} = {shape}, got {tuple(given[key].shape)}")
    if 0 in (channels, hidden, width):
        raise ValueError(f"nrde: D, H and W must not be 0, got {(channels, hidden, width)}")
    return inner


def _steps(x: Tensor, repeat_last: bool) -> int:
    return len(x) + (repeat_last and len(x) > 0)


def outputs_like(
    x, state, parameters, width, inner, repeats, solver, adjoint, repeat_last, keep
) -> tuple[Tensor, Tensor]:
    """Sequence and tape; without ``keep`` that is empty."""
    steps, (batch, hidden) = _steps(x, repeat_last), state.shape
    record = hidden + (1 + inner * repeats) * width
    tape = (steps, len(SOLVERS[solver][1]), batch, record) if keep else 0
    return state.new_empty(steps, batch, hidden), state.new_empty(tape)


def _forward(x, state, parameters, width, inner, repeats, solver, adjoint, repeat_last, keep) -> tuple[Tensor, Tensor]:
    x, state, parameters = (tensor.contiguous() for tensor in (x, state, parameters))
    numbers = (width, inner, repeats, solver, adjoint, repeat_last)
    outputs = sequence, tape = outputs_like(x, state, parameters, *numbers, keep)
    kept = tape if keep else None
    _call("forward", x, sequence, width, inner, repeats, solver, x, state, parameters, sequence, kept)
    return outputs


def _gradients(x, parameters, sequence, tape, gradient, *numbers) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, empty where it is not wanted, of the state and of the parameters."""
    new_empty = parameters.new_empty
    return new_empty(x.shape if numbers[-1] else 0), new_empty(sequence.shape[1:]), new_empty(parameters.shape)


def _backward(x, parameters, sequence, tape, gradient, width, inner, repeats, solver, adjoint, repeat_last, wanted):
    x, parameters, sequence, tape, gradient = (t.contiguous() for t in (x, parameters, sequence, tape, gradient))
    d_x, d_state, d_parameters = gradients = _gradients(x, parameters, sequence, tape, gradient, wanted)
    tensors = (x, parameters, sequence, None if adjoint else tape, gradient, d_x if wanted else None, d_state)
    _call("backward", x, sequence, width, inner, repeats, solver, *tensors, d_parameters)
    return gradients


def _call(function: str, x: Tensor, sequence: Tensor, width, inner, repeats, solver, *tensors: Tensor | None):
    """Calls a function of the C kernel: threads, sizes, the solver's weights, then pointers."""
    entry = getattr(library.load(SOURCES["nrde"], x.dtype), function)
    blocks, batch, channels = x.shape
    rows, ends = SOLVERS[solver]
    table = [weight for row in rows for weight in (*row, *[0.0] * (len(ends) - len(row)))]
    sizes = (torch.get_num_threads(), len(sequence), blocks, batch, sequence.shape[2], channels)
    sizes += (width, inner, repeats, len(ends))
    arrays = [(ctypes.c_double * len(values))(*values) for values in (table, ends)]
    pointers = [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]
    if entry(*map(ctypes.c_long, sizes), *arrays, *pointers):
        raise MemoryError(f"nrde: no memory for the working space of the {function} pass")


def register(name: str, devices: str | None, forward: Callable, backward: Callable) -> None:
    """Makes a backend the operator ``longwave::<name>``, on tensors of the ``devices``, None for all.

    Args:
        forward: ``forward(x, state, parameters, width, inner, repeats, solver, adjoint, repeat_last, keep)`` gives the
            sequence and a tape for the backward pass, which is empty without ``keep``.
        backward: ``backward(x, parameters, sequence, tape, gradient, width, inner, repeats, solver, adjoint,
            repeat_last, wanted)`` gives the gradients of x, empty where it is not ``wanted``, state and parameters.
    """
    numbers = "int width, int inner, int repeats, str solver, bool adjoint, bool repeat_last, bool"
    operator = functools.partial(torch.library.custom_op, mutates_args=(), device_types=devices)

    def keep(ctx, inputs, output):
        x, _, parameters, *ctx.numbers, kept = inputs
        sequence, tape = output
        ctx.empty = not kept and not inputs[7]
        ctx.mark_non_differentiable(tape)
        ctx.save_for_backward(x, parameters, sequence, tape)

    def differentiate(ctx, gradient, _):
        wanted = ctx.needs_input_grad[0]
        if ctx.empty:
            raise RuntimeError("nrde: nothing was kept for the backward pass")
        d_x, d_state, d_parameters = of(*ctx.saved_tensors, gradient, *ctx.numbers, wanted)
        return d_x if wanted else None, d_state, d_parameters, *[None] * 7

    def remember(ctx, inputs, output):
        ctx.adjoint = inputs[9]

    def refuse(ctx, *gradients):
        raise RuntimeError(f"nrde: no second derivatives; use {_instead(ctx.adjoint)}")

    schema = f"(Tensor x, Tensor state, Tensor parameters, {numbers} keep) -> (Tensor, Tensor)"
    function = operator(f"longwave::{name}", forward, schema=schema)
    function.register_fake(outputs_like)
    function.register_autograd(differentiate, setup_context=keep)
    kept = "Tensor x, Tensor parameters, Tensor sequence, Tensor tape, Tensor gradient"
    schema = f"({kept}, {numbers} wanted) -> (Tensor, Tensor, Tensor)"
    of = operator(f"longwave::{name}_backward", backward, schema=schema)
    of.register_fake(_gradients)
    of.register_autograd(refuse, setup_context=remember)


register("nrde", "cpu", _forward, _backward)
