"""The papers' claims, checked while a model trains: logged, never asserted. docs/diagnostics.md says how to read them.

Measuring changes nothing: not the weights, buffers, gradients or modes of the model, and no generator.
"""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from longwave.models.network import Network
from longwave.tasks.base import Task
from longwave.training.budget import Diagnostics
from longwave.training.progress import log


def probe(
    wanted: Diagnostics, model: Network, task: Task, batch_size: int, device: torch.device
) -> Callable[[], dict[str, float]] | None:
    """A function that measures the model as it is, always on the same batch; None where nothing is wanted."""
    if not wanted.gradients and not wanted.theory:
        return None
    x, error = probe_batch(task, batch_size, device)

    def theory() -> dict[str, float]:
        with _evaluating(model), torch.no_grad():
            return {f"theory/{key}": float(value) for key, value in model.layer.theory(model.embed(x)).items()}

    has_theory = wanted.theory and bool(theory())
    if wanted.theory and not has_theory:
        layer = type(model.layer).__name__
        log.warning("diagnostics.theory=true: %s has no theory to check; nothing is logged of it", layer)
    if not wanted.gradients and not has_theory:
        return None
    reported = set()

    def measure() -> dict[str, float]:
        norms = gradient_norms(model, x, error, lags(len(x))) if wanted.gradients else {}
        found = {f"{PREFIX}{lag}": norm for lag, norm in norms.items()} | (theory() if has_theory else {})
        # A line of the history is JSON, which has no infinity.
        finite = {key: value for key, value in found.items() if math.isfinite(value)}
        lost = [key for key in found if key not in finite and key not in reported]
        if lost:
            log.warning("left out of the history where not finite: %s", ", ".join(lost))
            reported.update(lost)
        return finite

    return measure


def probe_batch(task: Task, batch_size: int, device: torch.device) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The training batch of step 0, and its error: the model's output (B, outputs) at the last step to (B,).

    Where lengths differ, the batch ends with the shortest sample; where every step is read, the last one counts.
    """
    x, target, *lengths = (t.to(device) for t in task.batch(0, batch_size))
    x = x[: min(lengths[0])] if lengths else x

    def error(output: Tensor) -> Tensor:
        output = output.float()
        last = target[len(x) - 1 : len(x)] if task.read == "every" else target
        found = task.scores(output[None] if task.read == "every" else output, last)
        return found[task.objective]

    return x, error


PREFIX = "gradients/lag_"

# Near the smallest number of float32 (1e-38) a norm is what rounding leaves of it, not how the gradient falls.
FLOOR = 1e-30


def lags(T: int) -> list[int]:
    """The lags that are measured at length ``T``: 0, the powers of two below T, and T - 1."""
    return sorted({0, *(2**i for i in range((T - 1).bit_length())), T - 1})


def gradient_norms(model: Network, x: Tensor, error: Callable[[Tensor], Tensor], lags: list[int]) -> dict[int, float]:
    """Norms of dE/dh_k, for the state h_k of ``lag`` steps before the last one.

    h_k is all that the layer hands from one step to the next: h and c of an LSTM, y and z of a coRNN, the states of all
    layers of a stack. dE/dh_k holds the partial derivatives of a sample's error E by the numbers in h_k, each with the
    others held fixed. Its 2-norm is taken over all of these numbers, and the root mean square of that over the batch.
    The model is in evaluation mode (no dropout, no batch statistics) and in the precision of its weights.

    Args:
        x: (T, B, D), or what the model's embedding takes.
        error: maps the model's output to the error E of each sample, (B,).
        lags: 0 is the state after the last step, T - 1 the one after the first.

    Returns:
        The norm at each lag, the shortest first.
    """
    state, states, done = None, {}, 0
    with _evaluating(model), torch.no_grad():
        x = model.embed(x)
    # cuDNN's recurrences have no backward pass in evaluation mode.
    with _evaluating(model), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        for lag in sorted(lags, reverse=True):
            _, state = model.layer(x[done : len(x) - lag], state)
            # Copies: one part of a state may have been computed from another, through which no error is to flow here.
            trained = any(part.requires_grad for part in tree_leaves(state))
            state = tree_map_only(Tensor, partial(_copy, trained=trained), state)
            states[lag], done = [part for part in tree_leaves(state) if part.requires_grad], len(x) - lag
        total = error(model.read(state)).sum()
        gradients = iter(torch.autograd.grad(total, [p for parts in states.values() for p in parts], allow_unused=True))
    squares = {lag: sum(_square(next(gradients)) for _ in parts) for lag, parts in states.items()}
    return {lag: math.sqrt(squares[lag] / x.shape[1]) for lag in sorted(lags)}


def _copy(part: Tensor, trained: bool) -> Tensor:
    # Where others depend on weights, a part that does not is no hidden state: a number of steps, a time.
    wanted = part.requires_grad if trained else part.is_floating_point() or part.is_complex()
    return part.clone().requires_grad_(wanted)


def _square(gradient: Tensor | None) -> float:
    # In float64, where squares of small numbers do not vanish; on the CPU, since not every device has it.
    return 0.0 if gradient is None else gradient.abs().cpu().double().square().sum().item()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards every module as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def axes(title: str):
    """An empty picture of gradient norm against lag: (figure, axes)."""
    # Imported here, since most runs draw nothing; and not pyplot, which keeps what it draws and may look for a screen.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    ax = figure.add_subplot()
    # Logarithmic, with a place for lag 0.
    ax.set_xscale("symlog", linthresh=1, linscale=0.3)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_yscale("log", nonpositive="mask")
    ax.set_xlabel("lag: steps before the last")
    ax.set_ylabel("norm of dE/dh")
    ax.set_title(title)
    ax.grid(alpha=0.3)
    return figure, ax


def png(figure) -> bytes:
    """A figure as PNG; values below FLOOR are not shown."""
    (ax, *_) = figure.axes
    ax.set_ylim(bottom=max(ax.get_ylim()[0], FLOOR))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def picture(history: list[dict], title: str) -> bytes | None:
    """A run's gradient norms against the lag, one curve per evaluation, coloured by its step, as PNG; or None."""
    measured = [entry for entry in history if any(key.startswith(PREFIX) for key in entry)]
    if not measured:
        return None
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    figure, ax = axes(title)
    # Without its palest end, which is hard to see on white.
    shades = ListedColormap(colormaps["viridis_r"](range(40, 256)))
    colours = ScalarMappable(Normalize(measured[0]["step"], measured[-1]["step"]), shades)
    for entry in measured:
        norms = {int(key.removeprefix(PREFIX)): value for key, value in entry.items() if key.startswith(PREFIX)}
        ax.plot(norms.keys(), norms.values(), color=colours.to_rgba(entry["step"]), linewidth=1)
    figure.colorbar(colours, ax=ax, label="training step")
    return png(figure)
