"""LinOSS: stacked state-space layers of linear oscillators (Rusch & Rus, ICLR 2025)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longwave import kernels
from longwave.models.irregular import durations, join, split, untimed
from longwave.models.layer import Layer, Packing, normalised
from longwave.models.network import ModelConfig, Network
from longwave.schema import LATER, Annotated, Ge, Gt, Le, Lt, OneOf


@dataclass
class Config(ModelConfig):
    """LinOSS.

    Args:
        hidden: width of the sequences between the blocks.
        state: number of oscillators in each block.
        blocks: number of stacked blocks.
        discretisation: im (implicit: dissipative) or imex (symplectic Euler: conservative).
        learned_step: the step of every oscillator is trained, as in the released code; else it is 1, as in the paper.
        dropout: probability, applied twice in each block.
        pooling: what is read out: the mean over time, as in the released code, or the last step, as in the paper; over
            or at a sequence's own steps where lengths differ.
        block: ``released``: as in the released code, which normalises by running averages (momentum 0.99) in training,
            too, takes GELU's tanh form, and drops the same values in all sequences of a batch; or ``standard``: the
            statistics of each batch, GELU itself, and each sequence by itself.
        spacing: duration between two samples that counts as one step, for irregular times: the first input channel is
            then the time (``task.time=true``), which is not an input itself. Null: samples are equally spaced.
    """

    name: str = "linoss"
    hidden: Annotated[int, Ge(1), Le(65536)] = 128
    state: Annotated[int, Ge(1), Le(65536)] = 64
    blocks: Annotated[int, Ge(1), Le(1000)] = 2
    discretisation: Annotated[str, OneOf("im", "imex")] = "im"
    learned_step: bool = True
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.05
    pooling: Annotated[str, OneOf("mean", "last")] = "mean"
    block: Annotated[str, OneOf("standard", "released"), LATER] = "standard"
    spacing: Annotated[float | None, Gt(0), Le(1e12), LATER] = None

    def build(self, inputs: int, outputs: int) -> Network:
        return Network(LinOSS(inputs, **self.settings()), nn.Linear(self.hidden, outputs))


class LinOSS(Layer):
    """A linear encoder and a stack of blocks, (T, B, inputs) to (T, B, hidden)."""

    def __init__(self, inputs: int, hidden: int, *, batch_first: bool = False, backend: str = "auto", **settings):
        super().__init__(batch_first, backend)
        config = Config(hidden=hidden, **settings)
        self.pooling, self.spacing = config.pooling, config.spacing
        # Drawn before the encoder.
        kind = ReleasedBlock if config.block == "released" else Block
        of_ssm = (hidden, config.state, config.discretisation, config.learned_step, backend, config.spacing is not None)
        blocks = [kind(hidden, SSM(*of_ssm), config.dropout) for _ in range(config.blocks)]
        self.encoder = nn.Linear(untimed(inputs, config.spacing), hidden)
        self.blocks = nn.ModuleList(blocks)

    def unroll(self, x: Tensor, state: tuple | None = None) -> tuple[Tensor, tuple]:
        """The sequence (T, B, hidden), and the state (read, steps, *oscillators), with a ``spacing`` the last time too.

        ``read`` (B, hidden) is the mean over all steps so far, or the last step; ``steps`` () is their number, (B, 1)
        behind a packed sequence; the oscillators of each block are (B, 2, 2 state). In evaluation the parts of a
        sequence give what the whole gives; in training each part has batch statistics of its own.
        """

        def read(sequence: Tensor) -> Tensor:
            return sequence[-1] if self.pooling == "last" else sequence.sum(0)

        return self._through(x, state, len(x), read, lambda unroll: unroll, None)

    def unroll_packed(self, x: Tensor, packing: Packing, state: tuple | None = None) -> tuple[Tensor, tuple]:
        def read(frames: Tensor) -> Tensor:
            if self.pooling == "last":
                return frames[packing.ends]
            return frames.new_zeros(len(packing.lengths), frames.shape[1]).index_add(0, packing.rows, frames)

        lengths = packing.lengths[:, None]
        steps = torch.arange(len(packing.sizes)).repeat_interleave(torch.tensor(packing.sizes)).to(x.device)
        return self._through(x, state, lengths, read, lambda unroll: partial(packing.unroll, unroll), steps)

    def _through(
        self,
        x: Tensor,
        state: tuple | None,
        count: int | Tensor,
        read: Callable,
        over_time: Callable,
        steps_of: Tensor | None,
    ) -> tuple[Tensor, tuple]:
        """The blocks, whose SSMs run by ``over_time(ssm)(x, state)``, on ``count`` steps.

        ``read`` takes the frames to the last ones, or to their sums; ``steps_of`` (N,) are their steps, None for a
        sequence.
        """
        times, x = split(x, self.spacing)
        if state is None:
            parts = len(self.blocks) + (times is not None)
            state = (0.0, torch.zeros((), dtype=torch.int64, device=x.device), *[None] * parts)
        before, steps, *oscillators = state
        last_time = ()
        if times is not None:
            over_time, *last_time = self._timed(over_time, times, oscillators.pop())
        sequence, final = kernels.linear(x, self.encoder.weight, self.encoder.bias), []
        for block, initial in zip(self.blocks, oscillators, strict=True):
            sequence, last = block(sequence, initial, over_time, steps_of)
            final.append(last)
        total, end = steps + count, read(sequence)
        return sequence, (end if self.pooling == "last" else (before * steps + end) / total, total, *final, *last_time)

    def _timed(self, over_time: Callable, times: Tensor, last: Tensor | None) -> tuple[Callable, Tensor]:
        """``over_time`` that puts the factor of dt before the inputs, and the last time."""
        factor, last = over_time(partial(durations, spacing=self.spacing))(times, last)

        def timed(unroll: Callable) -> Callable:
            return lambda u, state: over_time(unroll)(join(factor, u), state)

        return timed, last

    def ends(self, sequence: Tensor, lengths: Tensor) -> Tensor:
        if self.pooling == "last":
            return super().ends(sequence, lengths)
        sequence = self.exchanged(sequence)
        padding = torch.arange(len(sequence), device=sequence.device)[:, None] >= lengths  # (T, B)
        return sequence.masked_fill(padding[:, :, None], 0).sum(0) / lengths[:, None]

    def use(self, backend: str) -> None:
        super().use(backend)
        for block in self.blocks:
            block.ssm.requested = backend

    @property
    def backend(self) -> str:
        return self.blocks[0].ssm.backend


class Block(nn.Module):
    """x + dropout(GLU(dropout(GELU(SSM(BatchNorm(x)))))), (T, B, hidden), or frames (N, hidden), to the same.

    BatchNorm, without affine parameters, takes its statistics over time and batch, padding and all (a packed sequence
    has none).
    GLU(v) = (W1 v + b1) (.) sigmoid(W2 v + b2).
    """

    def __init__(self, hidden: int, ssm: "SSM", dropout: float):
        super().__init__()
        self.norm = nn.BatchNorm1d(hidden, affine=False)
        self.ssm = ssm
        self.glu = nn.Linear(hidden, 2 * hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, state: Tensor | None, over_time: Callable, steps: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``steps`` (N,) are those of frames."""
        v, final = over_time(self.ssm)(normalised(x, self.norm), state)
        v = self.dropout(F.gelu(v))
        return x + self.dropout(F.glu(self.glu(v))), final


class ReleasedBlock(Block):
    """:class:`Block` as in tk-rusch/linoss: running averages, GELU's tanh form, one dropout mask (T, hidden)."""

    def __init__(self, hidden: int, ssm: "SSM", dropout: float):
        super().__init__(hidden, ssm, dropout)
        self.norm = RunningNorm(hidden)

    def forward(
        self, x: Tensor, state: Tensor | None, over_time: Callable, steps: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        v, final = over_time(self.ssm)(self.norm(x), state)
        v = self._dropped(F.gelu(v, approximate="tanh"), steps)
        return x + self._dropped(F.glu(self.glu(v)), steps), final

    def _dropped(self, v: Tensor, steps: Tensor | None) -> Tensor:
        if not self.training or not self.dropout.p:
            return v
        count = len(v) if steps is None else int(steps[-1]) + 1
        mask = self.dropout(v.new_ones(count, v.shape[-1]))
        return v * (mask[:, None] if steps is None else mask[steps])


class RunningNorm(nn.BatchNorm1d):
    """Batch normalisation of (..., features) by running averages that have taken in the training batch before.

    mean <- 0.99 mean + 0.01 mean of the batch, and so the variance (divided by the number of rows); the first batch's
    own to begin with. The gradient goes through the batch's part. As ``equinox.nn.BatchNorm`` was before version 0.12.
    """

    def __init__(self, features: int):
        super().__init__(features, momentum=0.01, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            rows = x.flatten(0, -2).to(mean.dtype)
            first = self.num_batches_tracked == 0
            own = rows.mean(0), rows.var(0, correction=0)
            mean, var = (
                torch.where(first, new, torch.lerp(old, new, self.momentum))
                for old, new in zip((mean, var), own, strict=True)
            )
            with torch.no_grad():
                self.running_mean.copy_(mean)
                self.running_var.copy_(var)
                self.num_batches_tracked.add_(1)
        return (x - mean) / (var + self.eps).sqrt()


class SSM(nn.Module):
    """Oscillators y'' = -A y + B u, read out as Re(C y) + D u; (T, B, hidden) to the same.

    Where it is ``timed``, u has a first channel more, the factor of dt at each step.

    With z = y' and the diagonal A = relu(A_hat), one step of dt = sigmoid(s), or 1, is

        im:   z_n = z_{n-1} + dt (B u_n - A y_n),       y_n = y_{n-1} + dt z_n
        imex: z_n = z_{n-1} + dt (B u_n - A y_{n-1}),   y_n = y_{n-1} + dt z_n

    (tk-rusch/linoss: models/LinOSS.py). B, C and the states are complex, A is real: the real and the imaginary part
    of y never meet before C. They are kept as 2 ``state`` real oscillators, of which A and s belong to two each; B
    holds Re B above Im B, and C holds Re C beside -Im C.

    Initialisation: A_hat and s ~ U[0, 1), B ~ U(-k, k) with k = 1/sqrt(hidden), C with k = 1/sqrt(state), D ~ N(0, 1).
    """

    def __init__(
        self,
        hidden: int,
        state: int,
        discretisation: str,
        learned_step: bool,
        backend: str = "auto",
        timed: bool = False,
    ):
        super().__init__()
        self.discretisation, self.requested, self.timed = discretisation, backend, timed
        self.A_hat = nn.Parameter(torch.rand(state))
        self.s = nn.Parameter(torch.rand(state)) if learned_step else None
        self.B = nn.Parameter(torch.empty(2 * state, hidden).uniform_(-1, 1) / math.sqrt(hidden))
        self.C = nn.Parameter(torch.empty(hidden, 2 * state).uniform_(-1, 1) / math.sqrt(state))
        self.D = nn.Parameter(torch.randn(hidden))

    def oscillators(self) -> tuple[Tensor, Tensor]:
        """A and dt, each (state,)."""
        A = self.A_hat.relu()
        return A, torch.ones_like(A) if self.s is None else self.s.sigmoid()

    def forward(self, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The output and the final (z, y), (B, 2, 2 state), from zeros or from ``state``."""
        factor = 1.0
        if self.timed:
            factor, u = u[..., :1], u[..., 1:]
        # Under autocast the products are in bfloat16, and the recurrence in the type of its weights.
        drive = F.linear(u, self.B).to(self.A_hat.dtype)  # (T, B, 2 state)
        if state is None:
            state = drive.new_zeros(drive.shape[1], 2, drive.shape[-1])
        z, y = state.unbind(1)
        A, dt = self.oscillators()
        # The scan has no derivatives within torch.func.
        if self.backend == "scan" and not kernels.transformed():
            M, g = step(A, dt, self.discretisation)
            x = scan(M.repeat(1, 1, 2), g.repeat(1, 2) * drive.unsqueeze(-2), state)
            y, final = x[..., 1, :], x[-1]
        else:
            A, dt = A.repeat(2), dt.repeat(2) * factor
            y, (last, z) = kernels.linoss(drive, A, dt, (y, z), self.discretisation, backend=self.requested)
            final = torch.stack([z, last], dim=1)
        return F.linear(y, self.C) + self.D * u, final

    @property
    def backend(self) -> str:
        """The kernel's, or "scan": without a kernel a scan of equal steps has fewer of them than a loop."""
        found = kernels.backend_for("linoss", self.A_hat, self.requested, per_step=self.timed)
        return "scan" if self.requested == "auto" and found == "reference" and not self.timed else found


def step(A: Tensor, dt: Tensor, discretisation: str) -> tuple[Tensor, Tensor]:
    """M (2, 2, N) and g (2, N) of one step (z, y)_n = M (z, y)_{n-1} + g B u_n, from A and dt, each (N,)."""
    if discretisation == "im":
        S = 1 / (1 + dt * dt * A)
        M = torch.stack([torch.stack([S, -dt * A * S]), torch.stack([dt * S, S])])
    else:
        M = torch.stack([torch.stack([torch.ones_like(A), -dt * A]), torch.stack([dt, 1 - dt * dt * A])])
    return M, dt * M[:, 0]


def scan(M: Tensor, f: Tensor, state: Tensor) -> Tensor:
    """All x_n = M x_{n-1} + f_n by an associative scan: about 2 log2(T) steps one after the other instead of T.

    In float32 at T = 18,000 the error is 2e-4 of the largest value for imex, where a loop's is 7e-6: squared 14
    times, the rounding of M has grown.

    Args:
        M: (2, 2, N), a matrix for each of N independent pairs.
        f: (T, B, 2, N).
        state: x before the first step, (B, 2, N).

    Returns:
        (T, B, 2, N).
    """
    return _Scan.apply(M, f, state)


class _Scan(torch.autograd.Function):
    # By itself, autograd would keep every level, and pass over the sequence three times as often.
    @staticmethod
    def forward(ctx, M: Tensor, f: Tensor, state: Tensor) -> Tensor:
        x = _scan(M, f, state)
        ctx.save_for_backward(M, x, state)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        M, x, state = ctx.saved_tensors
        adjoint = M.transpose(0, 1)
        grad_f = scan(adjoint, grad.flip(0), torch.zeros_like(state)).flip(0)
        before = torch.cat([state.unsqueeze(0), x[:-1]])
        grad_M = torch.stack([(grad_f * before[..., j : j + 1, :]).sum((0, 1)) for j in range(2)], dim=1)
        return grad_M, grad_f, _times(adjoint, grad_f[0])


def _scan(M: Tensor, f: Tensor, state: Tensor) -> Tensor:
    # Two steps at once, x_{n+1} = M^2 x_{n-1} + (M f_n + f_{n+1}), are a recurrence of half the length for every
    # second x; the others follow from these by one step each.
    even, odd = f[0::2], f[1::2]
    x = torch.empty_like(f)
    if len(odd):
        squared = _times(M, M.transpose(0, 1)).transpose(0, 1)
        x[1::2] = _scan(squared, _times(M, even[: len(odd)]).add_(odd), state)
    before = torch.cat([state.unsqueeze(0), x[1::2][: len(even) - 1]])
    x[0::2] = _times(M, before).add_(even)
    return x


def _times(M: Tensor, x: Tensor) -> Tensor:
    """M x for M (2, 2, N) and x (..., 2, N)."""
    return torch.addcmul(M[:, 0] * x[..., :1, :], M[:, 1], x[..., 1:, :])
