"""Spectral RNN and oRNN: a recurrence whose matrix is a product of Householder reflections."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longwave import kernels
from longwave.models.layer import MatrixLayer
from longwave.models.network import ModelConfig, Network
from longwave.schema import Annotated, Ge, Le


@dataclass
class Config(ModelConfig):
    """Spectral RNN (Zhang, Lei & Dhillon 2018), or oRNN (Mhammedi et al. 2017).

    Args:
        hidden: number of units.
        reflectors: number of Householder reflections of each orthogonal matrix, at most ``hidden``; by default a
            quarter of it, but at least one.
        margin: of Spectral RNN: the singular values lie within 1 - margin and 1 + margin.
        orthogonal: the matrix is one product of reflections, as oRNN's, whose slope is 0.1.
        slope: of the leaky ReLU's negative side; 0 is the ReLU.
    """

    name: str = "spectral_rnn"
    hidden: Annotated[int, Ge(1), Le(65536)] = 128
    reflectors: Annotated[int | None, Ge(1), Le(65536)] = None
    margin: Annotated[float, Ge(0), Le(1)] = 0.01
    orthogonal: bool = False
    slope: Annotated[float, Ge(0), Le(1)] = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.reflectors is not None and self.reflectors > self.hidden:
            raise ValueError(f"reflectors={self.reflectors}: must be at most hidden={self.hidden}")
        if self.orthogonal and self.margin != Config.margin:
            raise ValueError(f"margin={self.margin}: must be {Config.margin}, the default, where orthogonal is true")

    def build(self, inputs: int, outputs: int) -> Network:
        readout = nn.Linear(self.hidden, outputs)
        for parameter in readout.parameters():
            nn.init.trunc_normal_(parameter, std=0.1, a=-0.2, b=0.2)
        return Network(SpectralRNN(inputs, **self.settings()), readout)


class SpectralRNN(MatrixLayer):
    """One Spectral RNN layer, (T, B, inputs) to (T, B, hidden), as in zhangjiong724/spectral-RNN.

        h_n = phi(W h_{n-1} + M x_n + b),   W = Q(U) diag(sigma) Q(V)^T
        Q(U) = (I - 2 u_1 u_1^T / |u_1|^2) ... (I - 2 u_m u_m^T / |u_m|^2)
        sigma = 1 + 2 margin (sigmoid(p) - 1/2)

    with phi a leaky ReLU. Vector u_i is zero in its first i - 1 entries. After each step of the optimiser all are
    scaled to length 1, which leaves W as it is. With ``orthogonal``, W is Q(U): with a slope of 0.1 an oRNN
    (zmhammedi/Orthogonal_RNN), without the trained initial state of its released code. With as many reflections as
    units the last one only flips a sign, in whose place the released code trains a factor.

    U, V and M start from Glorot's uniform distribution, b and p at 0.
    """

    operation = "leaky_relu_rnn"

    def __init__(self, inputs: int, hidden: int, *, batch_first: bool = False, backend: str = "auto", **settings):
        super().__init__(batch_first, backend)
        config = Config(hidden=hidden, **settings)
        self.hidden, self.margin, self.slope = hidden, config.margin, config.slope
        self.reflectors = config.reflectors or max(hidden // 4, 1)
        self.input = nn.Linear(inputs, hidden)
        nn.init.xavier_uniform_(self.input.weight)
        nn.init.zeros_(self.input.bias)
        # Follows from the sizes, and moves to the device with the parameters.
        self.register_buffer("places", torch.triu_indices(self.reflectors, hidden), persistent=False)
        self.U = self._vectors()
        self.V, self.p = None, None
        if not config.orthogonal:
            self.V, self.p = self._vectors(), nn.Parameter(torch.zeros(hidden))

    def unroll(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The hidden states h (T, B, hidden), and the final one."""
        pre = kernels.Input(x, self.input.weight, self.input.bias)
        return kernels.leaky_relu_rnn(pre, self.matrix(), self.slope, state, backend=self.requested)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Scales the vectors of all reflections to length 1."""
        for packed in (self.U, self.V):
            if packed is not None:
                rows = self._rows(packed)
                packed.copy_((rows / rows.norm(dim=1, keepdim=True))[tuple(self.places)])

    def _matrix(self) -> Tensor:
        q = self._product(self.U)
        if self.V is None:
            return q
        sigma = 1 + 2 * self.margin * (self.p.sigmoid() - 0.5)
        return q * sigma @ self._product(self.V).T

    def _vectors(self) -> nn.Parameter:
        """The entries of the vectors that are not zero by definition, row by row."""
        rows = torch.empty(self.reflectors, self.hidden)
        return nn.Parameter(nn.init.xavier_uniform_(rows)[tuple(self.places)])

    def _rows(self, packed: Tensor) -> Tensor:
        """The vectors, (reflectors, hidden)."""
        return packed.new_zeros(self.reflectors, self.hidden).index_put(tuple(self.places), packed)

    def _product(self, packed: Tensor) -> Tensor:
        """Q = I - U T^-1 U^T, with T the upper triangle of U^T U whose diagonal is halved: the compact WY form."""
        # No triangular system is solved in half precision.
        rows = self._rows(packed.to(torch.promote_types(packed.dtype, torch.float32)))
        gram = rows @ rows.T
        upper = gram.triu() - gram.diagonal().diag() / 2
        solved = torch.linalg.solve_triangular(upper, rows, upper=True)
        return (torch.eye(self.hidden, dtype=rows.dtype, device=rows.device) - rows.T @ solved).to(packed.dtype)
