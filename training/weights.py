"""The weights of a finished run: found, checked, identified by their content."""

import hashlib
import re
from pathlib import Path

from torch import Tensor, nn

from longwave import home
from longwave.schema import one_line
from longwave.training import record
from longwave.training.errors import UserError
from longwave.training.files import load_checkpoint
from longwave.training.record import FINISHED, Record

# A run, and the digest of its weights.
PINNED = re.compile(r"(?P<run>.+)@(?P<digest>[0-9a-f]{16})")


def find(run: str | Path, output: str = "outputs") -> Path:
    """Folder of a run, by its path, or by its name or identity in ``output/runs``, else in ``outputs/runs``.

    Raises:
        UserError: where there is none, or more than one of that identity.
    """
    text, found = str(run), []
    places = [home() / Path(folder).expanduser() / "runs" for folder in dict.fromkeys((output, "outputs"))]
    try:
        # A name of no file, too, may be too long for one.
        for folder in (Path(text).expanduser(), home() / text, *(place / text for place in places)):
            if text and (folder / "record.json").is_file():
                return folder
        for place in places:
            if not found and place.is_dir():
                found = [folder for folder in place.iterdir() if text and folder.name.endswith(f"-{text}")]
    except (OSError, ValueError, RuntimeError):
        found = []
    if len(found) != 1:
        reason = f"{len(found)} runs have this identity" if found else f"no run there, nor in {places[0]}"
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
    """The weights that a finished run's metrics belong to, on the CPU, and its checkpoint.

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


def pinned(run: str, output: str) -> str:
    """``<run>@<digest>`` of a finished run, given as in :func:`find`, or in this form: then the run may be gone.

    Raises:
        UserError: where there is no such run, it is not finished, or its weights are not those of the digest.
    """
    given = PINNED.fullmatch(run)
    name = given["run"] if given else run
    try:
        folder = find(name, output)
    except UserError as error:
        # Enough to find a run that has started from it.
        if given:
            return run
        raise UserError(f"training.start_from={error}") from error
    found = _chosen(run, folder)[1]
    return run if given else f"{name}@{found}"


def start(model: nn.Module, run: str, output: str) -> None:
    """Loads the weights of a run that is :func:`pinned` into a model.

    Raises:
        UserError: where there is no such run any more, or its weights have changed or are of other shapes.
    """
    try:
        folder = find(PINNED.fullmatch(run)["run"], output)
    except UserError as error:
        raise UserError(f"training.start_from={error}") from error
    try:
        assign(model, _chosen(run, folder)[0])
    except ValueError as error:
        raise UserError(f"training.start_from={one_line(run)}: {error}") from error


def _chosen(run: str, folder: Path) -> tuple[dict[str, Tensor], str]:
    """The selected weights and their digest; UserError where that is not the one that ``run`` names."""
    given = PINNED.fullmatch(run)
    try:
        chosen, _ = selected(folder)
    except UserError as error:
        raise UserError(f"training.start_from={one_line(run)}: {error}") from error
    found = digest(chosen)
    if given and given["digest"] != found:
        raise UserError(f"training.start_from={one_line(run)}: its weights are now {found}")
    return chosen, found
