"""Files from the internet, and what is made of them: downloaded, unpacked and processed once, checked whenever used.

A task file that needs some says which in ``SOURCES``, a dict from a name to a tuple of :class:`Source`:
``python -m tasks.download`` offers what it finds there. ``FALLBACKS``, likewise, has other files with the same content.
"""

import contextlib
import gzip
import hashlib
import http.client
import json
import logging
import os
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

log = logging.getLogger("longwave")
console = Console(stderr=True)

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True)
class Source:
    """One file from the internet.

    Args:
        path: where it lies, relative to the data root, such as ``downloads/EigenWorms.zip``.
        urls: the official address first, then mirrors.
        sha256: of the file; None is trust on first use: what came first is recorded and holds from then on.
        size: in bytes, roughly, for people; None where it is not known.
        licence: as the publisher states it.
        md5: where that is all that is published.
    """

    path: str
    urls: tuple[str, ...]
    sha256: str | None = None
    size: int | None = None
    licence: str = "not stated"
    md5: str | None = None


def fetch(source: Source, root: Path) -> Path:
    """The path of a file, which is downloaded unless it is there, and checked.

    A broken download goes on where it stopped (``.part`` beside the file), also in another process. Of several
    processes one downloads and the others wait. Beside the file lies ``<name>.source.json`` with its sha256; as long as
    size and time of change are those noted there, the file is not read again to check it.

    Raises:
        OSError: offline, or a wrong file; one line that names addresses, expected path and checksum.
    """
    path = root / source.path
    if path.exists():
        _check(source, path)
        return path
    with _locked(path, f"another process downloads {path.name}; waiting for it"):
        _check(source, path, None if path.exists() else _download(source, path))
    return path


def fetch_all(sources: Sequence[Source], fallback: Sequence[Source], root: Path) -> list[Path]:
    """:func:`fetch` of several files, or, where they cannot be had, of those that are as good.

    What is there already is preferred to what must be downloaded.
    """
    if fallback and _there(fallback, root) and not _there(sources, root):
        sources, fallback = fallback, ()
    try:
        return [fetch(source, root) for source in sources]
    except OSError as error:
        if not fallback:
            raise
        try:
            return [fetch(source, root) for source in fallback]
        except OSError as second:
            raise OSError(f"{error}; or else: {second}") from error


def _there(sources: Sequence[Source], root: Path) -> bool:
    return all((root / source.path).exists() for source in sources)


def digest(path: Path) -> str:
    """The sha256 of a file that :func:`fetch` gave, read from the note beside it where that still holds."""
    note = _read_note(path)
    return note["sha256"] if note and _same(path, note) else _hash(path, "sha256")


def _check(source: Source, path: Path, url: str | None = None) -> None:
    """Raises OSError for a wrong file; ``url`` is where it has just come from."""
    note = _read_note(path)
    if note and _same(path, note):
        found = note["sha256"]
    else:
        found = _hash(path, "sha256")
        if source.sha256 is None and source.md5 is not None and (wrong := _hash(path, "md5")) != source.md5:
            raise OSError(_wrong(source, path, f"md5 {wrong}, not {source.md5}"))
    if source.sha256 is not None and found != source.sha256:
        raise OSError(_wrong(source, path, f"sha256 {found}, not {source.sha256}"))
    if source.sha256 is None and source.md5 is None and note and found != note["sha256"]:
        first = f"sha256 {found}, not {note['sha256']} as when it was first used"
        raise OSError(_wrong(source, path, first) + f"; if the new file is right, delete {_note_path(path)} only")
    if not note or not _same(path, note):
        # A data root that cannot be written to is no obstacle.
        with contextlib.suppress(OSError):
            _write_note(path, found, url or (note and note.get("url")))


def _wrong(source: Source, path: Path, what: str) -> str:
    return f"{path} has {what}: delete it and run again to download it from {' or '.join(source.urls)}"


def _note_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.source.json")


def _read_note(path: Path) -> dict | None:
    try:
        note = json.loads(_note_path(path).read_text())
        return note if {"sha256", "size", "mtime_ns"} <= note.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _write_note(path: Path, sha256: str, url: str | None) -> None:
    status = path.stat()
    note = {"sha256": sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "url": url}
    write_atomic(_note_path(path), json.dumps(note, indent=1).encode())


def _same(path: Path, note: dict) -> bool:
    status = path.stat()
    return (status.st_size, status.st_mtime_ns) == (note["size"], note["mtime_ns"])


def _hash(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextlib.contextmanager
def _locked(path: Path, waiting: str) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info(waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces ``path`` by ``content``: a temporary file, fsync, rename. OSError leaves what was there."""
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        with open(temporary, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class _NoFile(Exception):
    """Why an address did not give the file."""


def _download(source: Source, path: Path) -> str:
    """Gives the address that the file came from."""
    part = path.with_name(f"{path.name}.part")
    reasons = []
    for url in source.urls:
        try:
            begun_before = part.exists()
            _download_from(url, source, part)
            try:
                _check_download(source, part)
            except _NoFile:
                if not begun_before:
                    raise
                # What was there before may be what is wrong.
                _download_from(url, source, part)
                _check_download(source, part)
        except _NoFile as error:
            reasons.append(f"{url} ({error})")
            continue
        os.replace(part, path)
        _part_note(part).unlink(missing_ok=True)
        return url
    checksum = next(
        (f"{n} {s}" for n, s in (("sha256", source.sha256), ("md5", source.md5)) if s),
        "none is published; that of the first is kept",
    )
    raise OSError(
        f"cannot download {path.name} from {' or '.join(reasons) or 'anywhere: it has no address'}; put it at {path} "
        f"(checksum: {checksum}), or name another data root with data.root or LONGWAVE_DATA"
    )


def _check_download(source: Source, part: Path) -> None:
    for algorithm, expected in (("sha256", source.sha256), ("md5", source.md5)):
        if expected is not None and (found := _hash(part, algorithm)) != expected:
            part.unlink()
            raise _NoFile(f"what came has {algorithm} {found}, not {expected}")
    if source.path.endswith(".zip") and not zipfile.is_zipfile(part):
        part.unlink()
        raise _NoFile("what came is no zip archive")


def _part_note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _download_from(url: str, source: Source, part: Path) -> None:
    """Completes ``part``; raises _NoFile with the reason where that fails."""
    with _progress(part.stem, source.size) as show:
        while True:
            before = _size(part)
            try:
                return _request(url, source, part, show)
            except urllib.error.HTTPError as error:
                raise _NoFile(f"HTTP {error.code} {error.reason}") from error
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                # A connection that breaks is taken up again as long as something comes.
                if _size(part) <= before:
                    raise _NoFile(" ".join(str(getattr(error, "reason", error)).split())) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _request(url: str, source: Source, part: Path, show: Callable[[int, int | None], None]) -> None:
    """One request for what ``part`` lacks; an answer that breaks off raises ConnectionError."""
    request = urllib.request.Request(url, headers={"User-Agent": "longwave", "Accept-Encoding": "identity"})
    have = _size(part)
    if have:
        # The same address says by its validator whether the file is still the same. Without one, or from another
        # address, what is there is continued only where a checksum tells in the end.
        validator = _validator(part, url)
        if validator:
            request.add_header("If-Range", validator)
        elif source.sha256 is None and source.md5 is None:
            have = 0
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return None  # it is complete
        part.unlink()
        return _request(url, source, part, show)
    with response:
        if response.headers.get_content_type() == "text/html":
            raise _NoFile("an HTML page came instead of the file")
        if response.status != 206:
            have = 0
        elif have and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink()
            return _request(url, source, part, show)
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        try:
            _note_validator(part, url, response.headers)
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
            raise OSError(f"cannot write {part}: {error.strerror}; run again, and it goes on from there") from error
    if total is not None and have < total:
        raise ConnectionError(f"the connection broke after {have} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"the connection broke: {error}") from error


def _validator(part: Path, url: str) -> str | None:
    """What the server called its version of the file when ``part`` was begun, where ``url`` is where it is from."""
    try:
        note = json.loads(_part_note(part).read_text())
        return note["validator"] if note["url"] == url else None
    except (OSError, ValueError, KeyError):
        return None


def _note_validator(part: Path, url: str, headers: http.client.HTTPMessage) -> None:
    validator = headers.get("ETag") or headers.get("Last-Modified")
    if validator and validator.startswith("W/"):  # says that two files mean the same, not that they are
        validator = None
    write_atomic(_part_note(part), json.dumps({"url": url, "validator": validator}).encode())


@contextlib.contextmanager
def _progress(name: str, size: int | None) -> Iterator[Callable[[int, int | None], None]]:
    if not console.is_terminal:
        log.info("downloading %s%s", name, f" ({readable(size)})" if size else "")
        yield lambda have, total: None
        return
    columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(name, total=size)
        yield lambda have, total: bar.update(task, completed=have, total=total or size)


def readable(size: int | None) -> str:
    """A number of bytes for people."""
    return "?" if size is None else f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def unpack(archive: Path, members: Sequence[str] | None, into: Path) -> Path:
    """Unpacks a zip or tar archive into a folder, unless it is there.

    Nothing is written outside of ``into``: names that lead out of it are refused, links and special files too. The
    folder appears complete or not at all; a single member likewise.

    Args:
        members: names in the archive, with or without the folders above them; they land as ``into / name``. None is
            everything.

    Returns:
        ``into``.

    Raises:
        OSError: for a damaged archive, a member that it does not have, a name that leads out; a full disk.
    """
    wanted = None if members is None else [name for name in members if not (into / name).exists()]
    if wanted == [] or (wanted is None and into.exists()):
        return into
    with _locked(into, f"another process unpacks {archive.name}; waiting for it"):
        wanted = None if members is None else [name for name in members if not (into / name).exists()]
        if wanted == [] or (wanted is None and into.exists()):
            return into
        temporary = into.with_name(f"{into.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        temporary.mkdir()
        try:
            with open_archive(archive) as (names, open_member):
                if wanted is None:
                    todo = {name: name for name in names}
                else:
                    todo = {find(archive, names, name): name for name in wanted}
                for name, target in todo.items():
                    _check_name(archive, target)
                    (temporary / target).parent.mkdir(parents=True, exist_ok=True)
                    with open_member(name) as source, open(temporary / target, "wb") as out:
                        shutil.copyfileobj(source, out, CHUNK)
            if wanted is None:
                os.replace(temporary, into)
            else:
                for name in wanted:
                    (into / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(temporary / name, into / name)
        except OSError as error:
            if error.errno is None:
                raise
            raise OSError(f"cannot unpack {archive} into {into}: {error.strerror}; nothing is left behind") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return into


@contextlib.contextmanager
def open_archive(archive: Path) -> Iterator[tuple[list[str], Callable[[str], BinaryIO]]]:
    """The names of the files in a zip or tar archive, and what opens one of them.

    Raises:
        OSError: for a damaged archive, also while one reads; for one with links or special files.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                files = [info for info in opened.infolist() if not info.is_dir()]
                for info in files:
                    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                        raise OSError(f"{archive}: {info.filename} is a link or a special file; refused")
                yield [info.filename for info in files], opened.open
        else:
            with tarfile.open(archive) as opened:
                infos = {info.name: info for info in opened if not info.isdir()}
                for info in infos.values():
                    if not info.isreg():
                        raise OSError(f"{archive}: {info.name} is a link or a special file; refused")
                # To the end, where the checksum is.
                while opened.fileobj.read(CHUNK):
                    pass
                yield list(infos), lambda name: opened.extractfile(infos[name])
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = " ".join(str(error).split())
        raise OSError(f"{archive} is damaged ({reason}): delete it and run again to download it") from error


def find(archive: Path, names: Sequence[str], wanted: str) -> str:
    """The one member that is called ``wanted``, in whatever folder; OSError where there is none, or several."""
    found = [wanted] if wanted in names else [name for name in names if name.endswith(f"/{wanted}")]
    if len(found) != 1:
        listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise OSError(f"{archive} has {len(found) or 'no'} files named {wanted}; it holds {listed}")
    return found[0]


def _check_name(archive: Path, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise OSError(f"{archive}: {name} leads out of the folder; refused")


def cached(root: Path, name: str, key: dict, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``build`` gives, kept in ``root/cache/<name>-<hash>.pt``.

    The hash is of ``key`` and of the code of the file in which ``build`` is defined. The file is written whole or not
    at all, by one process while the others wait; its checksums are verified when it is read, and a damaged one is built
    anew. Where the data root cannot be written to, nothing is kept.

    Args:
        key: all that the result depends on, as JSON: checksums of the files, the protocol, :func:`code` of other files.
        build: gives tensors, and plain values (text, numbers, lists of them), by name.

    Raises:
        OSError: the disk is full; nothing is left behind.
    """
    whole = json.dumps([key, code(build.__code__.co_filename)], sort_keys=True)
    path = root / "cache" / f"{name}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}.pt"
    kept = _load_cache(path)
    if kept is not None:
        return kept
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(path, f"another process prepares {name}; waiting for it"))
        except OSError as error:
            log.warning("%s cannot be kept in %s (%s)", name, path.parent, error.strerror or error)
            return build()
        kept = _load_cache(path)
        if kept is None:
            kept = build()
            _save_cache(path, kept)
    return kept


def code(*files: str) -> str:
    """A hash of source files, for the keys of :func:`cached`: ``code(tasks.uea.__file__)``."""
    return hashlib.sha256(b"\0".join(Path(file).read_bytes() for file in files)).hexdigest()[:16]


def _load_cache(path: Path) -> dict[str, Any] | None:
    try:
        # torch.load reads some damaged files without complaint; the checksums inside tell.
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {bad}")
        return torch.load(path, weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:
        log.warning("%s is damaged (%s); building it anew", path, " ".join(str(error).split()))
        return None


def _save_cache(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as out:
            torch.save(content, out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    # torch reports a failed write as a RuntimeError.
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OSError(f"cannot write {path}: {reason}; nothing is left behind, make room and run again") from error
    finally:
        temporary.unlink(missing_ok=True)
