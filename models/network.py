"""Base classes of all models: their configuration, and a recurrent layer with a readout."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from longwave.models.layer import Layer
from longwave.schema import Section


@dataclass(frozen=True)
class Group:
    """Parameters with their own learning rate or weight decay.

    Args:
        parameters: of the model.
        lr: factor of the optimiser's learning rate.
        weight_decay: factor of the optimiser's weight decay.
    """

    parameters: Sequence[nn.Parameter]
    lr: float = 1.0
    weight_decay: float = 1.0


class Network(nn.Module):
    """A recurrent layer, and a readout at the last step, or at every step.

    Args:
        layer: the recurrent layer, time-major.
        readout: maps (..., hidden) to (..., outputs).
        groups: parameters with a learning rate or weight decay of their own; the others have the optimiser's.

    Attributes:
        reads: what the task asks for: "last", one output a sample, or "every", one a step.
        embedding: the task's, from x as it comes, such as tokens (T, B), to what the layer takes; None is no such step.
            It is trained like the rest.
    """

    def __init__(self, layer: Layer, readout: nn.Module, groups: Iterable[Group] = ()):
        super().__init__()
        self.layer, self.readout = layer, readout
        self.register_module("embedding", None)
        self.reads = "last"
        self._groups = tuple(groups)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The output, (B, outputs), or (T, B, outputs) where every step is read.

        Args:
            x: (T, B, D), or what ``embedding`` takes.
            lengths: (B,), number of valid steps of each sample; the rest is padding, which is not read.
        """
        return self.advance(x, None, lengths)[0]

    def advance(self, x: Tensor, state=None, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        """The output as in ``forward``, from ``state`` (None is zeros), and the state at the end of ``x``."""
        x, ends = self.embed(x), lengths is not None and self.reads == "last"
        if ends:
            x, lengths = self.layer.extended(x, lengths)
        sequence, state = self.layer(x, state)
        if self.reads == "every":
            return self.readout(sequence), state
        if ends:
            return self.readout(self.layer.ends(sequence, lengths)), state
        # Not sequence[-1], whose gradient is a sequence of zeros.
        return self.read(state), state

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The output (B, outputs) after the next step, whose input is x (B, D) or tokens (B,), and the new state."""
        output, state = self.layer.step(self.embed(x), state)
        return self.readout(output) if self.reads == "every" else self.read(state), state

    def embed(self, x: Tensor) -> Tensor:
        """The input of the layer, (T, B, inputs)."""
        return x if self.embedding is None else self.embedding(x)

    def read(self, state: Tensor | tuple) -> Tensor:
        """The output (B, outputs) at a state of the layer."""
        return self.readout(state[0] if isinstance(state, tuple) else state)

    def groups(self) -> list[Group]:
        """Every parameter that is trained, once: first those without a group of their own."""
        own = {id(p) for group in self._groups for p in group.parameters}
        return [Group([p for p in self.parameters() if id(p) not in own]), *self._groups]

    def after_step(self, step: int) -> None:
        """Hook to call after the optimiser's step number 1, 2, ..."""
        self.layer.after_step(step)


class ModelConfig(Section):
    """Base class of the configurations of models: dataclasses whose fields are the settings of a layer.

    Attributes:
        spacing: a field of those models whose first input channel may be the time: see
            :class:`longwave.models.irregular.Irregular`.
    """

    spacing = None

    def build(self, inputs: int, outputs: int) -> Network:
        """The layer with its readout, as it starts."""
        raise NotImplementedError

    def check(self, transform: Any) -> None:
        """Raises ValueError unless the inputs are transformed as the model needs it; None is no transform."""

    def settings(self, *others: str) -> dict[str, Any]:
        """Arguments of the layer: all fields but ``name`` and ``others``."""
        return {key: value for key, value in vars(self).items() if key not in ("name", *others)}
