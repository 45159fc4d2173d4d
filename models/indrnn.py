"""IndRNN: independent rectified units (Li et al., CVPR 2018)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longwave import kernels
from longwave.models.network import Group, Network
from longwave.models.stack import Stack, affine, classifier

NORMS = ("after", "before", "none")


@dataclass
class Config:
    """IndRNN.

    What a unit remembers after n steps is u^n times what it was, so the bound of u follows from the number of steps
    over which it may grow. No weight decay on u and biases, whatever the optimiser's.

    Args:
        hidden: number of units in a layer.
        layers: number of layers.
        magnitude: how many times a unit may grow over ``steps`` steps, > 0; |u| <= magnitude^(1/steps), kept after
            every update. The paper has 2, the released code 5.
        steps: number of steps that ``magnitude`` speaks of: the length of the sequences. With 1, the bound is
            ``magnitude`` itself.
        long_memory: whether the top layer, the only one that is read out, begins with u from magnitude^(-1/steps) to
            the bound instead of 0 to the bound; needs magnitude > 1.
        norm: batch normalisation over all frames, T times B: after (the activation), before (of the input's
            contribution W x + b) or none.
        dropout: of every layer's output, with a mask that is shared over time; in [0, 1).
    """

    name: str = "indrnn"
    hidden: int = 128
    layers: int = 2
    magnitude: float = 1.0
    steps: int = 1
    long_memory: bool = False
    norm: str = "none"
    dropout: float = 0.0

    def __post_init__(self):
        for key in ("hidden", "layers", "steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: must be 1 or more")
        if not self.magnitude > 0:
            raise ValueError(f"magnitude={self.magnitude}: must be > 0")
        if self.long_memory and not self.magnitude > 1:
            raise ValueError(f"magnitude={self.magnitude}: must be > 1 where long_memory is true")
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm}: must be one of {', '.join(NORMS)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: must be in [0, 1)")

    def build(self, inputs: int, outputs: int) -> Network:
        bound = self.magnitude ** (1 / self.steps)
        layers = []
        for index in range(self.layers):
            low = 1 / bound if self.long_memory and index == self.layers - 1 else 0.0
            layers.append(IndRNNLayer(self.hidden if index else inputs, self.hidden, bound, low, self.norm))
        stack, readout = Stack(layers, self.dropout), classifier(self.hidden, outputs)
        named = [*stack.named_parameters(), *readout.named_parameters()]
        undecayed = [p for name, p in named if name.rpartition(".")[2] in ("u", "bias")]
        return Network(stack, readout, [Group(undecayed, weight_decay=0.0)])


class IndRNNLayer(nn.Module):
    """One layer, (T, B, inputs) to (T, B, hidden); the equation is at :func:`longwave.kernels.indrnn`.

    u ~ U(low, bound), the map of the input is :func:`longwave.models.stack.affine`, and the batch normalisation is
    torch's (IndRNN_pytorch: pixelMNIST/).
    """

    def __init__(self, inputs: int, hidden: int, bound: float, low: float = 0.0, norm: str = "none"):
        super().__init__()
        self.bound, self.where = bound, norm
        self.affine = affine(inputs, hidden)
        self.u = nn.Parameter(torch.empty(hidden).uniform_(low, bound))
        self.norm = None if norm == "none" else nn.BatchNorm1d(hidden)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The output (T, B, hidden) and the final (output, h), from zeros or from the h of ``state``.

        h, before the normalisation, is what the recurrence goes on with.
        """
        # Under autocast the product is in bfloat16, and the recurrence in the type of its weights.
        pre = kernels.linear(x, self.affine.weight, self.affine.bias).to(self.u.dtype)
        if self.where == "before":
            pre = self._normalised(pre)
        sequence, h = kernels.indrnn(pre, self.u, None if state is None else state[1])
        if self.where == "after":
            sequence = self._normalised(sequence)
            return sequence, (sequence[-1], h)
        return sequence, (h, h)

    def _normalised(self, frames: Tensor) -> Tensor:
        return self.norm(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def updated(self, step: int) -> None:
        """Keeps u within its bound; after each step of the optimiser, so before each forward pass."""
        self.u.clamp_(-self.bound, self.bound)

    def backend(self) -> str:
        """What computes the time loop where the weights are now."""
        return kernels.backend_for("indrnn", self.u)
