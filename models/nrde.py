"""Neural RDE: a log-ODE model of log-signatures (Morrill, Salvi, Kidger & Foster, ICML 2021).

With ``transform.depth=1 transform.step=1`` it is the Neural CDE of that paper's tables.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longwave import kernels
from longwave.kernels.nrde.reference import SOLVERS, field
from longwave.models.layer import Layer
from longwave.models.network import Group, ModelConfig, Network
from longwave.schema import Annotated, Ge, Gt, Le, OneOf


@dataclass
class Config(ModelConfig):
    """The log-ODE model. It reads log-signatures: ``transform=log_signature``.

    Args:
        hidden: width of the state h.
        multiplier: the vector field's layers are ``multiplier * hidden`` wide.
        layers: layers of the vector field before its last one; 1 or more.
        depth: of the log-signatures; it follows ``transform.depth``.
        solver: euler, heun or rk4 (the 3/8 rule), one step a block.
        adjoint: gradients by the adjoint equation, solved backwards with the same solver, where memory does not grow
            with the operations of a step; else by backpropagation through the steps. They agree up to the error of
            the solver.
        tied: all hidden layers of the vector field but the first share their weights.
        repeat_last: the last block is applied twice.
        readout_lr: factor of the learning rate of the readout.

    The paper's released code has the last three (``readout_lr=10``); here they are off by default.
    """

    name: str = "nrde"
    hidden: Annotated[int, Ge(1), Le(65536)] = 32
    multiplier: Annotated[int, Ge(1), Le(1000)] = 3
    layers: Annotated[int, Ge(1), Le(1000)] = 2
    depth: int = 1
    solver: Annotated[str, OneOf(*SOLVERS)] = "rk4"
    adjoint: bool = False
    tied: bool = False
    repeat_last: bool = False
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

    ``readout_lr`` is not an argument: it belongs to the optimiser.
    """

    stackable = False
    starts_from_zeros = False

    def __init__(self, inputs: int, hidden: int, *, batch_first: bool = False, backend: str = "auto", **settings):
        super().__init__(batch_first, backend)
        config = Config(hidden=hidden, **settings)
        self.channels = channels_of(inputs, config.depth)
        self.solver, self.adjoint, self.repeat_last = config.solver, config.adjoint, config.repeat_last
        self.initial = nn.Linear(self.channels, hidden)
        self.field = VectorField(inputs, hidden, config.multiplier * hidden, config.layers, config.tied)

    @property
    def backend(self) -> str:
        return kernels.backend_for("nrde", self.initial.weight, self.requested)

    def extended(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if not self.repeat_last:
            return x, lengths
        samples = torch.arange(x.shape[1], device=x.device)
        x = nn.functional.pad(x, (0, 0, 0, 0, 0, 1))
        # Out of place: a transform of the task's may need the gradient of x.
        return x.index_put((lengths, samples), x[lengths - 1, samples]), lengths + 1

    def unroll(self, x: Tensor, state: Tensor | tuple[Tensor, Tensor] | None = None):
        # A compiler would unroll the reference's loop over the blocks. As a decorator, disable would import it with
        # this module.
        eager = x.shape[0] > 1 and torch.compiler.is_compiling() and self.backend == "reference"
        solve = torch.compiler.disable(self._unroll) if eager else self._unroll
        return solve(x, state)

    def _unroll(self, x: Tensor, state: Tensor | tuple[Tensor, Tensor] | None):
        with torch.autocast(x.device.type, enabled=False):
            blocks = x[1:] if state is None else x
            if state is None:
                h = self.initial(x[0, :, : self.channels])
            else:
                h = state[1] if isinstance(state, tuple) else state
            # Without gradients they are the same, and an exporter sees operations that it knows.
            adjoint = self.adjoint and torch.is_grad_enabled()
            options = {"solver": self.solver, "adjoint": adjoint, "repeat_last": self.repeat_last}
            states = kernels.nrde(blocks, h, *self.field.layers(), **options, backend=self.requested)
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
        self.repeats = max(layers - 1, 1) if tied else 1
        self.last = nn.Linear(width, hidden * inputs)

    def layers(self) -> tuple[list[Tensor], list[Tensor], int]:
        """Weights and biases of all layers, and how often the inner ones are applied."""
        layers = (self.first, *self.inner, self.last)
        return [layer.weight for layer in layers], [layer.bias for layer in layers], self.repeats

    def forward(self, h: Tensor, logsig: Tensor) -> Tensor:
        return field(h, logsig, *self.layers())
