"""The training loop: steps, evaluations, selection, early stopping."""

import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from longwave.models.layer import detach, map_state
from longwave.models.network import Network
from longwave.tasks.base import Task
from longwave.tasks.randomness import counted_seed
from longwave.training import environment, weights
from longwave.training.budget import Training
from longwave.training.config import Config
from longwave.training.diagnostics import picture, probe
from longwave.training.errors import Diverged, Interrupted, Pruned, UserError
from longwave.training.files import write_atomic
from longwave.training.progress import ProgressBar, log
from longwave.training.run import Run
from longwave.training.tracking import Tracker


class Signals:
    """Ctrl-C, SIGTERM, a scheduler's warnings and the end of the terminal, noted while inside.

    A second Ctrl-C or SIGTERM finds the original handler and ends the process at once. A launcher's own handler of
    the signal that was noted is called on leaving.
    """

    # SLURM warns with a signal of the user's choice, often one of the last two.
    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

    def __enter__(self) -> "Signals":
        self._caught: int | None = None
        self._handlers: dict = {}
        self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
        # Python takes signals in its main thread only; launchers may run jobs in another.
        if threading.current_thread() is threading.main_thread():
            # Under nohup, SIGHUP is ignored and stays so.
            numbers = [s for s in self.NUMBERS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
            self._handlers = {s: signal.signal(s, self._note) for s in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        before = self._handlers.get(self._caught)
        if callable(before) and before is not signal.default_int_handler:
            # Such as submitit's, which requeues the job.
            before(self._caught, None)

    def _note(self, number: int, frame) -> None:
        self._caught = number
        if number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handlers[number])
        # A shell and the system both send SIGHUP; and what is written to a terminal that is gone is an error.
        for fd in self._terminals if number == signal.SIGHUP else ():
            if not os.isatty(fd):
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)

    def check(self, step: int) -> None:
        """Raises Interrupted if a signal has come."""
        if self._caught is not None:
            raise Interrupted(step, self._caught)


@dataclass
class State:
    """Everything that a run carries from step to step besides weights, optimiser and schedule."""

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
    # The hidden state at the end of the last batch, for truncated BPTT.
    carried: Any = None
    # Lengths of the curriculum that are done, each {"length", "steps", "seconds", "<metric>"}; evaluations in a row
    # that reached the bound of the present one, and its factor of the learning rate.
    stages: list[dict] = field(default_factory=list)
    evaluations_reached: int = 0
    lr_scale: float = 1.0

    @property
    def steps_at_length(self) -> int:
        return self.step - sum(stage["steps"] for stage in self.stages)


@dataclass
class Trainer:
    """Trains a model on a task and tests it.

    Args:
        run: entered; it keeps checkpoints, history and record.
        tracker: is shown every entry of the history.
        on_score: called with the step and the metric on the monitored split at every evaluation, those of earlier
            processes too; may raise :class:`longwave.training.errors.Pruned`.
    """

    config: Config
    task: Task
    model: Network
    device: torch.device
    run: Run
    signals: Signals
    tracker: Tracker = field(default_factory=Tracker)
    on_score: Callable[[int, float], None] | None = None

    def __post_init__(self):
        config, task = self.config, self.task
        self.settings: Training = config.training
        self.tasks = config.curriculum.tasks(task)
        self.lengths = [one.length for one in self.tasks]
        self.total = self.settings.total_steps(task)
        self.per_epoch = task.steps_per_epoch(self.settings.batch_size)
        self.evaluate_every = self.settings.evaluate_every or self.per_epoch or 100
        self.monitored = f"{task.monitor}/{task.metric}"
        self.model.to(self.device)
        self.optimizer = config.optimizer.build(self.model)
        self.scheduler = config.scheduler.build(self.optimizer, self.per_epoch or 1, self.total)
        self.by_plateau = config.scheduler.name == "plateau"
        self.parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        self.probe = probe(config.diagnostics, self.model, task, self.settings.batch_size, self.device)
        self.state = State()

    def restore(self) -> None:
        """Continues from the newest good checkpoint, if the run has one."""
        saved = self.run.load()
        if saved is not None:
            try:
                for name, part in self.parts.items():
                    part.load_state_dict(saved[name])
                self.state = State(**saved["state"])
                if not 0 <= self.state.step <= self.total:
                    raise ValueError(f"it is at step {self.state.step}, and the budget is {self.total} steps")
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                reason = str(error).partition("\n")[0]
                message = f"checkpoint does not fit this code ({reason}); use fresh=true to start over"
                raise UserError(message) from error
            log.info("resuming at step %d", self.state.step)
        elif self.settings.start_from is not None:
            weights.start(self.model, self.settings.start_from, self.config.output)
            log.info("starting from the weights of %s", self.settings.start_from)
        self._began = time.monotonic() - self.state.seconds
        self._saved = time.monotonic()
        self.run.record.budget.steps = self.total
        self._note()
        self.run.start(self.state.step, self.state.history)

    def announce(self) -> None:
        """Logs the run's size, budget and backend."""
        task, target, record = self.task, self.settings.target, self.run.record
        steps = f"{self.total} steps" + (f" ({self.per_epoch} an epoch)" if self.per_epoch else "")
        if target is not None:
            bound = "above" if task.higher_is_better else "below"
            steps += f", fewer once {self.monitored} has held {bound} {target}"
        if len(self.lengths) > 1:
            steps += f", lengths {', '.join(map(str, self.lengths))}"
        about = (f"{record.parameters:,} parameters", steps, f"on {record.device}", f"time loop: {record.backend}")
        log.info("%s: %s", self.run.name, ", ".join(about))

    def fit(self) -> dict:
        """Trains to the end of the budget and tests.

        Returns:
            Fields of the record on the outcome: ``metrics``, ``objective``, ``selected_step``, ``stopped``, ...

        Raises:
            Diverged: when a loss, gradient or score is not finite. A checkpoint holds only what was finite.
            Interrupted: when a signal stopped the process; its state has been saved.
        """
        state = self.state
        try:
            for entry in state.history:
                self._score(entry)
            if self.probe is not None and not state.step and not state.history:
                self._keep({"step": 0, **self.probe(), "seconds": 0.0})
            with ProgressBar(self.run.title, state.step, self.total) as self._bar:
                # A process that was stopped after a step may have left its evaluation undone.
                self._evaluate()
                while state.step < self.total and state.stopped is None:
                    self.signals.check(state.step)
                    if time.monotonic() - self._saved >= self.settings.checkpoint_seconds:
                        self.save()
                    self.train_step()
                    self._evaluate()
        except (Interrupted, Pruned):
            self.save()
            raise
        finally:
            self._note()
            self._draw()
        state.stopped = state.stopped or "budget"
        self.save()
        return self._test()

    def train_step(self) -> None:
        """One update."""
        config, settings, state, model = self.config, self.settings, self.state, self.model
        task, optimizer = self.tasks[len(state.stages)], self.optimizer
        self._scale_lr(config.curriculum.lr_scale(self.lengths, len(state.stages)))
        # Whatever the model draws (dropout) depends on the step only.
        torch.manual_seed(counted_seed(config.seed, "forward", state.step))
        x, target, *lengths = task.batch(0 if settings.overfit else state.step, settings.batch_size)
        if settings.overfit or (self.per_epoch is not None and state.step % self.per_epoch == 0):
            state.carried = None
        target = target.to(self.device)
        model.train()
        optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            output, state.carried = _forward(model, task, self.device, x, lengths, state.carried)
        loss = task.scores(output.float(), target)[task.objective].mean()
        value = loss.item()
        if not math.isfinite(value):
            raise Diverged(state.step + 1, f"training loss ({task.objective})", value)
        loss.backward()
        if settings.clip_value is not None:
            nn.utils.clip_grad_value_(model.parameters(), settings.clip_value)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if not math.isfinite(norm):
            raise Diverged(state.step + 1, "norm of the gradient", norm.item())
        if settings.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(model.parameters(), settings.clip_norm, norm)
        optimizer.step()
        model.after_step(state.step + 1)
        if not self.by_plateau:
            self.scheduler.step()
        state.step += 1
        state.grad_norm = norm.item()
        state.loss_sum += value
        state.loss_count += 1
        self._bar.update(state.step)

    def _scale_lr(self, scale: float) -> None:
        """Multiplies the learning rates, whatever the schedule has made of them, by a curriculum's factor."""
        if scale != self.state.lr_scale:
            for group in self.optimizer.param_groups:
                group["lr"] *= scale / self.state.lr_scale
            self.state.lr_scale = scale

    def _evaluate(self) -> None:
        """Where one is due, adds an entry to the history: the training loss, and the scores where those are due."""
        state, task = self.state, self.task
        evaluating = state.step % self.evaluate_every == 0 or state.step == self.total
        due = evaluating or state.step % self.settings.log_every == 0
        if not state.step or not due or (state.history and state.history[-1]["step"] == state.step):
            return
        # Nothing changes before the scores are there: interrupted here, it evaluates again.
        current = self.tasks[len(state.stages)]
        scores, at_length = {}, {}
        if evaluating:
            scores = self._scores(task, task.monitor)
            at_length = scores if current is task else self._scores(current, task.monitor)
        state.seconds = time.monotonic() - self._began
        entry = {"step": state.step, "lr": self.optimizer.param_groups[0]["lr"]}
        if self.per_epoch is not None:
            entry["epoch"] = state.step / self.per_epoch
        entry[f"train/{task.objective}"] = state.loss_sum / state.loss_count
        entry["train/grad_norm"] = state.grad_norm
        entry |= {f"{task.monitor}/{key}": value for key, value in scores.items()}
        entry["seconds"] = state.seconds
        if len(self.tasks) > 1:
            entry["curriculum/length"] = current.length
            entry |= {f"curriculum/{key}": value for key, value in at_length.items()}
        if evaluating:
            entry |= self.probe() if self.probe is not None else {}
            self._judge(scores[task.metric], growing=current is not task)
            if current is not task:
                self._move_on(at_length[task.metric])
            if self.by_plateau:
                self.scheduler.step(scores[task.objective])
        state.loss_sum, state.loss_count = 0.0, 0
        self._keep(entry)
        shown = ("curriculum/length", f"train/{task.objective}", self.monitored)
        self._bar.update(state.step, {key: entry[key] for key in shown if key in entry})

    def _scores(self, task: Task, split: str, kept: list | None = None) -> dict[str, float]:
        return evaluate(self.model, task, split, self.device, self.settings, self.signals, self.state.step, kept)

    def _keep(self, entry: dict) -> None:
        self.state.history.append(entry)
        self.run.log(entry)
        self.tracker.log(entry)
        self._score(entry)

    def _score(self, entry: dict) -> None:
        if self.on_score is not None and self.monitored in entry:
            self.on_score(entry["step"], entry[self.monitored])

    def _judge(self, value: float, growing: bool) -> None:
        """Keeps the best weights, and stops early where the settings ask for it; never for patience while growing."""
        state, settings, task = self.state, self.settings, self.task
        better = task.better(value, state.best and state.best["value"])
        if better:
            state.best = {"step": state.step, "value": value}
            if settings.selection == "best":
                state.best["weights"] = {key: tensor.cpu().clone() for key, tensor in self.model.state_dict().items()}
        state.evaluations_since_best = 0 if better or growing else state.evaluations_since_best + 1
        if settings.patience is not None and state.evaluations_since_best >= settings.patience:
            state.stopped = "patience"
        reached = settings.target is not None and not task.better(settings.target, value)
        state.evaluations_at_target = state.evaluations_at_target + 1 if reached else 0
        if state.evaluations_at_target >= settings.target_evaluations:
            state.stopped = "target"

    def _move_on(self, value: float) -> None:
        """Goes to the next length of the curriculum if the current one is done; ``value`` is the metric there."""
        state, curriculum, metric = self.state, self.config.curriculum, self.task.metric
        state.evaluations_reached = state.evaluations_reached + 1 if curriculum.is_reached(self.task, value) else 0
        if curriculum.is_due(state.steps_at_length, state.evaluations_reached):
            length, following = self.lengths[len(state.stages) :][:2]
            state.stages.append(self._stage(value))
            state.evaluations_reached = 0
            log.info("step %d: %s %.4g at length %d; now length %d", state.step, metric, value, length, following)

    def _stage(self, value: float) -> dict:
        """The current length, as the record has it."""
        state = self.state
        length = self.lengths[len(state.stages)]
        seconds = round(state.seconds - sum(stage["seconds"] for stage in state.stages), 3)
        return {"length": length, "steps": state.steps_at_length, "seconds": seconds, self.task.metric: value}

    def save(self) -> None:
        """Writes a checkpoint; Diverged where a weight is not finite: then the earlier checkpoints are kept."""
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise Diverged(self.state.step, "largest weight", math.inf)
        self.state.seconds = time.monotonic() - self._began
        self._note()
        self.run.save({name: part.state_dict() for name, part in self.parts.items()} | {"state": vars(self.state)})
        self._saved = time.monotonic()

    def _note(self) -> None:
        """Updates the record to the current step."""
        record, seconds = self.run.record, self.state.seconds
        record.budget.steps_done = self.state.step
        record.wall_seconds = round(seconds, 3)
        record.steps_per_second = round(self.state.step / seconds, 3) if seconds else None
        record.peak_memory_bytes = environment.peak_memory_bytes(self.device)

    def _draw(self) -> None:
        """Keeps the gradient norms, where they were measured, as a picture."""
        png = picture(self.state.history, self.run.name) if self.config.diagnostics.gradients else None
        try:
            if png is not None:
                write_atomic(self.run.folder / "gradients.png", png)
        except UserError as error:
            # A full disk must not hide what ended the run.
            log.error("%s", error)

    def _draw_predictions(self, kept: list[Tensor]) -> None:
        """Keeps a picture of the predictions of the test set, where the task has one."""
        png = self.task.picture(*kept, self.run.name) if kept else None
        if png is not None:
            write_atomic(self.run.folder / "confusion.png", png)

    def _test(self) -> dict:
        state, task, settings = self.state, self.task, self.settings
        evaluations = [entry for entry in state.history if self.monitored in entry]
        selected = state.best if settings.selection == "best" else {"step": state.step}
        if "weights" in selected:
            self.model.load_state_dict(selected["weights"])
        chosen = next(entry for entry in evaluations if entry["step"] == selected["step"])
        metrics: dict[str, dict] = {"train": {task.objective: chosen[f"train/{task.objective}"]}}
        split = f"{task.monitor}/"
        metrics[task.monitor] = {k.removeprefix(split): value for k, value in chosen.items() if k.startswith(split)}
        kept: list[Tensor] = []
        for name in task.tests:
            if name != task.monitor:
                metrics[name] = self._scores(task, name, kept if name == "test" else None)
        if task.monitor == "test" and task.gathers:
            self._scores(task, "test", kept)
        self._draw_predictions(kept)
        first_passed = {
            str(bound): next((e["step"] for e in evaluations if task.better(e[self.monitored], bound)), None)
            for bound in task.milestones
        }
        outcome = {
            "metrics": metrics,
            "objective": {"key": self.monitored, "value": metrics[task.monitor][task.metric]},
            "selected_step": selected["step"],
            "stopped": state.stopped,
            "first_passed": {self.monitored: first_passed} if first_passed else {},
            "baseline": task.baseline,
        }
        if len(self.tasks) > 1:
            outcome["curriculum"] = state.stages.copy()
            # Nothing was trained on the next length where the run ended with the one before.
            if state.steps_at_length:
                at_length = f"curriculum/{task.metric}"
                last = [entry[at_length] for entry in state.history if at_length in entry][-1]
                outcome["curriculum"].append(self._stage(last))
        return outcome


def _forward(model, task: Task, device, x: Tensor, lengths: list[Tensor], carried) -> tuple[Tensor, Any]:
    """The output, and the hidden state that the next batch starts from; None where a task does not carry it."""
    if not task.carries_state:
        return model(x.to(device), *(t.to(device) for t in lengths)), None
    output, state = model.advance(x.to(device), map_state(lambda part: part.to(device), carried))
    return output, detach(state)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    split: str,
    device: torch.device,
    settings: Training,
    signals: Signals | None,
    step: int,
    kept: list[Tensor] | None = None,
    on_batch: Callable[..., None] | None = None,
) -> dict[str, float]:
    """The task's summary of the mean of every score over ``split``, and its metrics of all predictions.

    Args:
        kept: gets all predictions and targets, for a task that has metrics of them.
        on_batch: is called with output and target of each batch, on the CPU.

    Diverged where a score is not finite; Interrupted when a signal stopped the process.
    """
    model.eval()
    sums, counts, carried = Counter(), Counter(), None
    gathered: list[tuple[Tensor, Tensor]] = []
    for index, (x, target, *lengths) in enumerate(task.evaluation(split)):
        if index == settings.limit_evaluation:
            break
        if signals is not None:
            signals.check(step)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            output, carried = _forward(model, task, device, x, lengths, carried)
        if on_batch is not None:
            on_batch(output.float().cpu(), target)
        for key, values in task.scores(output.float(), target.to(device)).items():
            # On the CPU, since not every device has float64.
            sums[key] += values.cpu().double().sum().item()
            counts[key] += values.numel()
        if task.gathers:
            gathered.append(task.predictions(output.float().cpu(), target))
    for key, value in sums.items():
        if not math.isfinite(value):
            raise Diverged(step, f"{split} {key}", value)
    found = task.summary({key: value / counts[key] for key, value in sums.items()})
    if gathered:
        predictions, targets = map(torch.cat, zip(*gathered, strict=True))
        found |= task.metrics(predictions, targets)
        if kept is not None:
            kept += [predictions, targets]
        if task.metric not in found:
            raise UserError(
                f"{task.metric} is not defined on this part of the {split} set: it lacks a class or has one sample"
            )
    return found
