"""The weights of a finished run: found, checked, identified by their content."""

import hashlib
from pathlib import Path

from torch import Tensor, nn

from longwave import home
from longwave.schema import one_line
from longwave.training import record
from longwave.training.errors import UserError
from longwave.training.files import load_checkpoint
from longwave.training.record import FINISHED, Record


def find(run: str | Path, output: str = "outputs") -> Path:
    """Folder of a run, by its path, its name or its identity; the last two are looked up in ``output/runs``.

    Raises:
        UserError: where there is none, or more than one of that identity.
    """
    runs, text = home() / Path(output).expanduser() / "runs", str(run)
    try:
        # A name of no file, too, may be too long for one.
        for folder in (Path(text).expanduser(), home() / text, runs / text):
            if text and (folder / "record.json").is_file():
                return folder
        found = [folder for folder in runs.iterdir() if folder.name.endswith(f"-{text}")] if runs.is_dir() else []
    except (OSError, ValueError, RuntimeError):
        found = []
    if len(found) != 1 or not text:
        reason = f"{len(found)} runs have this identity" if found and text else f"no run there, nor in {runs}"
        raise UserError(f"{one_line(text) or repr(text)}: {reason}; give a run's folder, name or identity")
    return found[0]


def read_record(folder: Path) -> Record:
    """The record of a finished run; UserError where it is none."""
    try:
        found = record.read(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'record.json'}: cannot be read ({one_line(str(error), 150)})") from error
    if found.status != FINISHED:
        raise UserError(f"{folder}: the run is {found.status}, not finished; train it to its end first")
    return found


def selected(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """The weights that the metrics of a finished run are of, on the CPU, and its checkpoint.

    Raises:
        UserError: where the run is not finished, or its checkpoint is missing, damaged or of another step.
    """
    about = read_record(folder)
    saved, damaged = load_checkpoint(folder / "checkpoint.pt")
    if saved is None:
        raise UserError(damaged[0] if damaged else f"{folder / 'checkpoint.pt'}: there is no checkpoint")
    # The previous one, where the last is damaged, has other weights.
    if saved["state"]["step"] != about.budget.steps_done:
        wrong = damaged[0] if damaged else f"{folder / 'checkpoint.pt'} is not of this record"
        step, last = saved["state"]["step"], about.budget.steps_done
        raise UserError(f"{wrong}: there is a checkpoint of step {step}, and the run ended at step {last}")
    best = saved["state"]["best"] or {}
    return best.get("weights", saved["model"]), saved


def digest(weights: dict[str, Tensor]) -> str:
    """16 digits that identify names, types, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        found.update(tensor.contiguous().numpy())
    return found.hexdigest()[:16]


def assign(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Loads weights; ValueError, which names the first, for one that is missing, unknown or of another shape."""
    own = model.state_dict()
    for name in [*own, *weights]:
        if name not in weights:
            raise ValueError(f"{name} is not in it")
        if name not in own:
            raise ValueError(f"{name} is in it, and not in the model")
        there, here = tuple(weights[name].shape), tuple(own[name].shape)
        if there != here:
            raise ValueError(f"{name} is {there} there and {here} here")
    model.load_state_dict(weights)
