"""expRNN and dtriv: a recurrence with an orthogonal matrix (Lezcano-Casado 2019, with Martinez-Rubio 2019)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longwave import kernels
from longwave.models.network import Group, Network


@dataclass
class Config:
    """expRNN, or dtriv.

    Args:
        hidden: number of units.
        mode: exprnn (the matrix is the exponential of a skew-symmetric one) or dtriv (the same around a base that
            follows the matrix).
        period: of dtriv: optimiser steps between two moves of the base.
        projection_period: of dtriv: moves of the base between two projections of it on the orthogonal group.
        initialisation: of the skew-symmetric matrix, cayley or henaff.
        orthogonal_lr: learning rate of the skew-symmetric matrix, times the optimiser's; > 0.
    """

    name: str = "exprnn"
    hidden: int = 170
    mode: str = "exprnn"
    period: int = 100
    projection_period: int = 100
    initialisation: str = "cayley"
    orthogonal_lr: float = 0.1

    def __post_init__(self):
        for key in ("hidden", "period", "projection_period"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: must be 1 or more")
        if self.mode not in ("exprnn", "dtriv"):
            raise ValueError(f"mode={self.mode}: must be one of exprnn, dtriv")
        if self.initialisation not in ("cayley", "henaff"):
            raise ValueError(f"initialisation={self.initialisation}: must be one of cayley, henaff")
        if not self.orthogonal_lr > 0:
            raise ValueError(f"orthogonal_lr={self.orthogonal_lr}: must be > 0")

    def build(self, inputs: int, outputs: int) -> Network:
        moves = (self.period, self.projection_period) if self.mode == "dtriv" else None
        layer = ExpRNN(inputs, self.hidden, self.initialisation, moves)
        return Network(layer, nn.Linear(self.hidden, outputs), [Group([layer.A], lr=self.orthogonal_lr)])


class ExpRNN(nn.Module):
    """One expRNN layer, (T, B, inputs) to (T, B, hidden).

        h_n = modReLU(K x_n + h_{n-1} B),   B = base expm(A),   A = U - U^T

    with h a row vector, U the strict upper triangle that is trained, and modReLU(v) = sign(v) relu(|v| + bias)
    (Lezcano/expRNN). In expRNN the base is the identity. In dtriv the base becomes B, and A zero, after every
    ``period`` steps of the optimiser, which leaves B as it is; every ``projection_period``-th time the base is
    replaced by the nearest orthogonal matrix, against rounding.

    The triangle is a vector of hidden (hidden - 1) / 2 parameters. The orthogonal parametrisation of
    ``torch.nn.utils`` would train hidden^2 of which half do nothing, and cannot be given the initial A.

    Args:
        inputs: input channels.
        hidden: number of units.
        initialisation: A is zero but for 2 x 2 blocks on the diagonal, with the upper entry -sqrt((1 - cos t) /
            (1 + cos t)), t ~ U(0, pi/2) (cayley) or ~ U(-pi, pi) (henaff). K is normal with deviation
            sqrt(2 / inputs), the biases are U(-0.01, 0.01).
        moves: (period, projection_period) of dtriv; None for expRNN.
    """

    def __init__(self, inputs: int, hidden: int, initialisation: str, moves: tuple[int, int] | None = None):
        super().__init__()
        self.hidden, self.moves = hidden, moves
        self.input = nn.Linear(inputs, hidden, bias=False)
        nn.init.kaiming_normal_(self.input.weight, nonlinearity="relu")
        self.register_buffer("upper", torch.triu_indices(hidden, hidden, offset=1), persistent=False)
        if initialisation == "cayley":
            cos = torch.empty(hidden // 2).uniform_(0, math.pi / 2).cos()
            blocks = -((1 - cos) / (1 + cos)).sqrt()
        else:
            blocks = torch.empty(hidden // 2).uniform_(-math.pi, math.pi)
        row, column = self.upper
        triangle = torch.zeros(len(row))
        triangle[(row % 2 == 0) & (column == row + 1)] = blocks
        self.A = nn.Parameter(triangle)
        self.bias = nn.Parameter(torch.empty(hidden).uniform_(-0.01, 0.01))
        self.register_buffer("base", None if moves is None else torch.eye(hidden))

    def B(self) -> Tensor:
        """The orthogonal matrix, (hidden, hidden)."""
        # In bfloat16 it would not be orthogonal.
        with torch.autocast(self.A.device.type, enabled=False):
            upper = self.A.new_zeros(self.hidden, self.hidden).index_put(tuple(self.upper), self.A)
            exponential = torch.matrix_exp(upper - upper.T)
            return exponential if self.base is None else self.base @ exponential

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The hidden states (T, B, hidden) and the final one, (B, hidden), from zeros or from ``state``."""
        # The operation's h W^T is this h B.
        return kernels.modrelu_rnn(kernels.Input(x, self.input.weight), self.B().T, self.bias, state)

    def updated(self, step: int) -> None:
        """Moves the base of dtriv, where it is time; the step alone says so, and a resumed run does the same."""
        if self.moves is None or step % self.moves[0]:
            return
        base = self.B()
        if step // self.moves[0] % self.moves[1] == 0:
            u, _, v = torch.linalg.svd(base)
            base = u @ v
        self.base.copy_(base)
        self.A.zero_()

    def backend(self) -> str:
        """What computes the time loop where the weights are now."""
        return kernels.backend_for("modrelu_rnn", self.A.new_empty(1, 1, self.hidden))
