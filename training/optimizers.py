"""Optimisers and learning-rate schedules, all of them torch's."""

import inspect
from dataclasses import dataclass

import torch
from torch.optim import lr_scheduler

from longwave.models.network import Network

OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


@dataclass
class Optimizer:
    """One of torch's optimisers. A key that is null keeps torch's default.

    Args:
        name: adam, adamw, rmsprop or sgd.
        lr: learning rate, > 0.
        weight_decay: >= 0.
        betas: of adam and adamw.
        eps: of adam, adamw and rmsprop.
        alpha: smoothing constant of rmsprop.
        momentum: of rmsprop and sgd.
    """

    name: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    betas: list[float] | None = None
    eps: float | None = None
    alpha: float | None = None
    momentum: float | None = None

    def __post_init__(self):
        if self.name not in OPTIMIZERS:
            raise ValueError(f"name={self.name}: must be one of {', '.join(OPTIMIZERS)}")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr}: must be > 0")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay={self.weight_decay}: must be >= 0")
        if self.betas is not None and not (len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)):
            raise ValueError(f"betas={self.betas}: must be two numbers in [0, 1)")
        known = inspect.signature(OPTIMIZERS[self.name]).parameters
        for key, value in self._options().items():
            if key not in known:
                raise ValueError(f"{key}={value}: is not a setting of {self.name}")
            if key != "betas" and not value >= 0:
                raise ValueError(f"{key}={value}: must be >= 0")

    def _options(self) -> dict:
        given = {key: getattr(self, key) for key in ("betas", "eps", "alpha", "momentum")}
        return {key: value for key, value in given.items() if value is not None}

    def build(self, model: Network) -> torch.optim.Optimizer:
        """torch's optimiser over the groups of the model, each with its multiple of learning rate and weight decay."""
        groups = [
            {
                "params": list(group.parameters),
                "lr": self.lr * group.lr,
                "weight_decay": self.weight_decay * group.weight_decay,
            }
            for group in model.groups()
        ]
        return OPTIMIZERS[self.name](groups, lr=self.lr, **self._options())


# The keys that each schedule reads, beside name and unit.
SCHEDULES = {
    "constant": (),
    "step": ("milestones", "factor"),
    "cosine": ("min_lr",),
    "plateau": ("factor", "patience", "threshold", "min_lr"),
}


@dataclass
class Scheduler:
    """How the learning rate changes.

    Args:
        name: constant; step (times ``factor`` after each milestone); cosine (to ``min_lr`` at the end of the
            budget); plateau (times ``factor`` when the loss on the monitored split has not improved).
        milestones: of step, in epochs, or in steps where the task has no epochs.
        factor: of step and plateau; 0.1 where not given.
        patience: of plateau: evaluations without improvement before the rate falls; 10 where not given.
        threshold: of plateau: the least relative improvement that counts; 1e-4 where not given.
        min_lr: of cosine and plateau; 0 where not given.
    """

    name: str = "constant"
    milestones: list[int] | None = None
    factor: float | None = None
    patience: int | None = None
    threshold: float | None = None
    min_lr: float | None = None

    def __post_init__(self):
        if self.name not in SCHEDULES:
            raise ValueError(f"name={self.name}: must be one of {', '.join(SCHEDULES)}")
        for key in ("milestones", "factor", "patience", "threshold", "min_lr"):
            if getattr(self, key) is not None and key not in SCHEDULES[self.name]:
                raise ValueError(f"{key}={getattr(self, key)}: is not a setting of the {self.name} schedule")
        if self.name == "step" and not self.milestones:
            raise ValueError("milestones=null: the step schedule needs one, as in scheduler.milestones=[100]")
        if self.milestones and (min(self.milestones) < 1 or self.milestones != sorted(set(self.milestones))):
            raise ValueError(f"milestones={self.milestones}: must be increasing and 1 or more")
        if self.factor is not None and not 0 < self.factor < 1:
            raise ValueError(f"factor={self.factor}: must be between 0 and 1")
        for key in ("patience", "threshold", "min_lr"):
            if getattr(self, key) is not None and not getattr(self, key) >= 0:
                raise ValueError(f"{key}={getattr(self, key)}: must be >= 0")

    def build(self, optimizer: torch.optim.Optimizer, steps_per_unit: int, total_steps: int):
        """A torch scheduler that is stepped after every training step; plateau after every evaluation, by its loss."""
        given = {key: getattr(self, key) for key in SCHEDULES[self.name] if getattr(self, key) is not None}
        if self.name == "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, total_steps, eta_min=given.get("min_lr", 0.0))
        if self.name == "plateau":
            return lr_scheduler.ReduceLROnPlateau(optimizer, **given)
        milestones = [steps_per_unit * m for m in given.get("milestones", [])]
        return lr_scheduler.MultiStepLR(optimizer, milestones, gamma=given.get("factor", 0.1))
