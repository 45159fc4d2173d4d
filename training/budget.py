"""The ``training`` section: budget, cadence and selection."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from longwave.schema import LATER, NEUTRAL, Annotated, Ge, Gt, Le, OneOf, Section
from longwave.training.errors import UserError

if TYPE_CHECKING:
    from longwave.tasks.base import Task


@dataclass
class Training(Section):
    """Budget, cadence and selection.

    Args:
        steps: budget in training steps.
        epochs: budget in epochs. With both, the one that is reached first ends the run.
        batch_size: samples per step.
        evaluate_every: steps between evaluations; null is once an epoch, or 100 where the task has no epochs.
        log_every: steps between two entries of the training loss in the history.
        clip_norm: gradients are scaled down to this norm; null is off.
        clip_value: gradients are clamped to [-clip_value, clip_value]; null is off.
        selection: which weights are tested at the end: last, or best (by the metric on the validation split).
        patience: evaluations without improvement of the metric after which the run ends; null is off.
        target: value of the metric at which the run ends, once it has held in ``target_evaluations`` evaluations
            in a row; null is off.
        target_evaluations: see ``target``.
        precision: fp32, or bf16 (autocast; weights and optimiser stay in fp32).
        checkpoint_seconds: time between checkpoints; 0 is after every step.
        limit_evaluation: evaluate on this many batches only; null is all. Such a run does not count as a result.
        overfit: train on the first batch only. Such a run does not count as a result.
        start_from: a finished run whose weights this one starts from, by folder, name or identity; null is none. Their
            content identifies the setting: the value becomes <run>@<hash of the weights>, and may be given so.
    """

    steps: Annotated[int | None, Ge(1), Le(10**9)] = None
    epochs: Annotated[int | None, Ge(1), Le(1_000_000)] = None
    batch_size: Annotated[int, Ge(1), Le(1_000_000)] = 64
    evaluate_every: Annotated[int | None, Ge(1), Le(10**9)] = None
    log_every: Annotated[int, Ge(1), Le(10**9)] = 50
    clip_norm: Annotated[float | None, Gt(0), Le(10**6)] = None
    clip_value: Annotated[float | None, Gt(0), Le(10**6)] = None
    selection: Annotated[str, OneOf("last", "best")] = "last"
    patience: Annotated[int | None, Ge(1), Le(10**6)] = None
    target: Annotated[float | None, Ge(-(10**9)), Le(10**9)] = None
    target_evaluations: Annotated[int, Ge(1), Le(10**6)] = 3
    precision: Annotated[str, OneOf("fp32", "bf16")] = "fp32"
    checkpoint_seconds: Annotated[float, Ge(0), Le(10**6), NEUTRAL] = 60.0
    limit_evaluation: Annotated[int | None, Ge(1), Le(10**9)] = None
    overfit: bool = False
    start_from: Annotated[str | None, LATER] = None

    def __post_init__(self):
        super().__post_init__()
        if self.steps is None and self.epochs is None:
            raise ValueError("steps=null: no recipe gives a budget here; set training.steps or training.epochs")

    def check(self, task: "Task") -> None:
        """Raises UserError for a setting that does not fit the task."""
        if self.selection == "best" and task.monitor == "test" and not task.selects_on_test:
            raise UserError("training.selection=best: this task has no validation split to select by; use last")
        if self.epochs is not None and task.steps_per_epoch(self.batch_size) is None:
            raise UserError(f"training.epochs={self.epochs}: this task has no epochs; set training.steps")

        if task.steps_per_epoch(self.batch_size) == 0:
            raise UserError(f"training.batch_size={self.batch_size}: more samples than the training set gives")

    def total_steps(self, task: "Task") -> int:
        """The budget in steps."""
        per_epoch = task.steps_per_epoch(self.batch_size)
        budgets = [self.steps, self.epochs and self.epochs * per_epoch]
        return min(budget for budget in budgets if budget)


@dataclass
class Diagnostics:
    """Measurements before the first step and at each evaluation, on the training batch of step 0.

    Args:
        gradients: the norm of dE/dh_k at lags 0, 1, 2, 4, ..., as ``gradients/lag_<k>``.
        theory: what the layer's ``theory(x)`` gives, as ``theory/<key>``: its paper's assumptions as numbers.
    """

    gradients: bool = False
    theory: bool = False
