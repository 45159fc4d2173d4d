"""Neural RDE: a log-ODE model of log-signatures (Morrill, Salvi, Kidger & Foster, ICML 2021).

With ``transform.depth=1 transform.step=1`` it is the Neural CDE of that paper's tables.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longwave import kernels
from longwave.models.layer import Layer
from longwave.models.network import Group, ModelConfig, Network
from longwave.schema import MODEL, Annotated, Ge, Gt, Le, OneOf

# Explicit Runge-Kutta methods: for each stage the weights of the slopes before it, and the weights of all slopes. rk4
# is the 3/8 rule, as in torchdiffeq.
SOLVERS = {
    "euler": (((),), (1.0,)),
    "heun": (((), (1.0,)), (1 / 2, 1 / 2)),
    "rk4": (((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)),
}


@dataclass
class Config(ModelConfig):
    """The log-ODE model. It reads log-signatures: ``transform=log_signature``.

    Args:
        hidden: width of the state h.
        multiplier: the vector field's layers are ``multiplier * hidden`` wide.
        layers: layers of the vector field before its last one; 1 or more.
        depth: of the log-signatures, that of the transform.
        solver: euler, heun or rk4 (the 3/8 rule), one step a block.
        adjoint: gradients by the adjoint equation, solved backwards with the same solver, where memory does not grow
            with the operations of a step; else by backpropagation through the steps. They agree up to the error of
            the solver.
        tied: the hidden layers of the vector field, all but its first, are one and the same.
        repeat_last: the last block is applied twice.
        readout_lr: times the learning rate, for the readout.

    The last three are what the paper's released code does, and off here.
    """

    name: str = "nrde"
    hidden: Annotated[int, Ge(1), Le(65536), MODEL] = 32
    multiplier: Annotated[int, Ge(1), Le(1000), MODEL] = 3
    layers: Annotated[int, Ge(1), Le(1000), MODEL] = 2
    depth: Annotated[int, MODEL] = 1
    solver: Annotated[str, OneOf(*SOLVERS)] = "rk4"
    adjoint: bool = False
    tied: Annotated[bool, MODEL] = False
    repeat_last: Annotated[bool, MODEL] = False
    readout_lr: Annotated[float, Gt(0), Le(1000)] = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.depth not in (1, 2, 3):
            raise ValueError(
                f"depth={self.depth}: nrde reads log-signatures of depth 1, 2 or 3; choose transform=log_signature"
            )

    def check(self, transform) -> None:
        if transform is None or transform.name != "log_signature" or transform.depth != self.depth:
            raise ValueError(f"model.depth={self.depth}: follows transform.depth; set that")

    def build(self, inputs: int, outputs: int) -> Network:
        # Drawn before the layer.
        readout = nn.Linear(self.hidden, outputs)
        layer = NeuralRDE(inputs, **self.settings("readout_lr"))
        return Network(layer, readout, [Group(list(readout.parameters()), lr=self.readout_lr)])


def channels_of(inputs: int, depth: int) -> int:
    """The channels, with time, of a path whose log-signature of ``depth`` has ``inputs`` components.

    Raises:
        ValueError: where there is no such number.
    """
    for channels in itertools.count(1):
        # Lyndon words of length 1, 2 and 3.
        sizes = (channels, (channels**2 - channels) // 2, (channels**3 - channels) // 3)
        size = sum(sizes[:depth])
        if size == inputs:
            return channels
        if size > inputs:
            raise ValueError(f"depth={depth}: no log-signature of this depth has {inputs} components")


class NeuralRDE(Layer):
    """h_0 = Linear(x_0), then dh/dt = F(h) logsig_k for one unit of time with each block k.

    The sequence (T, B, inputs) is as :func:`longwave.tasks.transforms.log_signature.log_signatures` makes it: the first
    entry holds x_0 in its first channels, the others log-signatures. The result is h_0 and h at the end of each block,
    (T, B, hidden), and h at the end. With a state given the first entry is a block like the others, so that a sequence
    may be given in parts.

    With ``repeat_last`` the state is two: h after one more step with the last block, which is read, and h before it,
    from which a sequence continues.

    Initialisation is PyTorch's. The solve is in the type of the weights, also under autocast.

    ``readout_lr`` is none of the settings, but the optimiser's.
    """

    stackable = False

    def __init__(self, inputs: int, hidden: int, *, batch_first: bool = False, **settings):
        super().__init__(batch_first)
        config = Config(hidden=hidden, **settings)
        self.channels = channels_of(inputs, config.depth)
        self.solver, self.adjoint, self.repeat_last = config.solver, config.adjoint, config.repeat_last
        self.initial = nn.Linear(self.channels, hidden)
        self.field = VectorField(inputs, hidden, config.multiplier * hidden, config.layers, config.tied)

    def unroll(self, x: Tensor, state: Tensor | tuple[Tensor, Tensor] | None = None):
        # A compiler would unroll the loop over the blocks. As a decorator, disable would import it with this module.
        solve = torch.compiler.disable(self._unroll) if torch.compiler.is_compiling() else self._unroll
        return solve(x, state)

    def _unroll(self, x: Tensor, state: Tensor | tuple[Tensor, Tensor] | None):
        with torch.autocast(x.device.type, enabled=False):
            if state is None:
                h = self.initial(x[0, :, : self.channels])
            else:
                h = state[1] if isinstance(state, tuple) else state
            order = [*range(1 if state is None else 0, len(x))]
            if self.repeat_last:
                order += order[-1:]
            if self.adjoint:
                if kernels.transformed():
                    raise RuntimeError("nrde: no torch.func and no forward mode with adjoint=True; use adjoint=False")
                states = Adjoint.apply(self.field, self.solver, order, h, x, *self.field.parameters())
            else:
                states = _solve(self.field, self.solver, order, h, x)
            if state is None:
                states = torch.cat([h.unsqueeze(0), states])
            sequence = states[: len(x)]
            return sequence, (states[-1], sequence[-1]) if self.repeat_last else sequence[-1]


class VectorField(nn.Module):
    """F(h) logsig, (B, hidden) and (B, inputs) to (B, hidden): a linear map of the log-signature that depends on h.

    F is Linear(hidden, width), then layers - 1 times ReLU and Linear(width, width), then tanh and
    Linear(width, hidden * inputs): it is not bounded (neuralRDEs: ncdes/model.py).
    """

    def __init__(self, inputs: int, hidden: int, width: int, layers: int, tied: bool):
        super().__init__()
        self.first = nn.Linear(hidden, width)
        own = min(layers - 1, 1) if tied else layers - 1
        self.inner = nn.ModuleList([nn.Linear(width, width) for _ in range(own)])
        self.repeats = layers - 1 if tied else 1
        self.last = nn.Linear(width, hidden * inputs)

    def forward(self, h: Tensor, logsig: Tensor) -> Tensor:
        z = self.first(h)
        for _ in range(self.repeats):
            for layer in self.inner:
                z = layer(z.relu())
        matrix = self.last(z.tanh()).unflatten(1, (h.shape[1], logsig.shape[1]))  # (B, hidden, inputs)
        return torch.bmm(matrix, logsig.unsqueeze(-1)).squeeze(-1)


def _solve(field: nn.Module, solver: str, order: list[int], h: Tensor, x: Tensor) -> Tensor:
    """h after each of the blocks x[k], k in ``order``: (len(order), B, hidden)."""
    rows, weights = SOLVERS[solver]
    blocks = x.unbind()
    sequence = []
    for k in order:
        slopes = []
        for row in rows:
            slopes.append(field(_plus(h, row, slopes), blocks[k]))
        h = _plus(h, weights, slopes)
        sequence.append(h)
    return torch.stack(sequence) if sequence else h.new_zeros(0, *h.shape)


def _plus(h: Tensor, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        h = h + weight * slope
    return h


class Adjoint(torch.autograd.Function):
    """:func:`_solve`, with gradients by the adjoint method (Chen et al., NeurIPS 2018).

    For a(t) = dL/dh(t) and f = F(h) logsig, da/dt = -a df/dh, and the gradients of all that f depends on are the
    integrals of a df/dtheta and a df/dlogsig. Backwards in time, these and h are solved with the method and the steps
    of the forward pass. Each block starts from the h that the forward pass found at its end, so that errors do not add
    up: these h are all that is kept.
    """

    @staticmethod
    def forward(ctx, field: nn.Module, solver: str, order: list[int], h: Tensor, x: Tensor, *parameters: Tensor):
        sequence = _solve(field, solver, order, h, x)
        ctx.field, ctx.solver, ctx.order = field, solver, order
        # The parameters too, so that a change of them before the backward pass is noticed.
        ctx.save_for_backward(x, sequence, *parameters)
        return sequence

    @staticmethod
    def backward(ctx, grad_sequence: Tensor):
        if torch.is_grad_enabled():
            raise RuntimeError("nrde: no second derivatives, nor create_graph=True; use adjoint=False")
        x, sequence, *_ = ctx.saved_tensors
        rows, weights = SOLVERS[ctx.solver]
        parameters = [*ctx.field.parameters()]
        grads = [torch.zeros_like(p) for p in parameters]
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[4] else None
        a = grad_sequence.new_zeros(grad_sequence.shape[1:])
        for i, k in reversed([*enumerate(ctx.order)]):
            a = a + grad_sequence[i]
            slopes_h, slopes_a = [], []
            for row, weight in zip(rows, weights, strict=True):
                with torch.enable_grad():
                    h = _plus(sequence[i], row, slopes_h).detach().requires_grad_()
                    logsig = x[k].detach().requires_grad_(grad_x is not None)
                    f = ctx.field(h, logsig)
                of, totals = [*parameters], [*grads]
                if grad_x is not None:
                    of.append(logsig)
                    totals.append(grad_x[k])
                slope_a, *parts = torch.autograd.grad(f, [h, *of], _plus(a, row, slopes_a))
                for total, part in zip(totals, parts, strict=True):
                    total += weight * part
                slopes_h.append(-f.detach())
                slopes_a.append(slope_a)
            a = _plus(a, weights, slopes_a)
        return None, None, None, a, grad_x, *grads
