"""The next value of a FitzHugh-Nagumo neuron (LEM: Rusch et al., ICLR 2022)."""

import importlib.metadata
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longwave.schema import Annotated, Ge, Le
from longwave.tasks.base import ArrayTask, TaskConfig
from longwave.tasks.data import cached, log
from longwave.tasks.randomness import generator

# v' = v - v^3/3 - w + I, w' = (v + a - b w) EPSILON, at points of time in [0, END].
A, B, EPSILON, CURRENT = 0.7, 0.8, 1 / 50, 0.5
END = 400.0
SIZES = {"train": 128, "validation": 128, "test": 1024}
# The last batch of the test set: the released code's figure is of this alone.
LAST = 128


@dataclass
class Config(TaskConfig):
    """Predict v at the next time point from v up to this one, at every time point.

    Args:
        points: number of time points in [0, 400]; 1,001 are 0.4 apart, as in the released code.
    """

    name: str = "fitzhugh_nagumo"
    points: Annotated[int, Ge(2), Le(100_000)] = 1001

    def build(self, seed: int, data_root: Path) -> "FitzHughNagumo":
        return FitzHughNagumo(self.points, seed, data_root)


class FitzHughNagumo(ArrayTask):
    """v (points - 1, B, 1) of two-scale oscillations with v(0) ~ U(-1, 1) and w(0) = 0; the root mean squared error.

    v' = v - v^3/3 - w + 0.5 and w' = (v + 0.7 - 0.8 w)/50 at ``points`` of time in [0, 400], by scipy's ``solve_ivp``
    with its defaults (RK45, relative tolerance 1e-3): the errors of the solver are part of the data. Training set,
    validation and test set have 128, 128 and 1,024 series, the same for every seed. Tested are all of the last, and
    its last 128.
    """

    inputs, outputs = 1, 1
    read = "every"
    objective, metric = "mse", "rmse"
    higher_is_better = False
    tests = ("test", "test_last_128")
    data_seed = 0

    def __init__(self, points: int, seed: int, data_root: Path):
        v = series(data_root, self.data_seed, sum(SIZES.values()), points)
        splits = dict(zip(SIZES, torch.arange(len(v)).split(list(SIZES.values())), strict=True))
        splits["test_last_128"] = splits["test"][-LAST:]
        super().__init__(v, v, splits, seed)
        self.split_id = f"fitzhugh_nagumo/scipy RK45/{points}/{'/'.join(map(str, SIZES.values()))}"
        self.notes = {"scipy": importlib.metadata.version("scipy")}
        test = v[splits["test"]]
        # Of predicting the current value.
        self.baseline = {"rmse": (test[:, 1:] - test[:, :-1]).square().mean().sqrt().item()}

    def _take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        v = self.samples[indices].T
        return v[:-1, :, None], v[1:]

    def scores(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"mse": (output.squeeze(-1) - target) ** 2}

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        return means | {"rmse": math.sqrt(means["mse"])}


def series(root: Path, seed: int, count: int, points: int) -> Tensor:
    """Solutions v, (count, points)."""

    def build() -> dict[str, Tensor]:
        # Imported here: it takes half a second.
        from scipy.integrate import solve_ivp

        log.info("solving %d initial value problems, once", count)
        start = torch.rand(count, generator=generator(seed, "fitzhugh_nagumo")) * 2 - 1
        times = np.linspace(0, END, points)
        v = [solve_ivp(_slope, (0, END), (v0, 0.0), t_eval=times).y[0] for v0 in start.tolist()]
        return {"v": torch.from_numpy(np.stack(v)).float()}

    key = {"seed": seed, "count": count, "points": points, "scipy": importlib.metadata.version("scipy")}
    return cached(root, "fitzhugh_nagumo", key, build)["v"]


def _slope(t: float, state: np.ndarray) -> tuple[float, float]:
    v, w = state
    return v - v**3 / 3 - w + CURRENT, EPSILON * (v + A - B * w)
