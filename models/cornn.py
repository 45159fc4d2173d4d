"""coRNN: a network of coupled, damped, driven oscillators (Rusch & Mishra, ICLR 2021)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import kernels
from models.network import Group, Network

PARAMETRISATIONS = ("concatenated", "separate", "recurrent")
DAMPINGS = ("explicit", "implicit")
# The least that dt, gamma, epsilon and 1 - dt may be where they are trained.
NEAR = 1e-6


@dataclass
class Config:
    """coRNN.

    Args:
        hidden: number of oscillators.
        dt: step size of the discretisation, > 0.
        gamma: stiffness, the pull on the position y; >= 0.
        epsilon: damping, the pull on the velocity z; >= 0.
        parametrisation: of the affine map of the input x, the position y and the velocity z, each map with PyTorch's
            default initialisation: concatenated (one map of [x, z, y]; the released code for adding, sMNIST, psMNIST
            and HAR-2), separate (one for each; for noisy CIFAR-10), recurrent (one of x, one of [z, y]; for IMDB).
        damping: explicit (of the velocity before the step; the released code) or implicit (after it; the theory).
        train_dynamics: dt, gamma and epsilon are trained, one number each for all units, from the values above: dt in
            (0, 1), as a sigmoid, gamma and epsilon > 0, as a softplus. They have no weight decay.
    """

    name: str = "cornn"
    hidden: int = 128
    dt: float = 0.042
    gamma: float = 1.0
    epsilon: float = 1.0
    parametrisation: str = "concatenated"
    damping: str = "explicit"
    train_dynamics: bool = False

    def __post_init__(self):
        if self.hidden < 1:
            raise ValueError(f"hidden={self.hidden}: must be 1 or more")
        if not self.dt > 0:
            raise ValueError(f"dt={self.dt}: must be > 0")
        for key in ("gamma", "epsilon"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"{key}={getattr(self, key)}: must be >= 0")
        for key, allowed in (("parametrisation", PARAMETRISATIONS), ("damping", DAMPINGS)):
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key}={getattr(self, key)}: must be one of {', '.join(allowed)}")
        if self.train_dynamics:
            # Nearer to the bounds, a sigmoid and a softplus in float32 are at the bounds.
            if not NEAR <= self.dt <= 1 - NEAR:
                raise ValueError(f"dt={self.dt}: must be from {NEAR} to 1 - {NEAR} where train_dynamics=true")
            for key in ("gamma", "epsilon"):
                if not getattr(self, key) >= NEAR:
                    raise ValueError(f"{key}={getattr(self, key)}: must be {NEAR} or more where train_dynamics=true")

    def build(self, inputs: int, outputs: int) -> Network:
        layer = CoRNN(
            inputs,
            self.hidden,
            self.dt,
            self.gamma,
            self.epsilon,
            parametrisation=self.parametrisation,
            damping=self.damping,
            train_dynamics=self.train_dynamics,
        )
        # Weight decay would pull dt to sigmoid(0) = 0.5.
        groups = [Group(list(layer.raw.values()), weight_decay=0.0)] if self.train_dynamics else []
        return Network(layer, nn.Linear(self.hidden, outputs), groups)


class CoRNN(nn.Module):
    """One coRNN layer, (T, B, inputs) to (T, B, hidden); the equation is at :func:`kernels.cornn`.

    The affine map V x + b + W y + W_z z is made of one, two or three of PyTorch's Linears (``parametrisation``, see
    :class:`Config`; coRNN: {adding,sMNIST,psMNIST,noisy_CIFAR10,HAR-2,IMDB}/model.py). They compute the same and differ
    in their initialisation: weights and bias are U(-k, k), k = 1/sqrt(number of inputs of the Linear); only the one
    that acts on x has a bias.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        dt: float,
        gamma: float,
        epsilon: float,
        *,
        parametrisation: str = "concatenated",
        damping: str = "explicit",
        train_dynamics: bool = False,
    ):
        super().__init__()
        self.inputs, self.hidden = inputs, hidden
        self.parametrisation, self.damping = parametrisation, damping
        if parametrisation == "concatenated":
            self.affine = nn.Linear(inputs + 2 * hidden, hidden)
        else:
            self.input = nn.Linear(inputs, hidden)
            if parametrisation == "separate":
                self.y = nn.Linear(hidden, hidden, bias=False)
                self.z = nn.Linear(hidden, hidden, bias=False)
            else:
                self.recurrent = nn.Linear(2 * hidden, hidden, bias=False)
        self.fixed = (dt, gamma, epsilon)
        self.raw = None
        if train_dynamics:
            start = {"dt": math.log(dt / (1 - dt)), "gamma": _softplus_inverse(gamma)}
            start["epsilon"] = _softplus_inverse(epsilon)
            self.raw = nn.ParameterDict({key: torch.tensor(value) for key, value in start.items()})

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The positions y (T, B, hidden) and the final (y, z), from zeros or from ``state``."""
        v, bias, w_y, w_z = self.weights()
        # Under autocast the product is in bfloat16, and the recurrence in the type of its weights.
        pre = kernels.linear(x, v, bias).to(w_y.dtype)  # (T, B, hidden)
        return kernels.cornn(pre, w_y, w_z, *self.dynamics(), state, self.damping)

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

    def dynamics(self) -> tuple[float, float, float] | tuple[Tensor, Tensor, Tensor]:
        """dt, gamma and epsilon: numbers, or () tensors where they are trained."""
        if self.raw is None:
            return self.fixed
        softplus = nn.functional.softplus
        return self.raw["dt"].sigmoid(), softplus(self.raw["gamma"]), softplus(self.raw["epsilon"])

    def backend(self) -> str:
        """What computes the time loop where the weights are now."""
        return kernels.backend_for("cornn", self.weights()[2])

    @torch.no_grad()
    def theory(self, x: Tensor) -> dict[str, float]:
        """What the paper's propositions and linear stability look at; a function of the weights alone.

        Proposition 3.2 bounds the gradient under the assumption eta <= dt^r with 1/2 <= r <= 1, for implicit damping
        and gamma = epsilon = 1. It is remembered here, not verified against the paper:

            eta = max(dt (1 + ||W||_inf) / (1 + dt), dt ||W_z||_inf / (1 + dt)),    r = log(eta) / log(dt)

        where ||.||_inf is the largest absolute row sum.

        Linear stability is that of one step without the tanh. With a = 1 where damping is explicit and
        a = 1 / (1 + epsilon dt) where it is implicit, and c = 1 - epsilon dt or 1, it takes (z, y) by the matrix
        [[a c, -a gamma dt], [a c dt, 1 - a gamma dt^2]] of determinant a c and trace 1 + a c - a gamma dt^2. It is
        stable, neither eigenvalue beyond the unit circle, where

            explicit: epsilon dt <= 2 and gamma dt^2 <= 4 - 2 epsilon dt
            implicit: gamma dt^2 <= 4 + 2 epsilon dt

        Args:
            x: not used; of other models the input matters.

        Returns:
            ``eta``; ``r`` (NaN where dt >= 1); ``norm_w``, ``norm_wz``; ``determinant``, ``trace``, ``stable`` (1 or
            0); and ``dt``, ``gamma``, ``epsilon``, which may be trained.
        """
        _, _, w_y, w_z = self.weights()
        norm_w, norm_wz = (torch.linalg.matrix_norm(w.double(), math.inf).item() for w in (w_y, w_z))
        dt, gamma, epsilon = map(float, self.dynamics())
        eta = dt * max(1 + norm_w, norm_wz) / (1 + dt)
        if self.damping == "explicit":
            decay, kick = 1 - epsilon * dt, gamma * dt**2
            stable = epsilon * dt <= 2 and gamma * dt**2 <= 4 - 2 * epsilon * dt
        else:
            decay = 1 / (1 + epsilon * dt)
            kick = decay * gamma * dt**2
            stable = gamma * dt**2 <= 4 + 2 * epsilon * dt
        return {
            "eta": eta,
            "r": math.log(eta) / math.log(dt) if dt < 1 else math.nan,
            "norm_w": norm_w,
            "norm_wz": norm_wz,
            "determinant": decay,
            "trace": 1 + decay - kick,
            "stable": float(stable),
            "dt": dt,
            "gamma": gamma,
            "epsilon": epsilon,
        }


def _softplus_inverse(value: float) -> float:
    """The x of which log(1 + exp(x)) is ``value``."""
    return value + math.log(-math.expm1(-value))
