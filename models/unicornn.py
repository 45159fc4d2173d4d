"""UnICORNN: undamped, independent, controlled oscillators (Rusch & Mishra, ICML 2021)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longwave import kernels
from longwave.models.irregular import Irregular, join, split
from longwave.models.layer import Packing, normalised, start_wide
from longwave.models.network import ModelConfig, Network
from longwave.models.stack import Stack, affine, classifier
from longwave.schema import LATER, Annotated, Ge, Gt, Le, Lt, OneOf, shown

LARGEST_DT = 100
# Of dt, where step sizes are spread: sigmoid(c) is below 1.
LARGEST_SHARE = 0.999
# Of a batch, in the running means of the input and of what the readout standardises.
INPUT_MOMENTUM, READOUT_MOMENTUM = 0.01, 0.3


@dataclass
class Config(ModelConfig):
    """UnICORNN.

    Args:
        hidden: number of oscillators in a layer.
        layers: number of layers.
        dt: largest step size: one number, or a list with one for each layer. A unit's own is dt sigmoid(c).
        alpha: stiffness, the pull on the position y.
        dropout: of every layer's output, the top one's too, with a mask that is shared over time. The
            released code has 0.1 as a default that its scripts never mention (psMNIST, noise-padded CIFAR-10, BIDMC),
            and none at all for EigenWorms.
        residual: whether the input of a layer, from the second on, is added to its output (after dropout). The
            paper's deep stacks have skip connections, the released code has none.
        anchor: the backward pass rebuilds the states, and stores them every ``anchor`` steps to do so without drift;
            0 stores none. The plain PyTorch loop stores all of them, and ignores it.
        dt_spread: ratio of the largest to the smallest step size of a layer's units at the start, which are drawn
            log-uniformly from dt / dt_spread to dt; 1 is the released start, c ~ U(-0.1, 0.1).
        input_initialisation: of V and b: released (U(-k, k) with k = sqrt(6 / (65 inputs)), and 0) or wide, U(-3, 3).
        output: of a layer: position (y; the released code) or deviation (y minus the position of the same units driven
            by the mean input), with which the readout also standardises each unit by its running mean and variance.
        spacing: duration between two samples that counts as one dt, for irregular times: the first input channel is
            then the time (``task.time=true``), which is not an input itself. Null: samples are equally spaced.
    """

    name: str = "unicornn"
    hidden: Annotated[int, Ge(1), Le(65536)] = 128
    layers: Annotated[int, Ge(1), Le(1000)] = 3
    dt: Any = 0.046
    alpha: Annotated[float, Ge(0), Le(10**6)] = 10.0
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    residual: bool = False
    anchor: Annotated[int, Ge(0), Le(10**9)] = 256
    dt_spread: Annotated[float, Ge(1), Le(10**9)] = 1.0
    input_initialisation: Annotated[str, OneOf("released", "wide")] = "released"
    output: Annotated[str, OneOf("position", "deviation")] = "position"
    spacing: Annotated[float | None, Gt(0), Le(1e12), LATER] = None

    def __post_init__(self):
        super().__post_init__()
        values = self.dt if isinstance(self.dt, list) else [self.dt]
        if not all(type(dt) in (int, float) and 0 < dt <= LARGEST_DT for dt in values):
            raise ValueError(
                f"dt={shown(self.dt)}: must be a number greater than 0 and at most {LARGEST_DT}, "
                "or a list of one for each layer"
            )
        if isinstance(self.dt, list) and len(self.dt) != self.layers:
            raise ValueError(f"dt={self.dt}: must be one number, or a list of {self.layers} (layers={self.layers})")
        # 1 and 1.0 are one run.
        self.dt = [float(dt) for dt in values] if isinstance(self.dt, list) else float(self.dt)

    def build(self, inputs: int, outputs: int) -> Network:
        layer = UnICORNN(inputs, **self.settings("dt_spread", "input_initialisation"))
        readout = classifier(self.hidden, outputs, StandardisedLinear if self.output == "deviation" else nn.Linear)
        # Drawn after the readout.
        layer.start(self.dt_spread, self.input_initialisation)
        return Network(layer, readout)


class UnICORNNLayer(Irregular):
    """One layer, (T, B, inputs) to (T, B, hidden); the equation is at :func:`longwave.kernels.unicornn`.

    w ~ U(0, 1), c ~ U(-0.1, 0.1), and the map of the input is :func:`longwave.models.stack.affine`
    (unicornn: */network.py).
    """

    operation = "unicornn"

    def __init__(
        self,
        inputs: int,
        hidden: int,
        dt: float,
        alpha: float,
        anchor: int = 256,
        backend: str = "auto",
        spacing: float | None = None,
    ):
        super().__init__(inputs, False, backend, spacing)
        self.dt, self.alpha, self.anchor = dt, alpha, anchor
        self.affine = affine(self.inputs, hidden)
        self.w = nn.Parameter(torch.empty(hidden).uniform_(0, 1))
        self.c = nn.Parameter(torch.empty(hidden).uniform_(-0.1, 0.1))

    @torch.no_grad()
    def start(self, dt_spread: float, input_initialisation: str) -> None:
        """Initialises c, V and b otherwise than the released code does: see :class:`Config`."""
        if dt_spread > 1:
            share = torch.empty_like(self.c).uniform_(-math.log(dt_spread), 0).exp()
            self.c.copy_((share * LARGEST_SHARE).logit())
        if input_initialisation == "wide":
            start_wide(self.affine.weight, self.affine.bias)

    def run(self, x: Tensor, factor: float | Tensor, state: tuple | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The positions y (T, B, hidden) and the final (y, z)."""
        pre = kernels.Input(x, self.affine.weight, self.affine.bias)
        dt = self.dt * factor
        return kernels.unicornn(pre, self.w, self.c, dt, self.alpha, state, self.anchor, backend=self.requested)

    def stability(self) -> tuple[float, float]:
        """The least and the largest d^2 (w + alpha) of a unit, d = dt sigmoid(c).

        Symplectic Euler is stable for the linearised oscillator, y'' = -(w + alpha) y, where this is from 0 to 4. Below
        0 is a w that training made negative, and alpha does not make up for.
        """
        each = (self.dt * self.c.sigmoid()) ** 2 * (self.w + self.alpha)
        return each.min().item(), each.max().item()

    def inversion_drift(self, x: Tensor) -> float:
        """Error of the states that are rebuilt from the final ones by running the recurrence backwards in float32.

        The largest |rebuilt - forward| over all sequences and units of x (T, B, inputs): of y at all steps, and of z,
        which the operation gives at the end of a sequence only, at every 16th and the first.

        Backwards, the recurrence is itself: with Z = -z, ``y_{n-1} = y_n + d Z_n`` and ``Z_{n-1} = Z_n - d (tanh(w
        y_{n-1} + pre_n) + alpha y_{n-1})`` are its two halves in the other order. So the operation computes it.
        """
        pre, w, c = self.affine(x).float(), self.w.float(), self.c.float()
        d = self.dt * c.sigmoid()

        def run(pre: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            return kernels.unicornn(pre, w, c, self.dt, self.alpha, state, anchor=0)

        chunks = pre.split(16)
        state = (torch.zeros_like(pre[0]),) * 2
        forward = []
        for chunk in chunks:
            y, final = run(chunk, state)
            forward.append((torch.cat([state[0][None], y[:-1]]), state[1]))  # y before each step, z before the first
            state = final
        y, z = state[0] - d * state[1], -state[1]
        drift = pre.new_zeros(())
        for chunk, (true_y, true_z) in zip(reversed(chunks), reversed(forward), strict=True):
            rebuilt, (after, z) = run(chunk.flip(0), (y, z))
            before = torch.cat([y[None], rebuilt[:-1]]).flip(0)
            drift = torch.stack([drift, (before - true_y).abs().max(), (-z - true_z).abs().max()]).max()
            y = after
        return drift.item()


class DeviationLayer(UnICORNNLayer):
    """:class:`UnICORNNLayer`, with y minus the y of a reference sequence, whose input is the mean input at every step.

    Rarely driven units differ by little from the reference: on the adding problem at T = 200 the standard deviation of
    y over sequences is 2 % of its mean, which moves with every weight.

    Attributes:
        mean: (inputs,), running mean of the input over steps and batch.
        batches: number of batches that it has seen.
    """

    def __init__(self, inputs: int, *args, **kwargs):
        super().__init__(inputs, *args, **kwargs)
        self.register_buffer("mean", torch.zeros(self.inputs))
        self.register_buffer("batches", torch.zeros(()))

    def unroll(self, x: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        self._update_mean(x)
        return super().unroll(x, state)

    def unroll_packed(self, x: Tensor, packing: Packing, state: tuple[Tensor, ...] | None = None):
        self._update_mean(x)
        return packing.unroll(super().unroll, x, state)

    @torch.no_grad()
    def _update_mean(self, x: Tensor) -> None:
        if self.training:
            _, x = split(x, self.spacing)
            self.batches += 1
            share = (1 / self.batches).clamp(min=INPUT_MOMENTUM)
            self.mean.lerp_(x.mean(tuple(range(x.dim() - 1))).to(self.mean.dtype), share)

    def run(self, x: Tensor, factor: float | Tensor, state: tuple | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The deviations (T, B, hidden), and the final deviation, y and z (B, hidden), and y and z of the reference."""
        batch, references = x.shape[1], 1 if state is None else len(state[-1])
        if self.spacing is not None:
            # Each sequence has a reference of its own times.
            references, factor = batch, factor.repeat(1, 2, 1)
        if state is not None:
            _, y, z, reference_y, reference_z = state
            state = torch.cat([y, reference_y]), torch.cat([z, reference_z])
        reference = self.mean.to(x.dtype).expand(len(x), references, -1)
        sequence, (y, z) = super().run(torch.cat([x, reference], 1), factor, state)
        driven, reference = sequence[:, :batch], sequence[:, batch:]
        return driven - reference, (y[:batch] - y[batch:], y[:batch], z[:batch], y[batch:], z[batch:])


class StandardisedLinear(nn.Linear):
    """A linear map of standardised inputs (..., features): batch normalisation without trained scale and shift.

    A batch of one is standardised by the running means, in training too.
    """

    def __init__(self, features: int, outputs: int):
        super().__init__(features, outputs)
        # The deviation of a slow unit has a variance far below PyTorch's eps of 1e-5.
        self.standardise = nn.BatchNorm1d(features, eps=1e-12, momentum=READOUT_MOMENTUM, affine=False)

    def forward(self, y: Tensor) -> Tensor:
        return super().forward(normalised(y, self.standardise))


class UnICORNN(Stack):
    """A stack of :class:`UnICORNNLayer`."""

    def __init__(self, inputs: int, hidden: int, *, batch_first: bool = False, backend: str = "auto", **settings):
        config = Config(hidden=hidden, **settings)
        kind = DeviationLayer if config.output == "deviation" else UnICORNNLayer
        steps = config.dt if isinstance(config.dt, list) else [config.dt] * config.layers
        widths = [inputs] + [hidden + (config.spacing is not None)] * (config.layers - 1)
        layers = [
            kind(width, hidden, dt, config.alpha, config.anchor, backend, config.spacing)
            for width, dt in zip(widths, steps, strict=True)
        ]
        super().__init__(layers, config.dropout, config.residual, batch_first=batch_first)
        self.start(config.dt_spread, config.input_initialisation)

    def start(self, dt_spread: float, input_initialisation: str) -> None:
        """Initialises c, V and b otherwise than the released code does: see :class:`Config`."""
        for layer in self.layers:
            layer.start(dt_spread, input_initialisation)

    @torch.no_grad()
    def theory(self, x: Tensor) -> dict[str, float]:
        """The assumptions of the paper, measured on x (T, B, inputs), without dropout; changes nothing.

        Returns:
            For each layer l = 1, 2, ...: ``least_stability_<l>`` and ``stability_<l>``, see
            :meth:`UnICORNNLayer.stability`, and ``inversion_drift_<l>``, see :meth:`UnICORNNLayer.inversion_drift`;
            with a ``spacing`` only the former, for steps of dt: no states are rebuilt then.
        """
        found, (times, x) = {}, split(self.exchanged(x), self.spacing)
        for number, layer in enumerate(self.layers, start=1):
            found[f"least_stability_{number}"], found[f"stability_{number}"] = layer.stability()
            if times is None:
                found[f"inversion_drift_{number}"] = layer.inversion_drift(x)
            training = layer.training
            sequence, _ = layer.eval()(join(times, x))  # no running means
            layer.train(training)
            x = x + sequence if self.residual and number > 1 else sequence
        return found
