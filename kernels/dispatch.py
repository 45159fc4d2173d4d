"""One dispatcher for all operations: checks the arguments, picks the backend, calls it.

A fused backend is a function ``backend(pre, *parameters, *state) -> (sequence, *final state)``. It gets what this
module has checked: ``pre`` (T, B, gates * H), or the ``Input`` that makes it; the parameters in the order of
``Operation.parameters``, scalars as (H,) tensors; every initial state as a (B, H) tensor; what is no tensor by keyword.
It is differentiable in all of the tensors but an ``Input``'s x.
"""

import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from longwave.kernels import library
from longwave.kernels.derivatives import constant, refuse_transforms
from longwave.kernels.linear import Input, linear
from longwave.kernels.operation import OPERATIONS, SCALAR, Operation

BACKENDS = ("auto", "reference", "cpu", "triton")
HALF = (torch.bfloat16, torch.float16)
# Of functions that are no Operation, the C file; triton.py is beside it.
SOURCES: dict[str, library.Source] = {}


def backend_for(name: str, pre: Tensor, backend: str = "auto", per_step: bool = False) -> str:
    """The backend that operation ``name`` runs on for ``pre``: "reference", "cpu" or "triton".

    "auto" is Triton for CUDA tensors, the C kernel for CPU tensors, and the reference where there is none, where it
    cannot be built, or where a parameter differs ``per_step``. A backend that is asked for by name and cannot run
    raises a ``RuntimeError`` that says why.
    """
    if backend not in BACKENDS:
        raise ValueError(f"{name}: backend={backend!r}: must be one of {', '.join(BACKENDS)}")
    if per_step:
        if backend in ("auto", "reference"):
            return "reference"
        raise RuntimeError(f"{name}: backend={backend!r} cannot run: only the reference takes a dt for each step")
    device = pre.device.type
    wanted = {"cuda": "triton", "cpu": "cpu"}.get(device, "reference") if backend == "auto" else backend
    if wanted == "reference":
        return wanted
    if wanted == "cpu" and device != "cpu":
        raise RuntimeError(f"{name}: backend='cpu' needs CPU tensors, pre is on {pre.device}")
    obstacle = _cpu_obstacle(name, pre.dtype) if wanted == "cpu" else _triton_obstacle(name, device, pre.dtype)
    if obstacle is None:
        return wanted
    if backend == "auto":
        return "reference"
    raise RuntimeError(f"{name}: backend={backend!r} cannot run: {obstacle}")


# Whether a backend can run is decided while torch.compile traces, and is a constant of the graph.
@constant
def _cpu_obstacle(name: str, dtype: torch.dtype) -> str | None:
    source = _source(name)
    if not source.path.exists():
        return "there is no C kernel for it"
    if dtype not in library.REAL:
        return f"the C kernels are for float32 and float64, not {dtype}"
    return library.obstacle(source, dtype)


@constant
def _triton_obstacle(name: str, device: str, dtype: torch.dtype) -> str | None:
    folder = _source(name).path.parent
    if not (folder / "triton.py").exists():
        return "there is no Triton kernel for it"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it needs CUDA tensors, not {device} (or TRITON_INTERPRET=1, for tests)"
    if dtype == torch.float64:
        return "the Triton kernels compute in float32, pre is float64"
    # Here, where torch.compile does not trace: it refuses to trace an import_module.
    importlib.import_module(f"longwave.kernels.{folder.name}.triton")
    return None


def _source(name: str) -> library.Source:
    return SOURCES[name] if name in SOURCES else OPERATIONS[name].source


def described_by(definition: Callable) -> Callable:
    """Decorator: name, signature and docstring of a definition, with ``backend`` as another argument."""

    def described(function: Callable) -> Callable:
        function = functools.wraps(definition)(function)
        signature = inspect.signature(definition)
        backend = inspect.Parameter("backend", inspect.Parameter.KEYWORD_ONLY, default="auto", annotation=str)
        function.__signature__ = signature.replace(parameters=[*signature.parameters.values(), backend])
        text = """
    backend: "auto" (Triton for CUDA tensors, the C kernel for CPU tensors, else the reference), "reference", "cpu" or
        "triton".

Returns:"""
        function.__doc__ = inspect.getdoc(definition).replace("\n\nReturns:", text)
        return function

    return described


def public(operation: Operation, **variants: Operation) -> Callable:
    """The function of an operation, described by its definition.

    Each of ``variants`` is computed instead where the argument of its name is true.
    """
    definition = inspect.signature(operation.reference)

    @described_by(operation.reference)
    def function(*arguments, backend: str = "auto", **keywords):
        bound = definition.bind(*arguments, **keywords)
        bound.apply_defaults()
        given, chosen = dict(bound.arguments), operation
        for key, variant in variants.items():
            chosen = variant if given.pop(key) else chosen
        options = {key: given.pop(key) for key in operation.options}
        return _run(chosen.name, backend, given.pop("pre"), given.pop("state"), options, given)

    return function


def _run(name: str, backend: str, pre: Tensor | Input, state, options: dict, parameters: dict):
    """The sequence (T, B, H) and the final state, on the backend that :func:`backend_for` gives.

    ``options`` and ``parameters`` have the names that the operation declares; a backend gets options by keyword.
    ``state`` is a tensor where the operation has one state, else a tuple; None for zeros.
    """
    operation, given = OPERATIONS[name], pre
    if any(isinstance(parameters[key], Tensor) and parameters[key].dim() == 3 for key in operation.per_step):
        backend = backend_for(name, pre, backend, per_step=True)
    for key, (allowed, words) in operation.options.items():
        if not allowed(options[key]):
            raise ValueError(f"{name}: {key}={options[key]!r}: must be {words}")
    if isinstance(given, Input):
        if operation.dense and given.narrow() and backend_for(name, given.x, backend) == "cpu":
            pre = given.outline()
        else:
            # Under autocast the product is in bfloat16, and the recurrence in the type of its weights.
            given = pre = linear(*given).to(given.weight.dtype)
    hidden = _check_pre(operation, pre)
    parameters |= {key: pre.new_zeros(hidden) for key in operation.optional if parameters[key] is None}
    _check_parameters(operation, pre, hidden, parameters)
    initial = _initial(operation, pre, hidden, state)
    chosen = backend_for(name, pre, backend)
    if chosen == "reference":
        dtype = pre.dtype
        if operation.half and dtype in HALF:
            pre, initial = pre.float(), tuple(value.float() for value in initial)
            parameters = {k: v.float() if isinstance(v, Tensor) else v for k, v in parameters.items()}
        sequence, final = operation.reference(pre, **parameters, state=_packed(initial), **options)
        return sequence.to(dtype), final
    refuse_transforms(name)
    values = [
        _per_unit(value, pre, hidden) if operation.parameters[key] == SCALAR else value
        for key, value in parameters.items()
    ]
    if chosen == "triton":
        fused = getattr(sys.modules[f"longwave.kernels.{operation.folder}.triton"], name)
        sequence, *final = fused(given, *values, *initial, **options)
    elif operation.cpu is None:
        sequence, *final = operation.kernel(given, values, initial, **options)
    else:
        sequence, *final = operation.cpu(operation.kernel, given, *values, *initial, **options)
    return sequence, _packed(final)


def _packed(states):
    return states[0] if len(states) == 1 else tuple(states)


def _per_unit(value: float | Tensor, pre: Tensor, hidden: int) -> Tensor:
    if isinstance(value, Tensor):
        return value.expand(hidden)
    return pre.new_full((hidden,), value, dtype=torch.float32 if pre.dtype in HALF else pre.dtype)


def _check_pre(operation: Operation, pre: Tensor) -> int:
    width = "H" if operation.gates == 1 else f"{operation.gates}H"
    given = tuple(pre.shape) if isinstance(pre, Tensor) else type(pre).__name__
    if not isinstance(pre, Tensor) or pre.dim() != 3 or pre.shape[2] % operation.gates:
        raise ValueError(f"{operation.name}: pre must be (T, B, {width}), got {given}")
    if 0 in pre.shape:
        raise ValueError(f"{operation.name}: pre must be (T, B, {width}) with none of them 0, got {given}")
    if not pre.dtype.is_floating_point:
        raise TypeError(f"{operation.name}: pre must be a floating-point tensor, got {pre.dtype}")
    return pre.shape[2] // operation.gates


def _check_parameters(operation: Operation, pre: Tensor, hidden: int, parameters: dict):
    for key, value in parameters.items():
        shape = operation.parameters[key]
        if shape == SCALAR and isinstance(value, float | int):
            continue
        if not isinstance(value, Tensor):
            kind = "a number or a tensor" if shape == SCALAR else "a tensor"
            raise TypeError(f"{operation.name}: {key} must be {kind}, got {type(value).__name__}")
        if shape == SCALAR:
            allowed, words = ((), (hidden,)), f"a number, () or (H,) = ({hidden},)"
            if key in operation.per_step:
                steps = tuple(pre.shape[:2])
                allowed, words = (*allowed, (*steps, 1), (*steps, hidden)), f"{words}, (T, B, 1) or (T, B, H)"
        else:
            symbols = ", ".join("H" if factor == 1 else f"{factor}H" for factor in shape) + "," * (len(shape) == 1)
            expected = tuple(hidden * factor for factor in shape)
            allowed, words = (expected,), f"({symbols}) = {expected}"
        if tuple(value.shape) not in allowed:
            raise ValueError(f"{operation.name}: {key} must be {words}, got {tuple(value.shape)}")
        _check_kind(operation, key, value, pre)


def _check_kind(operation: Operation, key: str, value: Tensor, pre: Tensor):
    if value.device != pre.device:
        raise ValueError(f"{operation.name}: {key} must be on {pre.device} as pre is, got {value.device}")
    mixed = operation.half and pre.dtype in HALF and value.dtype == torch.float32
    if value.dtype != pre.dtype and not mixed:
        raise TypeError(f"{operation.name}: {key} must be {pre.dtype} as pre is, got {value.dtype}")


def _initial(operation: Operation, pre: Tensor, hidden: int, state) -> tuple[Tensor, ...]:
    names, shape = operation.states, (pre.shape[1], hidden)
    if state is None:
        # One tensor each: a backend may return what it was given.
        return tuple(pre.new_zeros(shape) for _ in names)
    states = tuple(state) if isinstance(state, tuple | list) else (state,)
    if len(states) != len(names) or not all(isinstance(s, Tensor) for s in states):
        given = ", ".join(str(tuple(s.shape)) if isinstance(s, Tensor) else type(s).__name__ for s in states)
        raise ValueError(f"{operation.name}: state must be ({', '.join(names)}), each (B, H) = {shape}, got {given}")
    for key, value in zip(names, states, strict=True):
        if tuple(value.shape) != shape:
            raise ValueError(f"{operation.name}: state {key} must be (B, H) = {shape}, got {tuple(value.shape)}")
        _check_kind(operation, f"state {key}", value, pre)
    return states
