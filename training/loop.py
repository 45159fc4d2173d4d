"""The training loop: steps, evaluations, selection, early stopping."""

import ctypes
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from longwave.tasks.base import Task
from longwave.tasks.randomness import counted_seed
from longwave.training.curriculum import Curriculum
from longwave.training.errors import Diverged, Interrupted, Pruned, UserError
from longwave.training.progress import ProgressBar, log


@dataclass
class Training:
    """Budget, cadence and selection.

    Args:
        steps: budget in training steps.
        epochs: budget in epochs. With both, the one that is reached first ends the run.
        batch_size: samples a step.
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
        limit_evaluation: evaluate on that many batches only; null is all. Such a run is no result.
        overfit: train on the first batch only. Such a run is no result.
    """

    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 64
    evaluate_every: int | None = None
    log_every: int = 50
    clip_norm: float | None = None
    clip_value: float | None = None
    selection: str = "last"
    patience: int | None = None
    target: float | None = None
    target_evaluations: int = 3
    precision: str = "fp32"
    checkpoint_seconds: float = 60.0
    limit_evaluation: int | None = None
    overfit: bool = False

    def __post_init__(self):
        for key in [
            "steps",
            "epochs",
            "batch_size",
            "evaluate_every",
            "log_every",
            "patience",
            "target_evaluations",
            "limit_evaluation",
        ]:
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}={value}: must be 1 or more")
        for key in ("clip_norm", "clip_value"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise ValueError(f"{key}={value}: must be > 0")
        if not self.checkpoint_seconds >= 0:
            raise ValueError(f"checkpoint_seconds={self.checkpoint_seconds}: must be >= 0")
        if self.selection not in ("last", "best"):
            raise ValueError(f"selection={self.selection}: must be one of last, best")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision={self.precision}: must be one of fp32, bf16")
        if self.steps is None and self.epochs is None:
            raise ValueError("steps=null: no recipe gives a budget here; set training.steps or training.epochs")

    def check(self, task: Task) -> None:
        """Raises UserError for what does not go with the task."""
        if self.selection == "best" and task.monitor == "test" and not task.selects_on_test:
            raise UserError("training.selection=best: this task has no validation split to select by; use last")
        if self.epochs is not None and task.steps_per_epoch(self.batch_size) is None:
            raise UserError(f"training.epochs={self.epochs}: this task has no epochs; set training.steps")

    def total_steps(self, task: Task) -> int:
        """The budget in steps."""
        per_epoch = task.steps_per_epoch(self.batch_size)
        budgets = [self.steps, self.epochs and self.epochs * per_epoch]
        return min(budget for budget in budgets if budget)


@dataclass
class State:
    """All that a run carries from step to step beside weights, optimiser and schedule."""

    step: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    history: list[dict] = field(default_factory=list)
    # {"step", "value", "weights"} of the best evaluation; the weights only where they will be tested.
    best: dict | None = None
    evaluations_since_best: int = 0
    evaluations_at_target: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    grad_norm: float = 0.0
    # The model's state at the end of the last batch, where the next goes on from there.
    carried: Any = None
    # Lengths of the curriculum that are done, each {"length", "steps", "seconds", "<metric>"}; evaluations in a row
    # that reached the bound of the present one, and its factor of the learning rate.
    stages: list[dict] = field(default_factory=list)
    evaluations_reached: int = 0
    lr_scale: float = 1.0

    @property
    def steps_at_length(self) -> int:
        return self.step - sum(stage["steps"] for stage in self.stages)


def pick_device(name: str) -> torch.device:
    """The device that ``device=name`` means here."""
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise UserError(f"device={name}: not available here; there are auto, {', '.join(available)}")
    return torch.device(name)


def set_up_process(threads: int | None) -> None:
    """Once a process, before torch starts its threads, which inherit the setting of denormals."""
    # Vanishing gradients become denormal numbers, on which a CPU computes many times slower.
    torch.set_flush_denormal(True)
    if threads is not None:
        torch.set_num_threads(threads)
    # glibc gives a freed sequence of tens of megabytes back to the system, which then has to clear every page of the
    # next one: up to a third of a training step. Here it is kept for the next step.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and sys.platform == "linux":
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


def fit(config, task: Task, model: nn.Module, device: torch.device, run) -> dict:
    """Trains ``model`` to the end of its budget, resuming where ``run`` has a checkpoint, and tests it.

    Args:
        config: the :class:`longwave.training.config.Config`.
        run: the :class:`longwave.training.run.Run`, entered.

    Returns:
        What the record says of the outcome: ``metrics``, ``objective``, ``selected_step``, ``stopped``, ...

    Raises:
        Diverged: when a loss, gradient or score is not finite. A checkpoint holds only what was finite.
        Interrupted: when the process was told to stop; its state has been saved.
    """
    settings: Training = config.training
    curriculum = config.curriculum
    tasks = curriculum.tasks(task)
    lengths = [one.length for one in tasks]
    total = settings.total_steps(task)
    per_epoch = task.steps_per_epoch(settings.batch_size)
    evaluate_every = settings.evaluate_every or per_epoch or 100

    model.to(device)
    optimizer = config.optimizer.build(model)
    scheduler = config.scheduler.build(optimizer, per_epoch or 1, total)
    by_plateau = config.scheduler.name == "plateau"
    shown = ("curriculum/length", f"train/{task.objective}", f"{task.monitor}/{task.metric}")
    state = _restore(run.load(), model, optimizer, scheduler)
    run.start(state, total, per_epoch, lengths)
    probe = config.diagnostics.probe(model, task, settings.batch_size, device)
    began = time.monotonic() - state.seconds
    saved = time.monotonic()

    def save() -> None:
        nonlocal saved
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise Diverged(state.step, "largest weight", math.inf)
        state.seconds = time.monotonic() - began
        parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        run.save({**{name: part.state_dict() for name, part in parts.items()}, "state": vars(state)})
        saved = time.monotonic()

    if probe is not None and not state.step and not state.history:
        state.history.append({"step": 0, **probe(), "seconds": 0.0})
        run.log(state.history[0])
    try:
        with ProgressBar(run.title, state.step, total) as bar:
            while state.stopped is None:
                run.check_signal(state.step)
                current = tasks[len(state.stages)]
                evaluating = state.step % evaluate_every == 0 or state.step == total
                logging = evaluating or state.step % settings.log_every == 0
                if state.step and logging and (not state.history or state.history[-1]["step"] < state.step):
                    # Nothing changes before the scores are there: interrupted here, it evaluates again.
                    scores, at_length = {}, {}
                    if evaluating:
                        scores = evaluate(model, task, task.monitor, device, settings, run, state.step)
                        at_length = scores
                        if current is not task:
                            at_length = evaluate(model, current, task.monitor, device, settings, run, state.step)
                    state.seconds = time.monotonic() - began
                    entry = _entry(task, state, optimizer, per_epoch, scores)
                    if len(tasks) > 1:
                        entry["curriculum/length"] = current.length
                        entry |= {f"curriculum/{key}": value for key, value in at_length.items()}
                    if evaluating:
                        entry |= probe() if probe is not None else {}
                        _judge(settings, task, model, state, scores[task.metric], growing=current is not task)
                        if current is not task:
                            _move_on(curriculum, lengths, task, state, at_length[task.metric])
                        if by_plateau:
                            scheduler.step(scores[task.objective])
                    state.history.append(entry)
                    state.loss_sum, state.loss_count = 0.0, 0
                    run.log(entry)
                    bar.update(state.step, {key: entry[key] for key in shown if key in entry})
                elif state.step == total:
                    state.stopped = "budget"
                else:
                    if time.monotonic() - saved >= settings.checkpoint_seconds:
                        save()
                    _scale_lr(optimizer, state, curriculum.lr_scale(lengths, len(state.stages), state.steps_at_length))
                    loss, state.grad_norm = _train_step(config, current, model, device, optimizer, state)
                    state.step += 1
                    if not by_plateau:
                        scheduler.step()
                    state.loss_sum += loss
                    state.loss_count += 1
                    bar.update(state.step)
    except (Interrupted, Pruned):
        save()
        raise
    save()
    outcome = _outcome(settings, task, model, device, state, run)
    if len(tasks) > 1:
        outcome["curriculum"] = state.stages.copy()
        # Nothing was trained on the next length where the run ended with the one before.
        if state.steps_at_length:
            last = [entry for entry in state.history if f"curriculum/{task.metric}" in entry][-1]
            length = tasks[len(state.stages)].length
            outcome["curriculum"].append(_stage(state, length, task.metric, last[f"curriculum/{task.metric}"]))
    return outcome


def _entry(task: Task, state: State, optimizer, per_epoch: int | None, scores: dict[str, float]) -> dict:
    """A line of the history."""
    entry = {"step": state.step, "lr": optimizer.param_groups[0]["lr"]}
    if per_epoch is not None:
        entry["epoch"] = state.step / per_epoch
    entry[f"train/{task.objective}"] = state.loss_sum / state.loss_count
    entry["train/grad_norm"] = state.grad_norm
    entry.update({f"{task.monitor}/{key}": value for key, value in scores.items()})
    return entry | {"seconds": state.seconds}


def _restore(saved: dict | None, model, optimizer, scheduler) -> State:
    state = State()
    if saved is not None:
        try:
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            scheduler.load_state_dict(saved["scheduler"])
            state = State(**saved["state"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = str(error).split("\n")[0]
            raise UserError(
                f"the checkpoint is of another version of the code ({reason}); fresh=true starts over"
            ) from error
        log.info("resuming at step %d", state.step)
    return state


def _train_step(config, task: Task, model, device, optimizer, state: State) -> tuple[float, float]:
    """One update; gives the loss and the norm of the gradient, both before it."""
    settings: Training = config.training
    step = state.step
    # Whatever the model draws (dropout) depends on the step only.
    torch.manual_seed(counted_seed(config.seed, "forward", step))
    x, target, *lengths = task.batch(0 if settings.overfit else step, settings.batch_size)
    per_epoch = task.steps_per_epoch(settings.batch_size)
    if settings.overfit or (per_epoch is not None and step % per_epoch == 0):
        state.carried = None
    target = target.to(device)
    model.train()
    optimizer.zero_grad()
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        output, state.carried = _forward(model, task, device, x, lengths, state.carried)
    loss = task.scores(output.float(), target)[task.objective].mean()
    value = loss.item()
    if not math.isfinite(value):
        raise Diverged(step + 1, f"training loss ({task.objective})", value)
    loss.backward()
    if settings.clip_value is not None:
        nn.utils.clip_grad_value_(model.parameters(), settings.clip_value)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if not math.isfinite(norm):
        raise Diverged(step + 1, "norm of the gradient", norm.item())
    if settings.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(model.parameters(), settings.clip_norm, norm)
    optimizer.step()
    model.updated(step + 1)
    return value, norm.item()


def _forward(model, task: Task, device, x: Tensor, lengths: list[Tensor], carried) -> tuple[Tensor, Any]:
    """The model's output, and the state from which the next batch goes on; None where it does not."""
    if not task.carries_state:
        return model(x.to(device), *(t.to(device) for t in lengths)), None
    output, state = model.advance(x.to(device), _each(carried, lambda t: t.to(device)))
    return output, _each(state, Tensor.detach)


def _each(state, function: Callable[[Tensor], Tensor]):
    """``function`` of every tensor of a model's state: a tensor, None, or a tuple of such."""
    if isinstance(state, tuple):
        return tuple(_each(part, function) for part in state)
    return None if state is None else function(state)


@torch.no_grad()
def evaluate(
    model: nn.Module, task: Task, split: str, device: torch.device, settings: Training, run, step: int
) -> dict[str, float]:
    """The task's summary of the mean of every score over ``split``.

    Raises:
        Diverged: where one is not finite.
        Interrupted: when the process was told to stop.
    """
    model.eval()
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    carried = None
    for index, (x, target, *lengths) in enumerate(task.evaluation(split)):
        if index == settings.limit_evaluation:
            break
        run.check_signal(step)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            output, carried = _forward(model, task, device, x, lengths, carried)
        for key, values in task.scores(output.float(), target.to(device)).items():
            # On the CPU, since not every device has float64.
            sums[key] = sums.get(key, 0.0) + values.cpu().double().sum().item()
            counts[key] = counts.get(key, 0) + values.numel()
    for key, value in sums.items():
        if not math.isfinite(value):
            raise Diverged(step, f"{split} {key}", value)
    return task.summary({key: value / counts[key] for key, value in sums.items()})


def _judge(settings: Training, task: Task, model, state: State, value: float, growing: bool) -> None:
    """Keeps the best weights, and stops early where the settings say so; never for patience while lengths grow."""
    if task.better(value, state.best and state.best["value"]):
        state.best = {"step": state.step, "value": value}
        if settings.selection == "best":
            state.best["weights"] = {key: tensor.cpu().clone() for key, tensor in model.state_dict().items()}
        state.evaluations_since_best = 0
    else:
        state.evaluations_since_best += 1
    if growing:
        state.evaluations_since_best = 0
    if settings.patience is not None and state.evaluations_since_best >= settings.patience:
        state.stopped = "patience"
    reached = settings.target is not None and not task.better(settings.target, value)
    state.evaluations_at_target = state.evaluations_at_target + 1 if reached else 0
    if state.evaluations_at_target >= settings.target_evaluations:
        state.stopped = "target"


def _move_on(curriculum: Curriculum, lengths: list[int], task: Task, state: State, value: float) -> None:
    """Goes to the next length of the curriculum where the present one is done.

    Args:
        value: of the metric at the present length.
    """
    state.evaluations_reached = state.evaluations_reached + 1 if curriculum.is_reached(task, value) else 0
    if curriculum.is_due(state.steps_at_length, state.evaluations_reached):
        length, following = lengths[len(state.stages) :][:2]
        state.stages.append(_stage(state, length, task.metric, value))
        state.evaluations_reached = 0
        log.info("step %d: %s %.4g at length %d; now length %d", state.step, task.metric, value, length, following)


def _stage(state: State, length: int, metric: str, value: float) -> dict:
    """What the record says of the present length."""
    seconds = state.seconds - sum(stage["seconds"] for stage in state.stages)
    return {"length": length, "steps": state.steps_at_length, "seconds": round(seconds, 3), metric: value}


def _scale_lr(optimizer, state: State, scale: float) -> None:
    """Multiplies the learning rates, whatever the schedule has made of them, by a curriculum's factor."""
    if scale != state.lr_scale:
        for group in optimizer.param_groups:
            group["lr"] *= scale / state.lr_scale
        state.lr_scale = scale


def _outcome(settings: Training, task: Task, model, device, state: State, run) -> dict:
    monitored = f"{task.monitor}/{task.metric}"
    evaluations = [entry for entry in state.history if monitored in entry]
    selected = state.best if settings.selection == "best" else {"step": state.step}
    if "weights" in selected:
        model.load_state_dict(selected["weights"])
    chosen = next(entry for entry in evaluations if entry["step"] == selected["step"])
    metrics: dict[str, dict] = {"train": {task.objective: chosen[f"train/{task.objective}"]}}
    scores = {key.partition("/")[2]: value for key, value in chosen.items() if key.startswith(f"{task.monitor}/")}
    metrics[task.monitor] = scores
    if task.monitor != "test":
        metrics["test"] = evaluate(model, task, "test", device, settings, run, state.step)
    first_passed = {
        str(bound): next((e["step"] for e in evaluations if task.better(e[monitored], bound)), None)
        for bound in task.milestones
    }
    return {
        "metrics": metrics,
        "objective": {"key": monitored, "value": metrics[task.monitor][task.metric]},
        "selected_step": selected["step"],
        "stopped": state.stopped,
        "first_passed": {monitored: first_passed} if first_passed else {},
        "baseline": task.baseline,
    }
