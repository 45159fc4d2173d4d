"""Optimisers and learning-rate schedules of torch."""

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longwave.schema import Annotated, Ge, Gt, Le, Lt, OneOf, Section, shown

if TYPE_CHECKING:
    import torch

    from longwave.models.network import Network

# The classes of torch.optim, which is imported once there is something to optimise.
OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop", "sgd": "SGD"}


@dataclass
class Optimizer(Section):
    """One of torch's optimisers. A key that is null keeps torch's default.

    Args:
        name: adam, adamw, rmsprop or sgd.
        lr: learning rate.
        weight_decay: as in torch: of adamw decoupled, of the others an L2 term of the gradient.
        betas: of adam and adamw.
        eps: of adam, adamw and rmsprop.
        alpha: smoothing constant of rmsprop.
        momentum: of rmsprop and sgd.
    """

    name: Annotated[str, OneOf(*OPTIMIZERS)] = "adam"
    lr: Annotated[float, Gt(0), Le(1000)] = 1e-3
    weight_decay: Annotated[float, Ge(0), Le(1000)] = 0.0
    betas: Annotated[list[float] | None, Ge(0), Lt(1)] = None
    eps: Annotated[float | None, Ge(0), Le(1)] = None
    alpha: Annotated[float | None, Ge(0), Lt(1)] = None
    momentum: Annotated[float | None, Ge(0), Lt(1)] = None

    def __post_init__(self):
        super().__post_init__()
        if self.betas is not None and len(self.betas) != 2:
            raise ValueError(f"betas={self.betas}: must be two numbers")
        options = self._options()
        known = inspect.signature(self._class()).parameters if options else ()
        for key, value in options.items():
            if key not in known:
                raise ValueError(f"{key}={value}: is not a setting of {self.name}")

    def _options(self) -> dict:
        given = {key: getattr(self, key) for key in ("betas", "eps", "alpha", "momentum")}
        return {key: value for key, value in given.items() if value is not None}

    @property
    def moments(self) -> int:
        """Numbers that the optimiser keeps for each weight."""
        own = {"adam": 2, "adamw": 2, "rmsprop": 1, "sgd": 0}[self.name]
        return own + bool(self.momentum)

    def _class(self) -> "type[torch.optim.Optimizer]":
        import torch

        return getattr(torch.optim, OPTIMIZERS[self.name])

    def build(self, model: "Network") -> "torch.optim.Optimizer":
        """torch's optimiser of the model's groups, each with its multiple of learning rate and weight decay."""
        groups = []
        for group in model.groups():
            scaled = {"lr": self.lr * group.lr, "weight_decay": self.weight_decay * group.weight_decay}
            groups.append({"params": list(group.parameters), **scaled})
        return self._class()(groups, lr=self.lr, **self._options())


# Settings of each schedule.
SCHEDULES = {
    "constant": (),
    "step": ("milestones", "factor"),
    "exponential": ("factor",),
    "cosine": ("min_lr",),
    "plateau": ("factor", "patience", "threshold", "min_lr"),
}


@dataclass
class Scheduler(Section):
    """Learning-rate schedule.

    Args:
        name: constant; step (times ``factor`` after each milestone); exponential (times ``factor`` after every epoch,
            or every step where the task has no epochs); cosine (to ``min_lr`` at the end of the budget); plateau (times
            ``factor`` when the loss on the monitored split has not improved).
        milestones: of step, in epochs, or in steps where the task has no epochs.
        factor: of step and plateau, 0.1 by default, and of exponential, which has no default.
        patience: of plateau: evaluations without improvement before the rate falls; 10 by default.
        threshold: of plateau: least relative improvement that counts; 1e-4 by default.
        min_lr: of cosine and plateau; 0 by default.
    """

    name: Annotated[str, OneOf(*SCHEDULES)] = "constant"
    milestones: Annotated[list[int] | None, Ge(1), Le(1_000_000_000)] = None
    factor: Annotated[float | None, Gt(0), Lt(1)] = None
    patience: Annotated[int | None, Ge(0), Le(1_000_000)] = None
    threshold: Annotated[float | None, Ge(0), Lt(1)] = None
    min_lr: Annotated[float | None, Ge(0), Le(1000)] = None

    def __post_init__(self):
        super().__post_init__()
        for key in ("milestones", "factor", "patience", "threshold", "min_lr"):
            if getattr(self, key) is not None and key not in SCHEDULES[self.name]:
                raise ValueError(f"{key}={getattr(self, key)}: is not a setting of the {self.name} schedule")
        if self.name == "step" and not self.milestones:
            raise ValueError(f"milestones={shown(self.milestones)}: must be a list, as in scheduler.milestones=[100]")
        if self.name == "exponential" and self.factor is None:
            raise ValueError("factor=null: must be a number, as in scheduler.factor=0.99")
        if self.milestones and self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"milestones={self.milestones}: must be increasing")

    def build(self, optimizer: "torch.optim.Optimizer", steps_per_unit: int, total_steps: int):
        """A torch scheduler, to be stepped after every training step; plateau after every evaluation, by its loss."""
        from torch.optim import lr_scheduler

        given = {key: getattr(self, key) for key in SCHEDULES[self.name] if getattr(self, key) is not None}
        if self.name == "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, total_steps, eta_min=given.get("min_lr", 0.0))
        if self.name == "plateau":
            return lr_scheduler.ReduceLROnPlateau(optimizer, **given)
        if self.name == "exponential":
            return lr_scheduler.StepLR(optimizer, steps_per_unit, gamma=self.factor)
        milestones = [steps_per_unit * m for m in given.get("milestones", [])]
        return lr_scheduler.MultiStepLR(optimizer, milestones, gamma=given.get("factor", 0.1))
