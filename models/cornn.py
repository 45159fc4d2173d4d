"""coRNN: a network of coupled, damped, driven oscillators (Rusch & Mishra, ICLR 2021)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longwave import kernels
from longwave.models.irregular import Irregular
from longwave.models.layer import start_wide
from longwave.models.network import Group, ModelConfig, Network
from longwave.schema import LATER, Annotated, Ge, Gt, Le, OneOf

# With explicit damping a velocity is multiplied by 1 - epsilon dt a step. Beyond 2 it grows; a trained one stays below.
MOST_DAMPING = 1.5


@dataclass
class Config(ModelConfig):
    """coRNN.

    Args:
        hidden: number of oscillators.
        dt: step size of the discretisation.
        gamma: stiffness, the pull on the position y.
        epsilon: damping, the pull on the velocity z.
        parametrisation: of the affine map of the input x, the position y and the velocity z, each map with PyTorch's
            default initialisation: concatenated (one map of [x, z, y]; the released code for adding, sMNIST, psMNIST
            and HAR-2), separate (one for each; for noisy CIFAR-10), recurrent (one of x, one of [z, y]; for IMDB).
        damping: explicit (of the velocity before the step; the released code) or implicit (after it; the theory).
        train_dynamics: none (gamma and epsilon stay as they are; the released code), shared (both are trained, one
            number each) or unit (both are trained, one number a unit), from the values above, as logarithms and without
            weight decay. dt stays fixed: it only scales z. With explicit damping epsilon is at most 1.5 / dt.
        input_initialisation: of V and b: pytorch (the released code) or wide, U(-3, 3).
        recurrent_initialisation: of W, which acts on y: pytorch (the released code) or critical, N(0, gamma^2 / H),
            of spectral radius gamma, so that some directions of W y cancel the pull gamma y from the start.
        spacing: duration between two samples that counts as one dt, for irregular times: the first input channel is
            then the time (``task.time=true``), which is not an input itself. Null: samples are equally spaced.
    """

    name: str = "cornn"
    hidden: Annotated[int, Ge(1), Le(65536)] = 128
    dt: Annotated[float, Gt(0), Le(100)] = 0.042
    gamma: Annotated[float, Ge(0), Le(10**6)] = 1.0
    epsilon: Annotated[float, Ge(0), Le(10**6)] = 1.0
    parametrisation: Annotated[str, OneOf("concatenated", "separate", "recurrent")] = "concatenated"
    damping: Annotated[str, OneOf("explicit", "implicit")] = "explicit"
    train_dynamics: Annotated[str, OneOf("none", "shared", "unit")] = "none"
    input_initialisation: Annotated[str, OneOf("pytorch", "wide")] = "pytorch"
    recurrent_initialisation: Annotated[str, OneOf("pytorch", "critical")] = "pytorch"
    spacing: Annotated[float | None, Gt(0), Le(1e12), LATER] = None

    def __post_init__(self):
        super().__post_init__()
        if self.train_dynamics == "none":
            return
        where = f"where train_dynamics={self.train_dynamics}"
        for key, value in (("gamma", self.gamma), ("epsilon", self.epsilon)):
            if not value > 0:
                raise ValueError(f"{key}={value}: must be greater than 0 {where}")
        most = MOST_DAMPING / self.dt
        if self.damping == "explicit" and self.epsilon > most:
            raise ValueError(f"epsilon={self.epsilon}: must be at most {MOST_DAMPING} / dt = {most:g} {where}")

    def build(self, inputs: int, outputs: int) -> Network:
        layer = CoRNN(inputs, **self.settings())
        # Weight decay would pull gamma and epsilon to 1.
        groups = [Group(list(layer.logarithms.values()), weight_decay=0.0)] if layer.logarithms else []
        return Network(layer, nn.Linear(self.hidden, outputs), groups)


class CoRNN(Irregular):
    """One coRNN layer, (T, B, inputs) to (T, B, hidden); the equation is at :func:`longwave.kernels.cornn`.

    The affine map V x + b + W y + W_z z is made of one, two or three of PyTorch's Linears (``parametrisation``, see
    :class:`Config`; coRNN: {adding,sMNIST,psMNIST,noisy_CIFAR10,HAR-2,IMDB}/model.py). They compute the same and differ
    in their initialisation: weights and bias are U(-k, k), k = 1/sqrt(number of inputs of the Linear); only the one
    that acts on x has a bias.
    """

    operation = "cornn"

    def __init__(self, inputs: int, hidden: int, *, batch_first: bool = False, backend: str = "auto", **settings):
        config = Config(hidden=hidden, **settings)
        super().__init__(inputs, batch_first, backend, config.spacing)
        inputs, self.hidden = self.inputs, hidden
        self.parametrisation, self.damping = config.parametrisation, config.damping
        if self.parametrisation == "concatenated":
            self.affine = nn.Linear(inputs + 2 * hidden, hidden)
        else:
            self.input = nn.Linear(inputs, hidden)
            if self.parametrisation == "separate":
                self.y = nn.Linear(hidden, hidden, bias=False)
                self.z = nn.Linear(hidden, hidden, bias=False)
            else:
                self.recurrent = nn.Linear(2 * hidden, hidden, bias=False)
        self.dt, self.gamma, self.epsilon = config.dt, config.gamma, config.epsilon
        self.logarithms = nn.ParameterDict()
        if config.train_dynamics != "none":
            shape = (hidden,) if config.train_dynamics == "unit" else ()
            for key, value in (("gamma", self.gamma), ("epsilon", self.epsilon)):
                self.logarithms[key] = torch.full(shape, math.log(value))
        v, bias, w_y, _ = self.weights()
        if config.input_initialisation == "wide":
            start_wide(v, bias)
        if config.recurrent_initialisation == "critical":
            with torch.no_grad():
                nn.init.normal_(w_y, std=self.gamma / math.sqrt(hidden))

    def run(self, x: Tensor, factor: float | Tensor, state: tuple | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The positions y (T, B, hidden) and the final (y, z)."""
        v, bias, w_y, w_z = self.weights()
        dt, gamma, epsilon = self.dynamics()
        pre = kernels.Input(x, v, bias)
        return kernels.cornn(pre, w_y, w_z, dt * factor, gamma, epsilon, state, self.damping, backend=self.requested)

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """V (hidden, inputs), b (hidden), W and W_z (hidden, hidden), which act on x, on y and on z."""
        if self.parametrisation == "concatenated":
            v, w_z, w_y = self.affine.weight.split([self.inputs, self.hidden, self.hidden], dim=1)
            return v, self.affine.bias, w_y, w_z
        if self.parametrisation == "separate":
            w_y, w_z = self.y.weight, self.z.weight
        else:
            w_z, w_y = self.recurrent.weight.split(self.hidden, dim=1)
        return self.input.weight, self.input.bias, w_y, w_z

    def dynamics(self) -> tuple[float, float | Tensor, float | Tensor]:
        """dt, gamma and epsilon; the last two are (hidden,) or () tensors where they are trained."""
        if not self.logarithms:
            return self.dt, self.gamma, self.epsilon
        gamma, epsilon = self.logarithms["gamma"].exp(), self.logarithms["epsilon"].exp()
        return self.dt, gamma, epsilon.clamp(max=MOST_DAMPING / self.dt) if self.damping == "explicit" else epsilon

    @torch.no_grad()
    def theory(self, x: Tensor) -> dict[str, float]:
        """Quantities of the paper's propositions and of linear stability; a function of the weights alone.

        Proposition 3.2 bounds the gradient under the assumption eta <= dt^r with 1/2 <= r <= 1, for implicit damping
        and gamma = epsilon = 1. It is quoted from memory, not checked against the paper:

            eta = max(dt (1 + ||W||_inf) / (1 + dt), dt ||W_z||_inf / (1 + dt)),    r = log(eta) / log(dt)

        where ||.||_inf is the largest absolute row sum.

        Linear stability is that of one step without the tanh. With a = 1 where damping is explicit and
        a = 1 / (1 + epsilon dt) where it is implicit, and c = 1 - epsilon dt or 1, it takes (z, y) by the matrix
        [[a c, -a gamma dt], [a c dt, 1 - a gamma dt^2]] of determinant a c and trace 1 + a c - a gamma dt^2. It is
        stable, neither eigenvalue beyond the unit circle, where

            explicit: epsilon dt <= 2 and gamma dt^2 <= 4 - 2 epsilon dt
            implicit: gamma dt^2 <= 4 + 2 epsilon dt

        Args:
            x: not used; the theory of other models needs it.

        Returns:
            ``eta``; ``r`` (NaN where dt >= 1); ``norm_w``, ``norm_wz``; ``determinant``, ``trace``, ``gamma`` and
            ``epsilon``, means over the units; ``stable``, 1 where every unit is, else 0; and ``dt``.
        """
        _, _, w_y, w_z = self.weights()
        norm_w, norm_wz = (torch.linalg.matrix_norm(w.double(), math.inf).item() for w in (w_y, w_z))
        dt, gamma, epsilon = (torch.as_tensor(value, dtype=torch.float64) for value in self.dynamics())
        eta = dt.item() * max(1 + norm_w, norm_wz) / (1 + dt.item())
        if self.damping == "explicit":
            decay, kick = 1 - epsilon * dt, gamma * dt**2
            stable = (epsilon * dt <= 2) & (gamma * dt**2 <= 4 - 2 * epsilon * dt)
        else:
            decay = 1 / (1 + epsilon * dt)
            kick = decay * gamma * dt**2
            stable = gamma * dt**2 <= 4 + 2 * epsilon * dt
        return {
            "eta": eta,
            "r": math.log(eta) / math.log(dt) if dt < 1 else math.nan,
            "norm_w": norm_w,
            "norm_wz": norm_wz,
            "determinant": decay.mean().item(),
            "trace": (1 + decay - kick).mean().item(),
            "stable": float(stable.all()),
            "dt": dt.item(),
            "gamma": gamma.mean().item(),
            "epsilon": epsilon.mean().item(),
        }
