"""Arrays of numpy: a ``.npz``, or a folder of ``.npy``."""

import logging
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longwave.schema import one_line
from longwave.tasks.checks import DataError
from longwave.tasks.own.samples import CHUNK, UNITS, Mapped, Samples, encode

if TYPE_CHECKING:
    from longwave.tasks.files import Config

log = logging.getLogger("longwave")

NAMES = ("x", "y", "lengths", "t", "mask", "group", "split", "id", "channels")
_KINDS = {"b": "true or false", "i": "whole numbers", "u": "whole numbers", "f": "numbers"}


def files_in(folder: Path) -> list[Path]:
    """The arrays of a folder, as far as they are read."""
    return [folder / f"{name}.npy" for name in NAMES if (folder / f"{name}.npy").is_file()]


def read(path: Path, config: "Config") -> Samples:
    """Samples of a ``.npz``, or of a folder.

    Raises:
        DataError: for an array that is missing, of another shape or type, or pickled.
    """
    found = _of_folder(path, config.memory * 1e9) if path.is_dir() else _of_npz(path)
    if "x" not in found:
        there = one_line(", ".join(found), 200) or "nothing"
        raise DataError(path, None, f"no array x, (samples, steps, channels); it holds {there}")
    if "y" not in found:
        raise DataError(path, None, "no array y, the classes or values to predict")
    for name in ("lengths", "y", "t", "group", "split", "id", "channels"):
        # Only x, its mask and its times are large.
        if isinstance(found.get(name), Mapped) and name != "t":
            found[name] = found[name][:]
    return _samples(path, found, config).check()


def _of_npz(path: Path) -> dict[str, np.ndarray]:
    found = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(path, None, "one array, not an archive of x and y; np.savez(path, x=x, y=y) makes one")
            for name in archive.files:
                if name not in NAMES:
                    log.info("%s: the array %s is not read", path, one_line(name))
                    continue
                found[name] = _loaded(path, name, lambda name=name: archive[name])
    except DataError:
        raise
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        if "pickle" in str(error):
            raise DataError(path, None, "is a pickle, which is never loaded; write it by np.savez") from error
        raise DataError(path, None, f"is damaged ({one_line(' '.join(str(error).split()), 150)})") from error
    return found


def _of_folder(folder: Path, memory: float) -> dict[str, Any]:
    found = {}
    for path in files_in(folder):
        big = path.stat().st_size > memory

        def load(path: Path = path, big: bool = big) -> Any:
            return Mapped(path) if big else np.load(path, allow_pickle=False)

        try:
            found[path.stem] = _loaded(path, path.stem, load)
        except DataError:
            raise
        except (ValueError, EOFError, OSError) as error:
            reason = one_line(" ".join(str(error).split()), 150)
            raise DataError(path, None, f"is damaged ({reason})") from error
    return found


def _loaded(path: Path, name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except ValueError as error:
        if "Object arrays" in str(error) or "pickle" in str(error):
            raise DataError(path, name, "an object array (a pickle), never loaded; save text or numbers") from error
        raise


def _samples(path: Path, found: dict[str, Any], config: "Config") -> Samples:
    x = found["x"]
    if x.dtype.kind not in _KINDS:
        raise DataError(path, "x", f"of type {x.dtype}; must be numbers")
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise DataError(path, "x", f"of shape {x.shape}; must be (samples, steps, channels), (samples, steps), or with "
                                   "lengths (all steps, channels)")  # fmt: skip
    lengths = found.get("lengths")
    joined = x.ndim == 2 and lengths is not None and lengths.shape != x.shape[:1]
    if x.ndim == 2 and not joined:
        x = x.widened() if isinstance(x, Mapped) else x[:, :, None]
    count = len(lengths) if joined else len(x)
    if lengths is None and x.dtype.kind == "f" and "mask" not in found:
        lengths = _ends(x)
    lengths = _lengths(path, lengths, count, None if joined else x.shape[1])
    if joined and lengths.sum() != len(x):
        raise DataError(path, "lengths", f"{lengths.sum():,} steps in all, and x has {len(x):,}")
    steps = x.shape[:-1]  # (N, T) or (all steps,)

    def place(sample: int, step: int | None, column: int | str | None) -> tuple[Path, str]:
        name = {None: "x", "time": "t"}.get(column, column if isinstance(column, str) else "x")
        first = int(lengths[:sample].sum()) + (step or 0) if joined and step is not None else sample
        index = [first] + ([] if step is None or joined else [step]) + ([column] if isinstance(column, int) else [])
        return path, f"{name}[{', '.join(map(str, index))}]"

    mask = found.get("mask")
    if mask is not None:
        if mask.dtype.kind not in "biu" or mask.shape not in (x.shape, steps):
            raise DataError(path, "mask", f"{mask.dtype} of shape {mask.shape}; must be bool of shape {x.shape}")
        mask = (mask[:] if mask.shape == steps else mask) if mask.dtype.kind == "b" else mask[:].astype(bool)
        if mask.shape == steps:
            mask = np.broadcast_to(mask[..., None], x.shape)
    times, per_second = _times(path, found.get("t"), steps, config.time_unit)
    y, per_step = _target(path, found["y"], count, steps)
    targets, classes = _encoded(path, y, per_step, lengths, joined, config.predict)
    channels = found.get("channels")
    if channels is not None and channels.shape != x.shape[-1:]:
        raise DataError(path, "channels", f"{len(channels)} names, and x has {x.shape[-1]} channels")
    texts = {name: _texts(path, name, found.get(name), count) for name in ("group", "split", "id")}
    return Samples(
        file=path,
        x=x,
        lengths=lengths,
        channels=[str(i) for i in range(x.shape[-1])] if channels is None else [str(name) for name in channels],
        targets=targets,
        classes=classes,
        per_step=per_step,
        place=place,
        mask=mask,
        times=times,
        per_second=per_second,
        ids=texts["id"],
        groups=texts["group"],
        split=texts["split"],
    )


def _ends(x: Any) -> np.ndarray:
    """Steps of each sample without those at its end that are missing in all channels; all of one without any value."""
    ends = np.empty(len(x), np.int64)
    size = max(1, CHUNK // int(np.prod(x.shape[1:])))
    for start in range(0, len(x), size):
        there = ~np.isnan(x[start : start + size]).all(2)
        ends[start : start + size] = np.where(there.any(1), x.shape[1] - there[:, ::-1].argmax(1), x.shape[1])
    return ends


def _lengths(path: Path, lengths: np.ndarray | None, count: int, steps: int | None) -> np.ndarray:
    if lengths is None:
        return np.full(count, steps, np.int64)
    if lengths.dtype.kind not in "iu" or lengths.shape != (count,):
        raise DataError(path, "lengths", f"{lengths.dtype} of shape {lengths.shape}; must be {count} whole numbers")
    most = np.iinfo(np.int64).max if steps is None else steps
    wrong = (lengths < 1) | (lengths > most)
    if wrong.any():
        i = int(wrong.argmax())
        raise DataError(path, f"lengths[{i}]", f"{lengths[i]} is not from 1 to {steps or 'the steps of x'}")
    return lengths.astype(np.int64)


def _times(path: Path, t: Any, steps: tuple[int, ...], unit: str) -> tuple[Any, int]:
    """Ticks in the shape ``steps``, and how many a second has."""
    per_second = UNITS[unit]
    if t is None:
        return None, per_second
    if t.dtype.kind == "M":
        t, per_second = t[:].astype("datetime64[ns]").view(np.int64), UNITS["ns"]
    if t.dtype.kind not in "iuf" or t.shape not in (steps, steps[1:]):
        raise DataError(path, "t", f"{t.dtype} of shape {t.shape}; must be numbers of shape {steps}")
    if t.dtype.kind == "u":
        t = t[:].astype(np.int64)
    return (t if t.shape == steps else np.broadcast_to(t[:], steps)), per_second


def _target(path: Path, y: np.ndarray, count: int, steps: tuple[int, ...]) -> tuple[np.ndarray, bool]:
    """Targets without a dimension of 1 at the end, and whether they are one a step."""
    shape = y.shape
    if y.dtype.kind not in "biufUS":
        raise DataError(path, "y", f"of type {y.dtype}; must be text or numbers")
    if y.ndim > 1 and y.shape[-1] == 1 and y.shape[:-1] in ((count,), steps):
        y = y[..., 0]
    if y.shape == (count,):
        return y, False
    if y.shape == steps:
        return y, True
    raise DataError(path, "y", f"of shape {shape}; must be ({count},), or with a target a step {steps}")


def _encoded(
    path: Path, y: np.ndarray, per_step: bool, lengths: np.ndarray, joined: bool, predict: str
) -> tuple[np.ndarray, list[str] | None]:
    there = np.ones(y.shape, bool)
    if per_step and not joined:
        there = np.arange(y.shape[1]) < lengths[:, None]
    if y.dtype.kind == "f" and predict != "classes" and (predict == "numbers" or _fractions(y[there])):
        targets = np.where(there, y, np.nan).astype(np.float64)
        wrong = there & (np.isinf(targets) | (np.isnan(targets) & (not per_step)))
        _refuse(path, y, wrong)
        return targets, None
    if y.dtype.kind in "biu" and per_step:
        # Of the steps, -1 has no label.
        there &= y.astype(np.int64) != -1
    elif y.dtype.kind == "f":
        _refuse(path, y, there & ~np.isfinite(y) & (not per_step))
        there &= np.isfinite(y)
    elif y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8")
    if y.dtype.kind == "b":
        y = y.astype(np.int64)
    values, codes = np.unique(y[there], return_inverse=True)
    whole = np.full(y.shape, -1, np.int64)
    whole[there] = codes.reshape(-1)

    def place(index: int) -> tuple[Path, str]:
        return path, f"y[{', '.join(str(int(i)) for i in np.unravel_index(index, y.shape))}]"

    targets, classes = encode([str(value).strip() for value in values.tolist()], whole.reshape(-1), predict, place)
    return targets.reshape(y.shape), classes


def _fractions(values: np.ndarray) -> bool:
    values = values[np.isfinite(values)]
    return bool((values != np.floor(values)).any())


def _refuse(path: Path, y: np.ndarray, wrong: np.ndarray) -> None:
    if wrong.any():
        index = tuple(int(part[0]) for part in wrong.nonzero())
        raise DataError(path, f"y[{', '.join(map(str, index))}]", f"{y[index]:g}, where there must be a target")


def _texts(path: Path, name: str, values: np.ndarray | None, count: int) -> list[str] | None:
    if values is None:
        return None
    if values.shape != (count,) or values.dtype.kind not in "biufUS":
        raise DataError(path, name, f"{values.dtype} of shape {values.shape}; must be one text or number a sample")
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    return [str(value) for value in values.tolist()]
