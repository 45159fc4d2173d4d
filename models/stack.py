"""Layers on top of each other: as UnICORNN and IndRNN stack theirs, and as ``torch.nn.LSTM`` does."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from longwave.models.irregular import join, split
from longwave.models.layer import Layer, Packing, map_state


class Layers(Layer):
    """A layer that is made of ``layers``, run one by one by :meth:`through`; each reads the times, where one does."""

    layers: nn.ModuleList

    def through(self, x: Tensor, state: tuple | None, run: Callable, packing: Packing | None) -> tuple[Tensor, tuple]:
        """The output and the final state; each layer by ``run(layer, x, state)``, of frames if there is a packing."""
        raise NotImplementedError

    def unroll(self, x: Tensor, state: tuple | None = None) -> tuple[Tensor, tuple]:
        return self.through(x, state, lambda layer, x, start: layer(x, start), None)

    def unroll_packed(self, x: Tensor, packing: Packing, state: tuple | None = None) -> tuple[Tensor, tuple]:
        return self.through(x, state, lambda layer, x, start: layer.unroll_packed(x, packing, start), packing)

    def after_step(self, step: int) -> None:
        for layer in self.layers:
            layer.after_step(step)

    def freeze(self) -> None:
        for layer in self.layers:
            layer.freeze()

    @property
    def backend(self) -> str:
        return self.layers[0].backend


class Stack(Layers):
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
        self.layers, self.spacing = nn.ModuleList(layers), layers[0].spacing
        self.dropout, self.residual = dropout, residual

    def through(self, x: Tensor, state: tuple | None, run: Callable, packing: Packing | None) -> tuple[Tensor, tuple]:
        """The sequence of the top layer, and (its end, the final states of all layers).

        The first part of ``state`` is not read.
        """
        initial = [None] * len(self.layers) if state is None else state[1]
        finals, end = [], None
        times, x = split(x, self.spacing)
        for layer, start in zip(self.layers, initial, strict=True):
            sequence, final = run(layer, join(times, x), start)
            if times is not None:
                # Not the layer's own, which came with what depends on weights.
                final = (*final[:-1], times[-1] if packing is None else times[packing.ends])
            below, end = end, final[0] if isinstance(final, tuple) else final
            if self.training and self.dropout:
                mask = nn.functional.dropout(torch.ones_like(end), self.dropout)  # (B, H)
                sequence = sequence * (mask if packing is None else mask[packing.rows])
                end = end * mask
            if self.residual and finals:
                sequence, end = x + sequence, below + end
            x = sequence
            finals.append(final)
        return x, (end, tuple(finals))


class Stacked(Layers):
    """Layers of one kind with the options, shapes and order of ``torch.nn.LSTM``: deep, and in both directions.

        Stacked(CoRNN, 3, 128, num_layers=2, bidirectional=True, dropout=0.1, dt=0.05)

    The sequence is (T, B, directions * hidden). Each part of the final state is (num_layers * directions, B, hidden),
    of layer 0 forwards, layer 0 backwards, layer 1 forwards, ... The backward direction reads a sequence from its end;
    where lengths differ it needs a ``PackedSequence``, since a padded one would begin with the padding.

    Args:
        kind: a layer, or a function of the number of inputs and of units that makes one.
        num_layers: how many are on top of each other; from the second on, each reads all directions of the one below.
        bidirectional: whether a second layer reads backwards, beside each that reads forwards.
        dropout: in [0, 1), of every layer's output but the top one's, with a mask of its own at each step. A setting of
            that name of ``kind`` itself is given by ``functools.partial``.
        batch_first: as in ``torch.nn.LSTM``.
        settings: of each layer.

    Attributes:
        layers: in the order of the states.
    """

    def __init__(
        self,
        kind: Callable[..., Layer],
        inputs: int,
        hidden: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        *,
        batch_first: bool = False,
        **settings,
    ):
        super().__init__(batch_first)
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers}: must be at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: must be at least 0 and less than 1")
        self.directions = 1 + bidirectional
        layers = [kind(inputs, hidden, **settings) for _ in range(self.directions)]
        self.spacing = layers[0].spacing
        above = self.directions * hidden + (self.spacing is not None)
        layers += [kind(above, hidden, **settings) for _ in range(self.directions * (num_layers - 1))]
        self.layers = nn.ModuleList(layers)
        self.dropout = nn.Dropout(dropout)
        if not all(layer.stackable for layer in self.layers) and len(layers) > 1:
            name = type(self.layers[0]).__name__
            raise ValueError(f"{name} cannot be stacked or reversed: it reads log-signatures, not sequences")

    def forward(self, x, state: Any = None) -> tuple[Any, Any]:
        if state is not None:
            state = tuple(map_state(lambda part, i=i: part[i], state) for i in range(len(self.layers)))
        sequence, finals = super().forward(x, state)
        return sequence, map_state(lambda *parts: torch.stack(parts), *finals)

    def through(self, x: Tensor, state: tuple | None, run: Callable, packing: Packing | None) -> tuple[Tensor, tuple]:
        """The sequence of the top layer, and the final states of all of them."""

        def reverse(x: Tensor) -> Tensor:
            return x.flip(0) if packing is None else x[packing.backwards]

        outputs, finals = [], []
        times, x = split(x, self.spacing)
        for index, layer in enumerate(self.layers):
            backwards = index % self.directions
            if index and not backwards:
                x, outputs = self.dropout(torch.cat(outputs, -1)), []
            start = None if state is None else state[index]
            given = join(times, x)
            if backwards:
                # A step lasts until the sample that comes later.
                given = join(None if times is None else -reverse(times), reverse(x))
            sequence, final = run(layer, given, start)
            outputs.append(reverse(sequence) if backwards else sequence)
            finals.append(final)
        return torch.cat(outputs, -1), tuple(finals)

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if self.directions == 2:
            raise ValueError("bidirectional=True: the backward direction needs the whole sequence, there is no step")
        return super().step(x, state)

    def ends(self, sequence: Tensor, lengths: Tensor) -> Tensor:
        """As each top layer reads out its direction: backwards, the last step is the first of the sequence."""
        sequence, ends = self.exchanged(sequence), []
        parts = sequence.chunk(self.directions, -1)
        for layer, part, backwards in zip(self.layers[-self.directions :], parts, (False, True), strict=False):
            if backwards:
                places = (lengths - 1 - torch.arange(len(part), device=part.device)[:, None]).clamp(min=0)  # (T, B)
                part = part.gather(0, places[..., None].expand_as(part))
            ends.append(layer.ends(part, lengths))
        return torch.cat(ends, -1)


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
