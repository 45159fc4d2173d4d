"""Gradient norms against the lag at initialisation, for several models: ``python -m longwave.benchmarks.gradients``.

Draws the norm of dE/dh against the lag (:func:`longwave.training.diagnostics.gradient_norms`) on the training batch
of step 0, each model as its recipe has it, or its defaults; and dashed, after training, where ``train.py`` left a
checkpoint:

    python train.py -m model=rnn,lstm,cornn,unicornn task=adding task.T=1000 training.steps=5000
    python -m longwave.benchmarks.gradients task=adding task.T=1000 training.steps=5000
"""

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from longwave import home
from longwave.training.build import build
from longwave.training.config import compose_run
from longwave.training.diagnostics import axes, gradient_norms, png, probe_batch
from longwave.training.environment import set_up_process
from longwave.training.errors import UserError
from longwave.training.files import load_checkpoint
from longwave.training.run import folder_of


def measure(overrides: list[str]) -> dict[str, dict[int, float]]:
    """The norm by lag of the run that ``overrides`` compose, at initialisation and, where it has been run, after it."""
    try:
        config, _ = compose_run(overrides)
    except UserError:
        # A model without a recipe for the task has no budget, and needs none at initialisation.
        config, _ = compose_run(["training.steps=1", *overrides])
    set_up_process(config.threads)
    task, model = build(config)
    x, error = probe_batch(task, config.training.batch_size, torch.device("cpu"))
    # Four an octave, for the norms that oscillate.
    quarters = (round(2 ** (i / 4)) for i in range(4 * len(x).bit_length()))
    lags = sorted({0, len(x) - 1, *(lag for lag in quarters if lag < len(x))})
    found = {"initialised": gradient_norms(model, x, error, lags)}
    saved, _ = load_checkpoint(folder_of(config) / "checkpoint.pt")
    if saved is not None:
        model.load_state_dict(saved["model"])
        found[f"after {saved['state']['step']} steps"] = gradient_norms(model, x, error, lags)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # A budget, since not every model has a recipe that gives one.
    default = ["task=adding", "task.T=1000", "training.steps=5000"]
    parser.add_argument("overrides", nargs="*", default=default, help=f"as for train.py; {' '.join(default)}")
    parser.add_argument("--models", default="rnn,lstm,cornn,unicornn")
    parser.add_argument("--output", type=Path, default=home() / "docs" / "gradients.png")
    arguments = parser.parse_args()
    figure, ax = axes(" ".join(text for text in arguments.overrides if text.startswith("task")))
    table = Table("model", "", "lag", "norm")
    for index, name in enumerate(arguments.models.split(",")):
        found = measure([f"model={name}", "diagnostics=gradients", *arguments.overrides])
        for (when, norms), style in zip(found.items(), ("-", "--"), strict=False):
            ax.plot(norms.keys(), norms.values(), style, color=f"C{index}", label=f"{name}, {when}")
            lags = [lag for lag in norms if lag in (0, 10, 100) or lag == max(norms)]
            table.add_row(name, when, "\n".join(map(str, lags)), "\n".join(f"{norms[lag]:.2g}" for lag in lags))
    ax.legend()
    arguments.output.write_bytes(png(figure))
    Console().print(table)
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
