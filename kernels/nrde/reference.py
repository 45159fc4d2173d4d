"""The Neural RDE's steps in plain PyTorch: the definition, and the adjoint method."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Explicit Runge-Kutta methods: for each stage the weights of the slopes before it, and the weights of all slopes. rk4
# is the 3/8 rule, as in torchdiffeq.
SOLVERS = {
    "euler": (((),), (1.0,)),
    "heun": (((), (1.0,)), (1 / 2, 1 / 2)),
    "rk4": (((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)),
}


def field(h: Tensor, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], repeats: int = 1) -> Tensor:
    """F(h) x of :func:`nrde`, (B, H) and (B, D) to (B, H)."""
    z = F.linear(h, weights[0], biases[0])
    for _ in range(repeats):
        for weight, bias in zip(weights[1:-1], biases[1:-1], strict=True):
            z = F.linear(z.relu(), weight, bias)
    matrix = F.linear(z.tanh(), weights[-1], biases[-1]).unflatten(1, (h.shape[1], x.shape[1]))  # (B, H, D)
    return torch.bmm(matrix, x.unsqueeze(-1)).squeeze(-1)


def nrde(
    x: Tensor,
    state: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    repeats: int = 1,
    *,
    solver: str = "rk4",
    adjoint: bool = False,
    repeat_last: bool = False,
) -> Tensor:
    """Solve dh/dt = F(h) x_n for one unit of time with each block n (Morrill et al., ICML 2021).

    F(h) is an (H, D) matrix, of an MLP: a linear layer, then for each inner one ReLU and a linear layer, then tanh and
    a linear layer.

    Args:
        x: (T, B, D), the log-signature of each block.
        state: initial h, (B, H).
        weights: of the linear layers: (W, H), any number of inner (W, W), and (H * D, W), whose rows are those of
            F(h) one after the other.
        biases: (W,), one (W,) for each inner layer, and (H * D,).
        repeats: how often the inner layers are applied, one after the other; 1 or more.
        solver: euler, heun or rk4 (the 3/8 rule), one step a block.
        adjoint: gradients by the adjoint equation, solved backwards with the same solver, for which only the result is
            stored; else by backpropagation through the steps.
        repeat_last: whether the last block is applied twice.

    Returns:
        h after each step, (T, B, H); (T + 1, B, H) with ``repeat_last``.
    """
    order = [*range(len(x))]
    if repeat_last:
        order += order[-1:]
    if adjoint:
        return Adjoint.apply(solver, repeats, order, state, x, *weights, *biases)
    return _solve(solver, repeats, order, state, x, weights, biases)


def _solve(solver: str, repeats: int, order: list[int], h: Tensor, x: Tensor, weights, biases) -> Tensor:
    """h after each of the blocks x[k], k in ``order``: (len(order), B, H)."""
    rows, ends = SOLVERS[solver]
    blocks = x.unbind()
    sequence = []
    for k in order:
        slopes = []
        for row in rows:
            slopes.append(field(_plus(h, row, slopes), blocks[k], weights, biases, repeats))
        h = _plus(h, ends, slopes)
        sequence.append(h)
    return torch.stack(sequence) if sequence else h.new_zeros(0, *h.shape)


def _plus(h: Tensor, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        h = h + weight * slope
    return h


class Adjoint(torch.autograd.Function):
    """:func:`_solve`, with gradients by the adjoint method (Chen et al., NeurIPS 2018).

    For a(t) = dL/dh(t) and f = F(h) x, da/dt = -a df/dh, and the gradients of all that f depends on are the integrals
    of a df/dtheta and a df/dx. Backwards in time, these and h are solved with the method and the steps of the forward
    pass. Each block starts from the h that the forward pass found at its end, so that errors do not add up: these h
    are all that is kept.
    """

    @staticmethod
    def forward(ctx, solver: str, repeats: int, order: list[int], h: Tensor, x: Tensor, *parameters: Tensor):
        middle = len(parameters) // 2
        sequence = _solve(solver, repeats, order, h, x, parameters[:middle], parameters[middle:])
        ctx.solver, ctx.repeats, ctx.order = solver, repeats, order
        ctx.save_for_backward(x, sequence, *parameters)
        return sequence

    @staticmethod
    def backward(ctx, grad_sequence: Tensor):
        if torch.is_grad_enabled():
            raise RuntimeError("nrde: no second derivatives, nor create_graph=True; use adjoint=False")
        x, sequence, *parameters = ctx.saved_tensors
        # In place of those of the caller, which may be the results of other operations.
        parameters = [p.detach().requires_grad_() for p in parameters]
        middle = len(parameters) // 2
        rows, ends = SOLVERS[ctx.solver]
        grads = [torch.zeros_like(p) for p in parameters]
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[4] else None
        a = grad_sequence.new_zeros(grad_sequence.shape[1:])
        for i, k in reversed([*enumerate(ctx.order)]):
            a = a + grad_sequence[i]
            slopes_h, slopes_a = [], []
            for row, weight in zip(rows, ends, strict=True):
                with torch.enable_grad():
                    h = _plus(sequence[i], row, slopes_h).detach().requires_grad_()
                    block = x[k].detach().requires_grad_(grad_x is not None)
                    f = field(h, block, parameters[:middle], parameters[middle:], ctx.repeats)
                of, totals = [*parameters], [*grads]
                if grad_x is not None:
                    of.append(block)
                    totals.append(grad_x[k])
                slope_a, *parts = torch.autograd.grad(f, [h, *of], _plus(a, row, slopes_a))
                for total, part in zip(totals, parts, strict=True):
                    total += weight * part
                slopes_h.append(-f.detach())
                slopes_a.append(slope_a)
            a = _plus(a, ends, slopes_a)
        return None, None, None, a, grad_x, *grads
