"""expRNN and dtriv: a recurrence with an orthogonal matrix (Lezcano-Casado 2019, with Martinez-Rubio 2019)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longwave import kernels
from longwave.models.layer import MatrixLayer
from longwave.models.network import Group, ModelConfig, Network
from longwave.schema import Annotated, Ge, Gt, Le, OneOf


@dataclass
class Config(ModelConfig):
    """expRNN, or dtriv.

    Args:
        hidden: number of units.
        mode: exprnn (the matrix is the exponential of a skew-symmetric one) or dtriv (the same around a base that
            follows the matrix).
        period: of dtriv: optimiser steps between two moves of the base.
        projection_period: of dtriv: moves of the base between two projections of it on the orthogonal group.
        initialisation: of the skew-symmetric matrix, cayley or henaff.
        orthogonal_lr: factor of the learning rate of the skew-symmetric matrix.
    """

    name: str = "exprnn"
    hidden: Annotated[int, Ge(1), Le(65536)] = 170
    mode: Annotated[str, OneOf("exprnn", "dtriv")] = "exprnn"
    period: Annotated[int, Ge(1), Le(10**9)] = 100
    projection_period: Annotated[int, Ge(1), Le(10**9)] = 100
    initialisation: Annotated[str, OneOf("cayley", "henaff")] = "cayley"
    orthogonal_lr: Annotated[float, Gt(0), Le(1000)] = 0.1

    def build(self, inputs: int, outputs: int) -> Network:
        layer = ExpRNN(inputs, **self.settings("orthogonal_lr"))
        return Network(layer, nn.Linear(self.hidden, outputs), [Group([layer.A], lr=self.orthogonal_lr)])


class ExpRNN(MatrixLayer):
    """One expRNN layer, (T, B, inputs) to (T, B, hidden).

        h_n = modReLU(K x_n + h_{n-1} B),   B = base expm(A),   A = U - U^T

    with h a row vector, U the strict upper triangle that is trained, and modReLU(v) = sign(v) relu(|v| + bias)
    (Lezcano/expRNN). In expRNN the base is the identity. In dtriv the base becomes B, and A zero, at the start and
    after every ``period`` steps of the optimiser, which leaves B as it is; every ``projection_period``-th time the base
    is replaced by the nearest orthogonal matrix, against rounding.

    The triangle is a vector of hidden (hidden - 1) / 2 parameters. The orthogonal parametrisation of
    ``torch.nn.utils`` would train hidden^2 of which half do nothing, and cannot be given the initial A.

    The initial A is zero but for 2 x 2 blocks on the diagonal, with the upper entry -sqrt((1 - cos t) / (1 + cos t)),
    t ~ U(0, pi/2) (cayley) or ~ U(-pi, pi) (henaff). K is normal with deviation sqrt(2 / inputs), the biases are
    U(-0.01, 0.01).

    ``orthogonal_lr`` is not an argument: it belongs to the optimiser.
    """

    operation = "modrelu_rnn"

    def __init__(self, inputs: int, hidden: int, *, batch_first: bool = False, backend: str = "auto", **settings):
        super().__init__(batch_first, backend)
        config = Config(hidden=hidden, **settings)
        self.hidden, self.period, self.projection_period = hidden, config.period, config.projection_period
        self.input = nn.Linear(inputs, hidden, bias=False)
        nn.init.kaiming_normal_(self.input.weight, nonlinearity="relu")
        self.register_buffer("upper", torch.triu_indices(hidden, hidden, offset=1), persistent=False)
        if config.initialisation == "cayley":
            cos = torch.empty(hidden // 2).uniform_(0, math.pi / 2).cos()
            blocks = -((1 - cos) / (1 + cos)).sqrt()
        else:
            blocks = torch.empty(hidden // 2).uniform_(-math.pi, math.pi)
        row, column = self.upper
        triangle = torch.zeros(len(row))
        triangle[(row % 2 == 0) & (column == row + 1)] = blocks
        self.A = nn.Parameter(triangle)
        self.bias = nn.Parameter(torch.empty(hidden).uniform_(-0.01, 0.01))
        self.register_buffer("base", torch.eye(hidden) if config.mode == "dtriv" else None)
        if self.base is not None:
            self._move()

    def unroll(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The hidden states (T, B, hidden), and the final one (B, hidden)."""
        # The operation's h W^T is this h B.
        pre = kernels.Input(x, self.input.weight)
        return kernels.modrelu_rnn(pre, self.matrix().T, self.bias, state, backend=self.requested)

    def after_step(self, step: int) -> None:
        """Moves the base of dtriv where it is due; that depends on the step alone, as a resumed run needs it."""
        if self.base is not None and step % self.period == 0:
            self._move(project=step // self.period % self.projection_period == 0)

    @torch.no_grad()
    def _move(self, project: bool = False) -> None:
        base = self.matrix()
        if project:
            u, _, v = torch.linalg.svd(base)
            base = u @ v
        self.base.copy_(base)
        self.A.zero_()

    def _matrix(self) -> Tensor:
        """The B of the equation."""
        upper = self.A.new_zeros(self.hidden, self.hidden).index_put(tuple(self.upper), self.A)
        exponential = torch.matrix_exp(upper - upper.T)
        return exponential if self.base is None else self.base @ exponential
