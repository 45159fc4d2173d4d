"""What all models share: a recurrent layer, a readout of what it says, and how their parameters are trained."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Group:
    """Parameters that are trained otherwise than the rest.

    Args:
        parameters: of the model.
        lr: times the optimiser's learning rate.
        weight_decay: times the optimiser's weight decay.
    """

    parameters: Sequence[nn.Parameter]
    lr: float = 1.0
    weight_decay: float = 1.0


class Network(nn.Module):
    """A recurrent layer, and a readout of what it says at the last step, or at every step.

    Args:
        layer: maps x (T, B, D) and a state, or None for zeros, to a sequence (T, B, H) and the final state: the end of
            the sequence, (B, H), or a tuple that begins with it. The state goes back in where the sequence goes on.
            Its ``backend()`` says what computes the time loop, for the record. A layer of which something else than the
            last step is read has ``ends(sequence, lengths)``, what is read where lengths differ, (B, H).
        readout: maps (..., H) to (..., outputs).
        groups: parameters with a learning rate or weight decay of their own; the others have the optimiser's.

    Attributes:
        reads: what the task asks for: "last", one output a sample, or "every", one a step.
        embedding: the task's, from x as it comes, such as tokens (T, B), to what the layer takes; None is no such step.
            It is trained like the rest.
    """

    def __init__(self, layer: nn.Module, readout: nn.Module, groups: Iterable[Group] = ()):
        super().__init__()
        self.layer, self.readout = layer, readout
        self.register_module("embedding", None)
        self.reads = "last"
        self._groups = tuple(groups)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The output, (B, outputs), or (T, B, outputs) where every step is read.

        Args:
            x: (T, B, D), or what ``embedding`` takes.
            lengths: (B,), how many steps of each sample are its own; the rest is padding, which is not read.
        """
        return self.advance(x, None, lengths)[0]

    def advance(self, x: Tensor, state=None, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        """The output as in ``forward``, from ``state`` (None is zeros), and the state at the end of ``x``."""
        if self.embedding is not None:
            x = self.embedding(x)
        sequence, state = self.layer(x, state)
        if self.reads == "every":
            return self.readout(sequence), state
        if lengths is not None:
            if hasattr(self.layer, "ends"):
                return self.readout(self.layer.ends(sequence, lengths)), state
            ends = sequence[lengths - 1, torch.arange(len(lengths), device=sequence.device)]
            return self.readout(ends), state
        # Not sequence[-1], whose gradient is a sequence of zeros.
        return self.read(state), state

    def read(self, state: Tensor | tuple) -> Tensor:
        """The output (B, outputs) at a state of the layer."""
        return self.readout(state[0] if isinstance(state, tuple) else state)

    def groups(self) -> list[Group]:
        """Every parameter that is trained, once: first those without a group of their own."""
        own = {id(p) for group in self._groups for p in group.parameters}
        return [Group([p for p in self.parameters() if id(p) not in own]), *self._groups]

    def updated(self, step: int) -> None:
        """To be called after the optimiser's step number 1, 2, ...; a layer's ``updated(step)`` may act on it."""
        if hasattr(self.layer, "updated"):
            with torch.no_grad():
                self.layer.updated(step)
