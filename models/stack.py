"""Layers on top of each other, as UnICORNN and IndRNN stack theirs: Linear over time, recurrence, dropout."""

import torch
from torch import Tensor, nn

from longwave.models.layer import Layer


class Stack(Layer):
    """Recurrent layers on top of each other, (T, B, inputs) to (T, B, hidden), with time-shared dropout behind each.

    In training, a mask is drawn for every layer, the top one too: one number for each sequence and unit, the same at
    all steps, that is 0 with probability ``dropout`` and else 1 / (1 - dropout).

    Args:
        layers: from the bottom up, time-major.
        dropout: in [0, 1); 0 is none.
        residual: whether what comes out of a layer, behind its dropout, is added to what went in; from the second
            layer on, since the first has inputs of another width.
        batch_first: as in ``torch.nn.LSTM``.
    """

    def __init__(self, layers: list[Layer], dropout: float = 0.0, residual: bool = False, *, batch_first: bool = False):
        super().__init__(batch_first)
        self.layers = nn.ModuleList(layers)
        self.dropout, self.residual = dropout, residual

    def unroll(self, x: Tensor, state: tuple | None = None) -> tuple[Tensor, tuple]:
        """The sequence of the top layer, and (its end, the final states of all layers).

        The first part of ``state`` is not read.
        """
        initial = [None] * len(self.layers) if state is None else state[1]
        finals, end = [], None
        for layer, start in zip(self.layers, initial, strict=True):
            sequence, final = layer(x, start)
            below, end = end, final[0] if isinstance(final, tuple) else final
            if self.training and self.dropout:
                mask = nn.functional.dropout(torch.ones_like(end), self.dropout)  # (B, H)
                sequence, end = sequence * mask, end * mask
            if self.residual and finals:
                sequence, end = x + sequence, below + end
            x = sequence
            finals.append(final)
        return x, (end, tuple(finals))

    def after_step(self, step: int) -> None:
        for layer in self.layers:
            layer.after_step(step)

    @property
    def backend(self) -> str:
        return self.layers[0].backend


def affine(inputs: int, hidden: int) -> nn.Linear:
    """The map into a layer, initialised as IndRNN and UnICORNN do: U(-k, k) with k = sqrt(6 / (65 inputs)), bias 0."""
    linear = nn.Linear(inputs, hidden)
    # The bound of Kaiming's initialisation for a leaky ReLU of slope 8.
    nn.init.kaiming_uniform_(linear.weight, a=8)
    nn.init.zeros_(linear.bias)
    return linear


def classifier(hidden: int, outputs: int, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    """The readout of IndRNN and UnICORNN: N(0, 2 / hidden), bias 0."""
    linear = kind(hidden, outputs)
    nn.init.kaiming_normal_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
