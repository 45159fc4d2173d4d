"""What fused kernels do not have: the transforms of ``torch.func`` but vmap, forward mode, and second derivatives."""

from collections.abc import Callable

import torch
from torch.autograd import forward_ad


def constant(function: Callable) -> Callable:
    """``torch.compiler.assume_constant_result``, which spends seconds on importing torch._dynamo to do the same."""
    function._dynamo_marked_constant = True
    return function


@constant
def transformed() -> bool:
    """True within a transform of ``torch.func``, or in forward mode."""
    return _differentiated() or bool(torch._C._functorch.get_interpreter_stack())


@constant
def _differentiated() -> bool:
    vmap = torch._C._functorch.TransformType.Vmap
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return forward_ad._current_level >= 0 or any(level.key() != vmap for level in levels)


def refuse_transforms(name: str, instead: str = "backend='reference'") -> None:
    """Raise RuntimeError within a transform that differentiates, where torch would fail at length, or give zeros."""
    if _differentiated():
        raise RuntimeError(f"{name}: no derivatives by torch.func or in forward mode; use {instead}")


def refuse_second_derivatives(name: str, gradient) -> None:
    """Let the operator ``gradient`` fail in one line where it is differentiated itself."""

    def fail(ctx, *gradients):
        raise RuntimeError(f"{name}: no second derivatives; use backend='reference'")

    gradient.register_autograd(fail)
