"""Curricula of sequence lengths: training starts on short sequences and ends on the task's own length."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from longwave.schema import Annotated, Ge, Gt, Le, OneOf, Section
from longwave.training.errors import UserError

if TYPE_CHECKING:
    from longwave.tasks.base import Task

# The keys that only one kind of curriculum reads.
KINDS = {"none": (), "grow": ("start", "factor"), "lengths": ("lengths",)}


@dataclass
class Curriculum(Section):
    """Train on growing lengths. Evaluation, selection and ``training.target`` stay at the task's own length.

    Training moves to the next length when the metric on test sequences of the current length has been better than
    ``bound`` in ``evaluations`` evaluations in a row, or after ``most_steps`` steps. The last length is the task's own.
    At length T the learning rate is multiplied by (T / first length)^-lr_power.

    Args:
        name: none; grow (lengths start, start * factor, ...); or lengths (a list).
        start: first length of grow, in units of the task's own key (T of adding, L of copying); 100 by default.
        factor: ratio of two neighbouring lengths of grow, > 1; 2 by default.
        lengths: increasing list of lengths; those that are not below the task's own are skipped.
        bound: value of the metric that a length has to reach; null is the task's first milestone (0.01 for adding).
        evaluations: number of evaluations in a row that have to reach it.
        least_steps: fewest steps at a length.
        most_steps: steps at a length after which training moves on in any case; null is no limit.
        lr_power: how fast the learning rate falls with the length; 0 keeps it.
    """

    name: Annotated[str, OneOf("none", "grow", "lengths")] = "none"
    start: Annotated[int | None, Ge(1), Le(10**9)] = None
    factor: Annotated[float | None, Gt(1), Le(1000)] = None
    lengths: Annotated[list[int] | None, Ge(1), Le(10**9)] = None
    bound: Annotated[float | None, Ge(-(10**9)), Le(10**9)] = None
    evaluations: Annotated[int, Ge(1), Le(10**6)] = 2
    least_steps: Annotated[int, Ge(0), Le(10**9)] = 0
    most_steps: Annotated[int | None, Ge(1), Le(10**9)] = None
    lr_power: Annotated[float, Ge(0), Le(10)] = 0.0

    def __post_init__(self):
        super().__post_init__()
        for key in ("start", "factor", "lengths"):
            if getattr(self, key) is not None and key not in KINDS[self.name]:
                raise ValueError(f"{key}={getattr(self, key)}: is not a setting of curriculum={self.name}")
        if self.most_steps is not None and self.most_steps < self.least_steps:
            raise ValueError(f"most_steps={self.most_steps}: must be at least least_steps={self.least_steps}")
        if self.name == "lengths" and not self.lengths:
            raise ValueError("lengths=null: must be a list, as in curriculum.lengths=[200,500,1000]")
        if self.lengths and self.lengths != sorted(set(self.lengths)):
            raise ValueError(f"lengths={self.lengths}: must be increasing")

    def tasks(self, task: "Task") -> list["Task"]:
        """The task at each length in turn, ``task`` itself being the last.

        UserError where the task has no length to shorten, a length does not fit it, or no stage would end.
        """
        if self.name == "none":
            return [task]
        if task.length is None:
            raise UserError(f"curriculum={self.name}: the length of this task is that of its data; use curriculum=none")
        if self.bound is None and not task.milestones and self.most_steps is None:
            raise UserError("curriculum.bound=null: this task has no milestone to reach; set curriculum.bound")
        try:
            return [*(task.at_length(length) for length in self._lengths(task.length)), task]
        except ValueError as error:
            raise UserError(f"curriculum={self.name}: {error}") from error

    def _lengths(self, own: int) -> list[int]:
        """The lengths before the task's own."""
        if self.name == "lengths":
            return [length for length in self.lengths if length < own]
        found, length = [], float(self.start or 100)
        while length < own:
            found.append(int(length))
            # Two lengths are never equal, however small the factor.
            length = max(length * (self.factor or 2.0), found[-1] + 1.0)
        return found

    def is_reached(self, task: "Task", value: float) -> bool:
        """True if a value of the task's metric is better than ``bound``."""
        bound = self.bound if self.bound is not None else next(iter(task.milestones), None)
        return bound is not None and task.better(value, bound)

    def is_due(self, steps: int, reached: int) -> bool:
        """True after ``steps`` at a length, the last ``reached`` evaluations being better than ``bound``."""
        learned = reached >= self.evaluations and steps >= self.least_steps
        return learned or (self.most_steps is not None and steps >= self.most_steps)

    def lr_scale(self, lengths: list[int | None], stage: int) -> float:
        """Factor of the learning rate at ``lengths[stage]``."""
        return 1.0 if len(lengths) == 1 else (lengths[stage] / lengths[0]) ** -self.lr_power
