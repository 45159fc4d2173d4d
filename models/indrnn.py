"""IndRNN: independent rectified units (Li et al., CVPR 2018)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from longwave import kernels
from longwave.models.layer import Layer, Packing, normalised
from longwave.models.network import Group, ModelConfig, Network
from longwave.models.stack import Stack, affine, classifier
from longwave.schema import Annotated, Ge, Gt, Le, Lt, OneOf


@dataclass
class Config(ModelConfig):
    """IndRNN.

    What a unit remembers after n steps is u^n times what it was, so the bound of u follows from the number of steps
    over which it may grow. No weight decay on u and biases, whatever the optimiser's.

    Args:
        hidden: number of units in a layer.
        layers: number of layers.
        magnitude: how many times a unit may grow over ``steps`` steps: |u| <= magnitude^(1/steps), kept after
            every update. The paper has 2, the released code 5.
        steps: number of steps that ``magnitude`` refers to: the length of the sequences. With 1, the bound is
            ``magnitude`` itself.
        long_memory: whether the top layer, the only one that is read out, starts with u from magnitude^(-1/steps) to
            the bound instead of 0 to the bound; needs magnitude > 1.
        norm: batch normalisation over all frames, T times B: after (the activation), before (of the input's
            contribution W x + b) or none.
        dropout: of every layer's output, with a mask that is shared over time.
    """

    name: str = "indrnn"
    hidden: Annotated[int, Ge(1), Le(65536)] = 128
    layers: Annotated[int, Ge(1), Le(1000)] = 2
    magnitude: Annotated[float, Gt(0), Le(10**6)] = 1.0
    steps: Annotated[int, Ge(1), Le(10**9)] = 1
    long_memory: bool = False
    norm: Annotated[str, OneOf("after", "before", "none")] = "none"
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.long_memory and not self.magnitude > 1:
            raise ValueError(f"magnitude={self.magnitude}: must be greater than 1 where long_memory is true")

    def build(self, inputs: int, outputs: int) -> Network:
        layer, readout = IndRNN(inputs, **self.settings()), classifier(self.hidden, outputs)
        named = [*layer.named_parameters(), *readout.named_parameters()]
        undecayed = [p for name, p in named if name.rpartition(".")[2] in ("u", "bias")]
        return Network(layer, readout, [Group(undecayed, weight_decay=0.0)])


class IndRNN(Stack):
    """A stack of :class:`IndRNNLayer`.

    :meth:`after_step` has to be called after each step of the optimiser, for the bound of u.
    """

    def __init__(self, inputs: int, hidden: int, *, batch_first: bool = False, backend: str = "auto", **settings):
        config = Config(hidden=hidden, **settings)
        bound = config.magnitude ** (1 / config.steps)
        layers = []
        for index in range(config.layers):
            low = 1 / bound if config.long_memory and index == config.layers - 1 else 0.0
            width = hidden if index else inputs
            layers.append(IndRNNLayer(width, hidden, bound, low, config.norm, backend))
        super().__init__(layers, config.dropout, batch_first=batch_first)


class IndRNNLayer(Layer):
    """One layer, (T, B, inputs) to (T, B, hidden); the equation is at :func:`longwave.kernels.indrnn`.

    u ~ U(low, bound), the map of the input is :func:`longwave.models.stack.affine`, and the batch normalisation is
    torch's (IndRNN_pytorch: pixelMNIST/).
    """

    operation = "indrnn"

    def __init__(
        self, inputs: int, hidden: int, bound: float, low: float = 0.0, norm: str = "none", backend: str = "auto"
    ):
        super().__init__(requested=backend)
        self.bound, self.where = bound, norm
        self.affine = affine(inputs, hidden)
        self.u = nn.Parameter(torch.empty(hidden).uniform_(low, bound))
        self.norm = None if norm == "none" else nn.BatchNorm1d(hidden)

    def unroll(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The output (T, B, hidden), and the final (output, h); of these, h is what the recurrence continues with."""
        return self._normed(x, state, self._recurrence, -1)

    def unroll_packed(self, x: Tensor, packing: Packing, state: tuple[Tensor, Tensor] | None = None):
        return self._normed(x, state, partial(packing.unroll, self._recurrence), packing.ends)

    def _recurrence(self, pre: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        return kernels.indrnn(pre, self.u, h, backend=self.requested)

    def _normed(self, x: Tensor, state: tuple[Tensor, Tensor] | None, recurrence: Callable, ends: int | Tensor):
        # Under autocast the product is in bfloat16, and the recurrence in the type of its weights.
        pre = kernels.linear(x, self.affine.weight, self.affine.bias).to(self.u.dtype)
        if self.where == "before":
            pre = normalised(pre, self.norm)
        sequence, h = recurrence(pre, None if state is None else state[1])
        if self.where == "after":
            sequence = normalised(sequence, self.norm)
            return sequence, (sequence[ends], h)
        return sequence, (h, h)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Keeps u within its bound."""
        self.u.clamp_(-self.bound, self.bound)
