"""Draws a task into one PNG: ``python -m tasks.show psmnist``, ``python -m tasks.show eigenworms protocol=lem``.

A few training examples, the targets of each split, the lengths, and the permutation if there is one.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from longwave import CONF, home
from longwave.tasks import mnist
from longwave.tasks.base import Task, data_root

TASKS = CONF / "task"

EXAMPLES = 4
# More channels than that are drawn as an image.
LINES = 12


def configure(name: str, overrides: list[str]) -> Any:
    """The task's configuration from ``conf/task``, with overrides ``key=value``.

    Raises:
        ValueError: for an unknown task or key, or a value out of range.
    """
    path = TASKS / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in TASKS.glob("*.yaml")))
        raise ValueError(f"{name}: no such task; there are {known}")
    settings = OmegaConf.load(path)
    schema = settings.pop("defaults")[0].removeprefix("/schema/task/").removesuffix("@_here_")
    config = OmegaConf.structured(importlib.import_module(f"longwave.tasks.{schema}").Config)
    try:
        given = OmegaConf.from_dotlist([text.removeprefix("task.") for text in overrides])
        return OmegaConf.to_object(OmegaConf.merge(config, settings, given))
    except OmegaConfBaseException as error:
        keys = ", ".join(key for key in config if key != "name")
        reason = str(error).split("\n")[0]
        raise ValueError(f"{' '.join(overrides)}: {reason}; the keys of {name} are {keys}") from error


def draw(config: Any, task: Task):
    """A figure: examples in the first row, the whole data set in the second."""
    # Imported here: train.py imports all of tasks/.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 8), layout="constrained")
    counts = ", ".join(f"{len(part)} {name}" for name, part in task.splits.items())
    shape = f"{task.inputs} inputs, {task.outputs} outputs" + (f"; {counts}" if counts else "")
    figure.suptitle(f"{task.split_id}\n{shape}", fontsize=10)
    above, below = figure.subfigures(2, 1)
    x, target, *lengths = task.batch(0, EXAMPLES)
    for i, axes in enumerate(above.subplots(1, x.shape[1], squeeze=False)[0]):
        steps = lengths[0][i] if lengths else len(x)
        _example(axes, x[:steps, i].numpy())
        axes.set_title(_named(task, target[..., i]), fontsize=9)
        axes.set_xlabel("step")
    order = mnist.permutation(config.permutation) if isinstance(config, mnist.Config) and config.permutation else None
    panels = below.subplots(1, 2 if order is None else 3)
    _targets(panels[0], task)
    _lengths(panels[1], task, x)
    if order is not None:
        panels[2].plot(order.numpy(), ",k")
        panels[2].set(title=f"permutation {config.permutation}", xlabel="step", ylabel="pixel")
    return figure


def _example(axes, x: np.ndarray) -> None:
    """One sequence, (steps, D) or tokens (steps,)."""
    if x.ndim == 1:
        axes.plot(x, ".", markersize=2)
        axes.set_ylabel("token")
    elif x.shape[1] > LINES:
        axes.imshow(x.T, aspect="auto", interpolation="nearest", cmap="gray")
        axes.set_ylabel("channel")
    else:
        axes.plot(x, linewidth=0.8)


def _named(task: Task, target: Tensor) -> str:
    if target.ndim:
        return "a target at every step"
    return f"target: {task.classes[target] if task.classes else f'{target.item():.4g}'}"


def _targets(axes, task: Task) -> None:
    """Frequencies of the classes in each split, or histograms of the numbers to predict."""
    axes.set(title="targets", ylabel="fraction of the split")
    if task.targets is not None:
        found = {name: _there(task, task.targets[part]) for name, part in task.splits.items() if len(part)}
    else:
        found = {name: next(iter(task.evaluation(name)))[1].flatten() for name in dict.fromkeys([task.monitor, "test"])}
    values = torch.cat(list(found.values())).double().unique()
    if len(values) <= 50:
        width, places = 0.8 / len(found), np.arange(len(values))
        for i, (name, targets) in enumerate(found.items()):
            fractions = [(targets == value).double().mean().item() for value in values]
            axes.bar(places + i * width, fractions, width, label=name)
        labels = task.classes or [f"{value:g}" for value in values.tolist()]
        axes.set_xticks(places + 0.4 - width / 2, labels, rotation=90 if len(labels) > 12 else 0)
    else:
        drawn = [targets.numpy() for targets in found.values()]
        weights = [np.full(len(targets), 1 / len(targets)) for targets in drawn]
        axes.hist(drawn, 40, weights=weights, histtype="step", label=list(found))
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _there(task: Task, targets: Tensor) -> Tensor:
    """Targets, flat, without the steps that have none."""
    targets = targets.flatten()
    return targets[~targets.isnan()] if targets.is_floating_point() else targets[targets >= 0]


def _lengths(axes, task: Task, x: Tensor) -> None:
    axes.set_title("lengths")
    if task.lengths is None or len(task.lengths.unique()) == 1:
        axes.text(0.5, 0.5, f"{len(x)} steps each", ha="center")
        axes.set_axis_off()
    else:
        longest = task.lengths.max().item()
        for name, part in task.splits.items():
            found = task.lengths[part].numpy()
            axes.hist(found, min(longest, 40), range=(0.5, longest + 0.5), histtype="step", label=name)
        axes.set(xlabel="steps", ylabel="samples")
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def main(arguments: list[str]) -> None:
    """Writes the PNG and prints its path."""
    parser = argparse.ArgumentParser(prog="python -m tasks.show", description="Draw a task into one PNG.")
    parser.add_argument("task", help="a file of conf/task, such as psmnist")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the task, such as protocol=lem")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and the examples")
    parser.add_argument("--root", help="folder of the data sets; default LONGWAVE_DATA, or data/ in the checkout")
    parser.add_argument("--out", type=Path, help="the PNG; default outputs/show/<task>.png in the checkout")
    options = parser.parse_args(arguments)
    root = data_root(options.root and os.path.abspath(os.path.expanduser(options.root)))
    try:
        name = options.task.removeprefix("task=")
        config = configure(name, options.overrides)
        task = config.build(options.seed, root)
        out = options.out or home() / "outputs" / "show" / f"{name}.png"
        out.parent.mkdir(parents=True, exist_ok=True)
        draw(config, task).savefig(out, dpi=100)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(out)


if __name__ == "__main__":
    main(sys.argv[1:])
