"""Data files: downloaded, unpacked and processed once, checked at every use.

A task file lists its files in ``SOURCES``, a dict from a name to a tuple of :class:`Source`, for ``python -m
tasks.download``. ``FALLBACKS``, likewise, lists other files with the same content.
"""

import contextlib
import hashlib
import http.client
import io
import json
import logging
import lzma
import os
import shutil
import stat
import struct
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from filelock import FileLock, Timeout

from longwave.files import load_intact, replacing
from longwave.schema import one_line
from longwave.tasks import checks
from longwave.tasks.checks import DataError

log = logging.getLogger("longwave")

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte

# An archive that unpacks to more is refused, as is one of more than SMALL bytes that unpacks to RATIO times its size.
LARGEST_ARCHIVE = 16 << 30
SMALL, RATIO = 100 << 20, 200

AGAIN = "delete it and run again to download it"


class Absent(DataError):
    """A data file that is not there, inside :func:`no_downloads`."""


_downloads = True


@contextlib.contextmanager
def no_downloads() -> Iterator[None]:
    """Inside, a file that would be downloaded raises Absent instead."""
    global _downloads
    before, _downloads = _downloads, False
    try:
        yield
    finally:
        _downloads = before


@dataclass(frozen=True)
class Source:
    """One file from the internet.

    Args:
        path: relative to the data root, such as ``downloads/EigenWorms.zip``.
        urls: the official address first, then mirrors.
        sha256: of the file; None is trust on first use: the checksum of the first download is kept.
        size: approximate, in bytes, for display; None where it is not known.
        licence: as the publisher states it.
        md5: of the file, where no sha256 is published.
    """

    path: str
    urls: tuple[str, ...]
    sha256: str | None = None
    size: int | None = None
    licence: str = "not stated"
    md5: str | None = None


def fetch(source: Source, root: Path) -> Path:
    """Path of a file, downloaded unless it is there, and checked.

    A broken download is resumed (``.part`` beside the file), also by another process. One process downloads, the others
    wait. Beside the file, ``<name>.source.json`` holds its sha256; while size and modification time are as noted there,
    the file is not hashed again.

    Raises:
        DataError: offline (the path, the addresses and the checksum, in a line each), or a wrong checksum.
    """
    path = root / source.path
    if path.exists():
        _check(source, path)
        return path
    if not _downloads:
        raise Absent(path, None, "is not there")
    with locked(path, f"downloads {path.name}"):
        _check(source, path, None if path.exists() else _download(source, path))
    return path


def fetch_all(sources: Sequence[Source], fallback: Sequence[Source], root: Path) -> list[Path]:
    """:func:`fetch` of several files, or of ``fallback`` where one of them is not available.

    Files that are there already are preferred to a download.
    """

    def there(files: Sequence[Source]) -> bool:
        return all((root / source.path).exists() for source in files)

    if fallback and there(fallback) and not there(sources):
        sources, fallback = fallback, ()
    try:
        return [fetch(source, root) for source in sources]
    except DataError as error:
        if not fallback:
            raise
        try:
            return [fetch(source, root) for source in fallback]
        except DataError as second:
            raise type(error)(error.file, error.place, f"{error.reason}\nor {second}") from error


def digest(path: Path) -> str:
    """The sha256 of a fetched file, from the note beside it while that is valid."""
    note, unchanged = _noted(path)
    return note["sha256"] if unchanged else _hash(path, "sha256")


def verify(path: Path, algorithm: str, expected: str, advice: str = AGAIN) -> None:
    """Raises DataError unless the checksum of a file is ``expected``."""
    found = _hash(path, algorithm)
    if found != expected:
        raise DataError(path, None, f"{algorithm} is {found}, not {expected}; {advice}")


def _check(source: Source, path: Path, url: str | None = None) -> None:
    """Raises DataError for a wrong checksum; ``url`` is the address of a fresh download."""
    advice = f"{AGAIN} from {' or '.join(source.urls)}" if source.urls else "replace it"
    if not _size(path):
        raise DataError(path, None, f"is empty; {advice}")
    expected, (note, unchanged) = source.sha256, _noted(path)
    found = note["sha256"] if unchanged else _hash(path, "sha256")
    if expected is None and source.md5 is not None:
        if not unchanged:
            verify(path, "md5", source.md5, advice)
    elif expected is None and note.get("url"):
        # Not of a file that the user has put there, and may mend.
        expected = note["sha256"]
        advice = f"changed since its first use: {advice}; if the new file is right, delete {_note_path(path)} only"
    if expected not in (None, found):
        raise DataError(path, None, f"sha256 is {found}, not {expected}; {advice}")
    if not unchanged:
        # A data root that cannot be written to is no obstacle.
        with contextlib.suppress(OSError):
            size, mtime_ns = path.stat().st_size, path.stat().st_mtime_ns
            _write_note(_note_path(path), sha256=found, size=size, mtime_ns=mtime_ns, url=url or note.get("url"))


def _note_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.source.json")


def _noted(path: Path) -> tuple[dict, bool]:
    """The note beside a file, and whether the file is as it was then."""
    note, status = _read_note(_note_path(path)), path.stat()
    if not {"sha256", "size", "mtime_ns"} <= note.keys():
        return {}, False
    return note, (note["size"], note["mtime_ns"]) == (status.st_size, status.st_mtime_ns)


def _read_note(path: Path) -> dict:
    try:
        note = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _write_note(path: Path, **note: str | int | None) -> None:
    with replacing(path) as out:
        out.write(json.dumps(note, indent=1).encode())


def _hash(path: Path, algorithm: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise DataError(path, None, f"cannot be read ({error.strerror})") from error


def content(path: Path) -> bytes:
    """The content of a file; DataError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(path, None, f"cannot be read ({error.strerror})") from error


def locked(path: Path, doing: str) -> contextlib.AbstractContextManager:
    """Holds the lock of ``path`` from now to the end of the ``with``; waits, and says so, while another process does.

    Args:
        doing: what the other process then does, such as ``downloads a.zip``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        log.info("another process %s; waiting for it", doing)
        return lock.acquire()


class _Failed(Exception):
    """Reason why an address did not give the file."""


def _download(source: Source, path: Path) -> str:
    """Downloads a file and returns the address that gave it."""
    part = path.with_name(f"{path.name}.part")
    failures = []
    for url in source.urls:
        try:
            resumed = part.exists()
            _download_from(url, source, part)
            try:
                _check_download(source, part)
            except _Failed:
                if not resumed:
                    raise
                # The earlier part may be what is wrong.
                _download_from(url, source, part)
                _check_download(source, part)
        except _Failed as error:
            failures.append(f"{url} ({error})")
            continue
        os.replace(part, path)
        _part_note(part).unlink(missing_ok=True)
        return url
    addresses = " or ".join(failures) or "no known address"
    published = [f"{name} {value}" for name, value in (("sha256", source.sha256), ("md5", source.md5)) if value]
    raise DataError(
        path,
        None,
        "cannot be downloaded; put it there, or set data.root or LONGWAVE_DATA to the folder of the data\n"
        f"from {addresses}\n{published[0] if published else 'no published checksum; that of the first file is kept'}",
    )


def _check_download(source: Source, part: Path) -> None:
    if not _size(part):
        part.unlink(missing_ok=True)
        raise _Failed("an empty file")
    for algorithm, expected in (("sha256", source.sha256), ("md5", source.md5)):
        if expected is not None and (found := _hash(part, algorithm)) != expected:
            part.unlink()
            raise _Failed(f"{algorithm} is {found}, not {expected}")
    if source.path.endswith(".zip") and not zipfile.is_zipfile(part):
        part.unlink()
        raise _Failed("not a zip archive")


def _part_note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _download_from(url: str, source: Source, part: Path) -> None:
    """Completes ``part``, or raises _Failed."""
    with _progress(part.stem, source.size) as show:
        while True:
            before = _size(part)
            try:
                return _request(url, source, part, show)
            except urllib.error.HTTPError as error:
                raise _Failed(one_line(f"HTTP {error.code} {' '.join(error.reason.split())}", 200)) from error
            except ValueError as error:
                raise _Failed(one_line(f"redirected to a malformed address: {error}", 200)) from error
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                # A broken connection is resumed as long as bytes arrive.
                if _size(part) <= before:
                    reason = " ".join(str(getattr(error, "reason", error)).split())
                    raise _Failed(one_line(reason, 200)) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _request(url: str, source: Source, part: Path, show: Callable[[int, int | None], None]) -> None:
    """Requests the rest of ``part``; raises ConnectionError where the connection breaks."""
    have, note = _size(part), _read_note(_part_note(part))
    # The validator tells whether the file at this address has changed. Without one, or from another address, the part
    # is resumed only if there is a checksum to verify the whole.
    validator = note.get("validator") if note.get("url") == url else None
    if not (validator or source.sha256 or source.md5):
        have = 0
    headers = {"User-Agent": "longwave", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": validator} if validator else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return None  # it is complete
        part.unlink()
        return _request(url, source, part, show)
    with response:
        if response.headers.get_content_type() == "text/html":
            raise _Failed("an HTML page, not the file")
        if response.status != 206:
            have = 0
        elif have and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink()
            return _request(url, source, part, show)
        elif not have:
            raise _Failed("a part of the file, where all of it was requested")
        length = response.headers.get("Content-Length")
        if length and not (length.isascii() and length.isdigit()):
            raise _Failed(f"its Content-Length is {one_line(length)!r}")
        total = have + int(length) if length else None
        try:
            validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            # A weak one says equivalent, not equal.
            _write_note(_part_note(part), url=url, validator=None if validator.startswith("W/") else validator)
            with open(part, "ab" if have else "wb") as out:
                show(have, total)
                while chunk := _read(response):
                    out.write(chunk)
                    have += len(chunk)
                    show(have, total)
                out.flush()
                os.fsync(out.fileno())
        except ConnectionError:
            raise
        except OSError as error:
            raise DataError(part, None, f"cannot be written ({error.strerror}); run again to resume") from error
    if total is not None and have < total:
        raise ConnectionError(f"the connection broke after {have} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        # What has come, not all of CHUNK: a connection that stalls or breaks loses nothing.
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"the connection broke: {error}") from error


@contextlib.contextmanager
def _progress(name: str, size: int | None) -> Iterator[Callable[[int, int | None], None]]:
    if not sys.stderr.isatty():
        log.info("downloading %s%s", name, f" ({readable(size)})" if size else "")
        yield lambda have, total: None
        return
    # Imported here: 0.1 s that only a download needs.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=size)
        yield lambda have, total: bar.update(task, completed=have, total=total or size)


def readable(size: int | None) -> str:
    """A number of bytes, rounded to MB or kB."""
    return "?" if size is None else f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def unpack(archive: Path, members: Sequence[str], into: Path) -> Path:
    """Unpacks members of a zip or tar archive into a folder, unless they are there.

    Args:
        members: names in the archive, with or without the folders above them, unpacked to ``into / name``. Each appears
            complete or not at all.

    Returns:
        ``into``.

    Raises:
        DataError: for a damaged archive, one with links or special files, a missing member, a full disk.
    """

    def missing() -> list[str]:
        return [name for name in members if not (into / name).exists()]

    if not missing():
        return into
    with locked(into, f"unpacks {archive.name}"):
        temporary = into.with_name(f"{into.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        try:
            with open_archive(archive) as (names, open_member):
                for name in missing():
                    (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                    with open_member(find(archive, names, name)) as source, open(temporary / name, "wb") as out:
                        shutil.copyfileobj(source, out, CHUNK)
            for name in missing():
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary / name, into / name)
        except DataError:
            raise
        except OSError as error:
            raise DataError(into, None, f"cannot be unpacked from {archive} ({error.strerror})") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return into


# What zipfile, tarfile and the decompressors raise for damaged, encrypted and unknown content.
_DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error,
    EOFError, OSError, RuntimeError, ValueError, IndexError, OverflowError,
)  # fmt: skip


@contextlib.contextmanager
def intact(archive: Path) -> Iterator[None]:
    """Turns the errors of reading a damaged archive into a DataError."""
    try:
        yield
    except DataError:
        raise
    except _DAMAGE as error:
        reason = one_line(" ".join(str(error).split()), 200)
        raise DataError(archive, None, f"damaged ({reason}); {AGAIN}") from error


class _Member(io.RawIOBase):
    """A file in an archive, whose damage is a DataError."""

    def __init__(self, archive: Path, opened: BinaryIO):
        self.archive, self.opened = archive, opened

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:
        with intact(self.archive):
            return self.opened.readinto(buffer)

    def close(self) -> None:
        self.opened.close()
        super().close()


@contextlib.contextmanager
def open_archive(archive: Path) -> Iterator[tuple[list[str], Callable[[str], BinaryIO]]]:
    """The names of the files in a zip or tar archive, and a function that opens one of them.

    Raises:
        DataError: for a damaged or encrypted archive, also while a member is read; for one with links, special files or
            members without a name; for one that unpacks to far more than its size.
    """
    with contextlib.ExitStack() as opened:
        with intact(archive):
            files, open_member = (_zip if zipfile.is_zipfile(archive) else _tar)(archive, opened)

        def open_one(name: str) -> BinaryIO:
            with intact(archive):
                return io.BufferedReader(_Member(archive, open_member(files[name])), CHUNK)

        yield list(files), open_one


def _zip(archive: Path, opened: contextlib.ExitStack) -> tuple[dict, Callable]:
    """The files in an archive by name, and what opens one."""
    whole = opened.enter_context(zipfile.ZipFile(archive))
    infos = {info.filename: info for info in whole.infolist() if not info.filename.endswith("/")}
    for info in infos.values():
        _check_member(archive, info.filename, stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG))
    # Of a member, no more than this is ever read.
    _check_size(archive, sum(info.file_size for info in infos.values()))
    return infos, whole.open


def _tar(archive: Path, opened: contextlib.ExitStack) -> tuple[dict, Callable]:
    whole = tarfile.open(archive)  # noqa: SIM115
    opened.enter_context(whole)
    infos, size = {}, 0
    for info in whole:
        # Before the next one is looked for, behind this one.
        size += info.size
        _check_size(archive, size)
        if not info.isdir():
            _check_member(archive, info.name, info.isreg())
            infos[info.name] = info
    # The checksum is at the end.
    while rest := whole.fileobj.read(CHUNK):
        size += len(rest)
        _check_size(archive, size)
    return infos, whole.extractfile


def _check_member(archive: Path, name: str, regular: bool) -> None:
    if not name:
        raise DataError(archive, None, "a file without a name; refused")
    if not regular:
        raise DataError(archive, name, "a link or a special file; refused")


def _check_size(archive: Path, size: int) -> None:
    packed = archive.stat().st_size
    if size > LARGEST_ARCHIVE or (size > SMALL and size > RATIO * packed):
        raise DataError(archive, None, f"{readable(packed)} that unpack to at least {readable(size)}; refused")


def find(archive: Path, names: Sequence[str], wanted: str) -> str:
    """The one member named ``wanted``, in any folder; DataError if there is none, or several."""
    found = [wanted] if wanted in names else [name for name in names if name.endswith(f"/{wanted}")]
    if len(found) != 1:
        listed = one_line(", ".join(names[:20]), 400) + (", ..." if len(names) > 20 else "")
        raise DataError(archive, None, f"{len(found) or 'no'} files named {wanted}; it holds {listed or 'none'}")
    return found[0]


def cached(root: Path, name: str, key: dict, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of ``build``, kept in ``root/cache/<name>-<hash>.pt``.

    The hash is of ``key``, of the code of the file that defines ``build``, and of the checks. The file is written whole
    or not at all, by one process while the others wait. It is checked when it is read, and built again if it is
    damaged. Where the data root cannot be written to, nothing is kept.

    Args:
        key: everything that the result depends on, as JSON: checksums of the files, the protocol, :func:`code` of other
            source files.
        build: returns tensors and plain values (text, numbers, lists of them) by name.

    Raises:
        DataError: the disk is full.
    """
    whole = json.dumps([key, code(build.__code__.co_filename, checks.__file__)], sort_keys=True)
    path = root / "cache" / f"{name}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}.pt"
    kept = _load_cache(path)
    if kept is not None:
        return kept
    try:
        lock = locked(path, f"prepares {name}")
    except OSError as error:
        log.warning("%s cannot be kept in %s (%s)", name, path.parent, error.strerror or error)
        return build()
    with lock:
        kept = _load_cache(path)
        if kept is None:
            kept = build()
            try:
                with replacing(path) as out:
                    torch.save(kept, out)
            # torch reports a failed write as a RuntimeError.
            except (OSError, RuntimeError) as error:
                reason = getattr(error, "strerror", None) or " ".join(str(error).split())
                raise DataError(path, None, f"cannot be written ({reason}); make room and run again") from error
    return kept


def code(*files: str) -> str:
    """A hash of source files, for the keys of :func:`cached`."""
    return hashlib.sha256(b"\0".join(Path(file).read_bytes() for file in files)).hexdigest()[:16]


def _load_cache(path: Path) -> dict[str, Any] | None:
    try:
        return load_intact(path)
    except FileNotFoundError:
        return None
    except Exception as error:
        log.warning("%s is damaged (%s); building it again", path, " ".join(str(error).split()))
        return None
