"""Shared libraries of the C kernels, built by the system's compiler at first use into the user's cache.

A library is named by a hash of what went into it (source, headers, flags, CPU) and a hash of what came out, so that a
stale one is not found and a truncated one is seen. It appears in the cache by one rename: processes that build the same
one at once do not clash. Nothing is loaded that another user (but root) could have written.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from longwave.files import open_to_others

FOLDER = Path(__file__).parent
REAL = {torch.float32: "float", torch.float64: "double"}
_FLAGS = (
    *("-std=gnu11", "-D_GNU_SOURCE", "-O3", "-fPIC", "-shared", "-pthread"),
    *("-Wall", "-Wno-psabi", "-Wno-unused-function"),
    # Fused multiply-adds, but no other liberties: NaN and infinities are what they are.
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native",
)

log = logging.getLogger("longwave")


class BuildError(Exception):
    """Why there is no library, in one line."""


class DeclarationError(ValueError):
    """A wrong declaration in an :class:`longwave.kernels.operation.Operation`, in one line."""


@dataclass(frozen=True)
class Source:
    """A C file and the options that it is compiled with, beside those of all."""

    name: str
    path: Path
    options: tuple[str, ...] = ()
    headers: Path = FOLDER  # the folder that its first headers are in


def cache() -> Path:
    """Where libraries are kept: $LONGWAVE_CACHE, else longwave/kernels in the user's cache folder."""
    given = os.environ.get("LONGWAVE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else base / "longwave" / "kernels"


def obstacle(source: Source, dtype: torch.dtype) -> str | None:
    """Why there is no library of a source for ``dtype``, or None where there is. Logs the reason, once a process."""
    try:
        load(source, dtype)
    except BuildError as error:
        _tell(str(error))
        return str(error)
    return None


@functools.cache
def _tell(reason: str):
    log.warning("No C kernels, the slower reference runs: %s", reason)


# A reason is kept as well as a library: a compiler that fails is asked once.
@functools.cache
def _built(source: Source, dtype: torch.dtype) -> ctypes.CDLL | BuildError:
    try:
        return ctypes.CDLL(str(build(source, dtype)))
    except BuildError as error:
        return error
    except OSError as error:
        return BuildError(f"{source.name}: {error}")


def load(source: Source, dtype: torch.dtype) -> ctypes.CDLL:
    """The library of a source for float32 or float64; raises :class:`BuildError` or :class:`DeclarationError`."""
    result = _built(source, dtype)
    if isinstance(result, BuildError):
        raise result
    return result


def flags(dtype: torch.dtype) -> list[str]:
    """The compiler's options; a source is compiled for each type."""
    return [*_FLAGS, f"-DREAL={REAL[dtype]}", f"-DREAL_BYTES={dtype.itemsize}"]


def build(source: Source, dtype: torch.dtype) -> Path:
    """The path of the library of a source, built where the cache has none that is whole."""
    name, options, folder = source.name, [*flags(dtype), *source.options], cache()
    key = _key(source, options)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if reason := open_to_others(folder):
            raise BuildError(
                f"the cache {str(folder)!r} {reason}: make it yours alone (chown, chmod go-w), "
                "or set LONGWAVE_CACHE to another folder"
            )
        for path in folder.glob(f"{name}-{key}-*.so"):
            if not open_to_others(path) and path.name == f"{name}-{key}-{_digest(path.read_bytes())}.so":
                return path
            path.unlink(missing_ok=True)
        # In the same folder, for the rename to be one step.
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            output = Path(temporary) / "library.so"
            _compile(source, options, output)
            # Whatever the umask.
            output.chmod(0o700)
            path = folder / f"{name}-{key}-{_digest(output.read_bytes())}.so"
            output.rename(path)
    except OSError as error:
        raise BuildError(f"{name}: {error}") from error
    return path


def compiler() -> list[str]:
    """The command that compiles C: $CC, which may be several words ("ccache gcc"), else cc."""
    given = os.environ.get("CC", "")
    try:
        return shlex.split(given) or ["cc"]
    except ValueError as error:
        raise BuildError(f"no C compiler: CC={given!r}: {error}") from None


def _compile(source: Source, options: list[str], output: Path):
    name, words = source.name, compiler()
    compiled_by = " ".join(words)
    if shutil.which(words[0]) is None:
        raise BuildError(f"no C compiler: {words[0]!r} is not on the PATH (set CC to another)")
    command = [*words, *options, f"-I{source.headers}", f"-I{FOLDER}", str(source.path), "-o", str(output), "-lm"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{name}: {compiled_by} took more than 120 s") from None
    except subprocess.CalledProcessError as error:
        # Of declaration.h, dense.h and diagonal.h.
        wrong = re.search(r"declaration: ([^\"\n]*)", error.stderr)
        if wrong:
            raise DeclarationError(f"{name}: {wrong[1]}") from None
        lines = [line for line in error.stderr.splitlines() if "error" in line] or error.stderr.splitlines() or [""]
        raise BuildError(f"{name}: {compiled_by} failed: {lines[0]}") from None


def _key(source: Source, options: list[str]) -> str:
    headers = {*source.headers.glob("*.h"), *FOLDER.glob("*.h")}
    parts = [path.read_bytes() for path in (source.path, *sorted(headers))]
    return _digest(b"\0".join([*parts, " ".join(options).encode(), _cpu().encode()]))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@functools.cache
def _cpu() -> str:
    """The processor, as far as -march=native looks at it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(wanted)}))
