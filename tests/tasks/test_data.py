import errno
import gzip
import hashlib
import io
import json
import logging
import multiprocessing
import os
import pickle
import random
import re
import signal
import stat
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from longwave.tasks import data
from longwave.tasks.data import DataError, Source, cached, digest, fetch, fetch_all, open_archive, unpack
from tests.server import Page, Server

CONTENT = random.Random(0).randbytes(5_000_003)
SUM = hashlib.sha256(CONTENT).hexdigest()
NOWHERE = "http://127.0.0.1:9/a.bin"  # the discard port: refused at once

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here, a file on a full disk")
forks = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def source(server):
    server.pages["a.bin"] = Page(CONTENT)
    return Source("downloads/a.bin", (server.url("a.bin"),), SUM)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def test_an_error_names_file_and_place():
    error = DataError(Path("a/b.ts"), "line 7", "'x' is not a number")
    assert isinstance(error, OSError)
    assert (str(error), error.errno) == ("a/b.ts, line 7: 'x' is not a number", None)
    assert str(DataError("b.ts", None, "no series")) == "b.ts: no series"
    # As a launcher's worker sends it.
    sent = pickle.loads(pickle.dumps(error))
    assert (type(sent), str(sent), sent.place) == (DataError, str(error), "line 7")


# Downloads


def test_downloads_once_and_notes_what_came(server, source, tmp_path):
    path = fetch(source, tmp_path)
    assert path == tmp_path / "downloads" / "a.bin"
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == {"a.bin", "a.bin.source.json"}
    note = json.loads((path.parent / "a.bin.source.json").read_text())
    assert (note["sha256"], note["url"], note["size"]) == (SUM, server.url("a.bin"), len(CONTENT))
    assert digest(path) == SUM
    assert fetch(source, tmp_path) == path
    assert len(server.requests) == 1


def test_a_file_that_is_there_needs_no_network(tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "a.bin").write_bytes(CONTENT)
    assert fetch(Source("downloads/a.bin", (NOWHERE,), SUM), tmp_path).read_bytes() == CONTENT
    assert digest(tmp_path / "downloads" / "a.bin") == SUM


def test_an_unchanged_file_is_not_read_again(source, tmp_path, monkeypatch):
    path = fetch(source, tmp_path)
    monkeypatch.setattr(data, "_hash", None)
    fetch(source, tmp_path)
    assert digest(path) == SUM


def test_a_broken_connection_is_taken_up_again(server, source, tmp_path):
    server.pages["a.bin"].breaks_after = [1_200_000, 5, 2_000_000]
    assert fetch(source, tmp_path).read_bytes() == CONTENT
    assert server.asked("a.bin") == [None, "bytes=1200000-", "bytes=1200005-", "bytes=3200005-"]
    assert server.requests[1][1]["If-Range"] == '"1"'
    assert names(tmp_path / "downloads") == {"a.bin", "a.bin.source.json"}


def test_a_stall_keeps_what_came(server, source, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "TIMEOUT", 0.3)
    server.pages["a.bin"] = Page(CONTENT, breaks_after=[5000, 0], stalls=True)
    with pytest.raises(DataError, match=r"the connection broke: timed out"):
        fetch(source, tmp_path)
    assert (tmp_path / "downloads" / "a.bin.part").read_bytes() == CONTENT[:5000]
    assert fetch(source, tmp_path).read_bytes() == CONTENT
    assert server.asked("a.bin") == [None, "bytes=5000-", "bytes=5000-"]


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (Page(b""), "an empty file"),
        (Page(b"x", headers={"Content-Length": "many"}), "its Content-Length is 'many'"),
        (Page(b"x", headers={"Content-Length": "-1"}), "its Content-Length is '-1'"),
        (Page(b"x", status=206), "a part of the file, where all of it was requested"),
        (Page(b"", status=302, headers={"Location": "/a.bin"}), "HTTP 302 .*infinite loop.*"),
        (Page(b"", status=302, headers={"Location": "http://[::1"}), "redirected to a malformed address: .*"),
        (Page(b"", status=302, headers={"Location": "http://127.0.0.1:port/"}), "nonnumeric port: 'port'"),
        (Page(b"", status=302, headers={"Location": "file:///etc/passwd"}), "HTTP 302 .*not allowed.*"),
        (Page(b"", status=302, headers={"Location": f"http://{'x' * 70}/"}), "redirected to a malformed address: .*"),
        (Page(b"", status=302), "HTTP 302 Found"),
    ],
)
def test_a_bad_answer_is_one_line(server, tmp_path, page, reason):
    server.pages["a.bin"] = page
    url = server.url("a.bin")
    with pytest.raises(DataError) as caught:
        fetch(Source("a.bin", (url,)), tmp_path)
    assert re.fullmatch(rf"from {re.escape(url)} \({reason}\)", str(caught.value).split("\n")[1])
    assert not {"a.bin", "a.bin.part"} & names(tmp_path)


def test_an_empty_file_that_is_there_is_refused(tmp_path):
    (tmp_path / "a.bin").touch()
    with pytest.raises(DataError, match=rf"a\.bin: is empty; delete it and run again to download it from {NOWHERE}"):
        fetch(Source("a.bin", (NOWHERE,)), tmp_path)


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "a.bin").mkdir()
    (tmp_path / "a.bin" / "x").touch()
    with pytest.raises(DataError, match=r"a\.bin: cannot be read \(Is a directory\)"):
        fetch(Source("a.bin", (NOWHERE,)), tmp_path)


def test_goes_on_in_the_next_process_where_the_last_one_stopped(server, source, tmp_path):
    server.pages["a.bin"].breaks_after = [1_200_000, 0]
    with pytest.raises(OSError, match=r"broke after 1200000 of 5000003 bytes"):
        fetch(source, tmp_path)
    assert (tmp_path / "downloads" / "a.bin.part").stat().st_size == 1_200_000
    assert fetch(source, tmp_path).read_bytes() == CONTENT
    assert server.asked("a.bin")[-1] == "bytes=1200000-"


def test_a_file_that_has_changed_meanwhile_is_begun_anew(server, tmp_path):
    # No checksum is known, so only the server's validator can tell.
    unchecked = Source("downloads/a.bin", (server.url("a.bin"),))
    server.pages["a.bin"] = Page(CONTENT, breaks_after=[1_200_000, 0])
    with pytest.raises(OSError, match="broke"):
        fetch(unchecked, tmp_path)
    server.pages["a.bin"] = Page(CONTENT[::-1], etag='"2"')
    assert fetch(unchecked, tmp_path).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
@pytest.mark.parametrize("known", [True, False])
def test_without_a_validator_only_a_checksum_allows_to_go_on(server, tmp_path, etag, known):
    server.pages["a.bin"] = Page(CONTENT, etag=etag, breaks_after=[1_200_000])
    path = fetch(Source("downloads/a.bin", (server.url("a.bin"),), SUM if known else None), tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.asked("a.bin") == [None, "bytes=1200000-" if known else None]


def test_a_server_that_gives_no_parts_gives_all(server, source, tmp_path):
    server.pages["a.bin"] = Page(CONTENT, ranges=False, breaks_after=[1_200_000, 2_000_000])
    assert fetch(source, tmp_path).read_bytes() == CONTENT
    server.pages["b.bin"] = Page(CONTENT, ranges=False, breaks_after=[1_200_000] * 9)
    with pytest.raises(OSError, match="broke"):
        fetch(Source("downloads/b.bin", (server.url("b.bin"),), SUM), tmp_path)
    assert len(server.asked("b.bin")) == 2


def test_a_part_that_is_complete_already(server, source, tmp_path):
    (tmp_path / "downloads").mkdir()
    part = tmp_path / "downloads" / "a.bin.part"
    part.write_bytes(CONTENT)
    assert fetch(source, tmp_path).read_bytes() == CONTENT
    assert server.asked("a.bin") == ["bytes=5000003-"]


def test_a_part_that_is_longer_than_the_file(server, source, tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "a.bin.part").write_bytes(CONTENT + b"more")
    assert fetch(source, tmp_path).read_bytes() == CONTENT
    assert server.asked("a.bin") == ["bytes=5000007-", None]


def test_a_part_of_another_file(server, source, tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "a.bin.part").write_bytes(CONTENT[::-1][:1000])
    assert fetch(source, tmp_path).read_bytes() == CONTENT
    assert server.asked("a.bin") == ["bytes=1000-", None]


def test_the_next_mirror(server, tmp_path):
    server.pages["gone.bin"] = Page(b"", status=410)
    server.pages["wrong.bin"] = Page(CONTENT[::-1])
    server.pages["page.bin"] = Page(b"<html>please log in</html>", type="text/html; charset=utf-8")
    server.pages["a.bin"] = Page(CONTENT)
    urls = (NOWHERE, *(server.url(f"{n}.bin") for n in ("missing", "gone", "wrong", "page", "a")))
    path = fetch(Source("downloads/a.bin", urls, SUM), tmp_path)
    assert path.read_bytes() == CONTENT
    assert json.loads((tmp_path / "downloads" / "a.bin.source.json").read_text())["url"] == server.url("a.bin")
    assert [name for name, _ in server.requests] == ["missing.bin", "gone.bin", "wrong.bin", "page.bin", "a.bin"]


def test_a_mirror_goes_on_where_another_stopped(server, tmp_path):
    server.pages["first.bin"] = Page(CONTENT, breaks_after=[1_200_000, 0])
    server.pages["second.bin"] = Page(CONTENT, etag='"other"')
    urls = server.url("first.bin"), server.url("second.bin")
    assert fetch(Source("a.bin", urls, SUM), tmp_path).read_bytes() == CONTENT
    assert server.asked("second.bin") == ["bytes=1200000-"]


def test_offline_says_where_from_where_to_and_which_checksum(tmp_path):
    urls = NOWHERE, "http://127.0.0.1:9/mirror/a.bin"
    with pytest.raises(OSError, match="cannot be downloaded") as caught:
        fetch(Source("downloads/a.bin", urls, SUM), tmp_path)
    message = str(caught.value)
    path, addresses, checksum = message.split("\n")
    assert path.startswith(f"{tmp_path / 'downloads' / 'a.bin'}: cannot be downloaded; put it there")
    assert "LONGWAVE_DATA" in path
    assert re.fullmatch(rf"from {urls[0]} \(.*refused\) or {urls[1]} \(.*refused\)", addresses)
    assert checksum == f"sha256 {SUM}"
    with pytest.raises(OSError, match=r"\nmd5 0123$"):
        fetch(Source("downloads/a.bin", urls, md5="0123"), tmp_path)
    with pytest.raises(OSError, match=r"\nno published checksum"):
        fetch(Source("downloads/a.bin", urls), tmp_path)
    with pytest.raises(OSError, match="\nfrom no known address\n"):
        fetch(Source("downloads/a.bin", ()), tmp_path)
    assert names(tmp_path / "downloads") == set()


def test_what_comes_with_a_wrong_checksum_is_not_kept(server, tmp_path):
    server.pages["a.bin"] = Page(CONTENT)
    md5 = hashlib.md5(CONTENT).hexdigest()
    with pytest.raises(OSError, match=rf"{server.url('a.bin')} \(sha256 is {SUM}, not 00\)\nsha256 00"):
        fetch(Source("a.bin", (server.url("a.bin"),), "00"), tmp_path)
    with pytest.raises(OSError, match=rf"md5 is {md5}, not 00"):
        fetch(Source("a.bin", (server.url("a.bin"),), md5="00"), tmp_path)
    assert not {"a.bin", "a.bin.part"} & names(tmp_path)
    assert fetch(Source("a.bin", (server.url("a.bin"),), md5=md5), tmp_path).exists()


def test_a_zip_must_be_one(server, tmp_path):
    server.pages["a.zip"] = Page(b"Sorry, we have moved.", type="text/plain")
    with pytest.raises(OSError, match="not a zip archive"):
        fetch(Source("a.zip", (server.url("a.zip"),)), tmp_path)
    assert "a.zip" not in names(tmp_path)


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_wrong_file_that_is_there_is_named(tmp_path, kind):
    (tmp_path / "a.bin").write_bytes(b"other")
    found = hashlib.new(kind, b"other").hexdigest()
    message = (
        rf"{tmp_path / 'a.bin'}: {kind} is {found}, not 0123; delete it and run again to download it from {NOWHERE}"
    )
    with pytest.raises(OSError, match=message):
        fetch(Source("a.bin", (NOWHERE,), **{kind: "0123"}), tmp_path)


def test_trust_on_first_use(server, source, tmp_path):
    unchecked = Source("a.bin", (server.url("a.bin"),))
    server.pages["a.bin"] = Page(CONTENT, length=False)
    path = fetch(unchecked, tmp_path)
    os.utime(path, (1, 1))
    fetch(unchecked, tmp_path)  # touched, not changed
    assert json.loads((tmp_path / "a.bin.source.json").read_text())["url"] == server.url("a.bin")
    path.write_bytes(b"other")
    with pytest.raises(OSError, match=rf"not {SUM}; changed since its first use: .*delete .*a\.bin\.source\.json only"):
        fetch(unchecked, tmp_path)
    # What is downloaded anew must be what came first, too.
    path.unlink()
    server.pages["a.bin"] = Page(CONTENT[::-1])
    with pytest.raises(OSError, match=rf"not {SUM}; changed since its first use"):
        fetch(unchecked, tmp_path)
    (tmp_path / "a.bin.source.json").unlink()
    assert fetch(unchecked, tmp_path).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("urls", [(), (NOWHERE,)])
def test_a_file_that_nobody_downloaded_may_change(tmp_path, urls):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    source = Source("a.bin", urls)
    assert digest(fetch(source, tmp_path)) == SUM
    (tmp_path / "a.bin").write_bytes(b"mended")
    assert digest(fetch(source, tmp_path)) == hashlib.sha256(b"mended").hexdigest()


def test_a_full_disk_while_downloading(server, source, tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(data, "open", lambda *_: Full(), raising=False)
    with pytest.raises(OSError, match=r"a\.bin\.part: cannot be written \(No space left on device\)"):
        fetch(source, tmp_path)
    monkeypatch.undo()
    assert "a.bin" not in names(tmp_path / "downloads")
    assert fetch(source, tmp_path).read_bytes() == CONTENT


def test_a_data_root_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "a.bin").write_bytes(CONTENT)

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(data, "replacing", refuse)
    assert fetch(Source("a.bin", (), SUM), tmp_path).exists()


def in_ten_threads(work) -> list:
    results = []
    threads = [threading.Thread(target=lambda: results.append(work())) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_ten_threads_download_once(server, source, tmp_path):
    assert in_ten_threads(lambda: fetch(source, tmp_path).read_bytes()) == [CONTENT] * 10
    assert len(server.requests) == 1


def test_who_waits_says_so(server, source, tmp_path, caplog):
    (tmp_path / "downloads").mkdir()
    with caplog.at_level(logging.INFO, "longwave"):
        with FileLock(tmp_path / "downloads" / "a.bin.lock"):
            waiting = threading.Thread(target=fetch, args=(source, tmp_path))
            waiting.start()
            while "another process downloads a.bin" not in caplog.text:
                waiting.join(0.01)
                assert waiting.is_alive()
            assert not server.requests
        waiting.join()
    assert (tmp_path / "downloads" / "a.bin").exists()


def _fetch_and_exit(source, root):
    os._exit(0 if fetch(source, root).read_bytes() == CONTENT else 1)


@forks
def test_ten_processes_download_once(server, source, tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fetch_and_exit, args=(source, tmp_path)) for _ in range(10)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 10
    assert len(server.requests) == 1


def test_other_files_where_the_first_cannot_be_had(server, tmp_path):
    server.pages["a.bin"] = Page(CONTENT)
    lacking, there = Source("lacking.bin", (NOWHERE,)), Source("there.bin", (server.url("a.bin"),))
    assert fetch_all([lacking], [there], tmp_path) == [tmp_path / "there.bin"]
    # What is there is preferred: the address of the first is not even tried.
    server.pages["lacking.bin"] = Page(CONTENT)
    assert fetch_all([Source("lacking.bin", (server.url("lacking.bin"),))], [there], tmp_path) == [
        tmp_path / "there.bin"
    ]
    with pytest.raises(OSError, match=r"(?s)lacking\.bin: .*\nor .*gone\.bin: "):
        fetch_all([lacking], [Source("gone.bin", (NOWHERE,))], tmp_path)
    with pytest.raises(OSError, match=r"lacking\.bin"):
        fetch_all([lacking], [], tmp_path)


# Archives


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


FILES = {"top/a.txt": b"a" * 100_000, "top/b/c.txt": b"c", "d.txt": b"d"}


@pytest.mark.parametrize(("make", "name"), [(make_zip, "x.zip"), (make_tar, "x.tar.gz")])
class TestArchives:
    def test_everything(self, make, name, tmp_path):
        into = tmp_path / "into"
        assert unpack(make(tmp_path / name, FILES), list(FILES), into) == into
        found = {str(p.relative_to(into)): p.read_bytes() for p in into.rglob("*") if p.is_file()}
        assert found == FILES
        assert names(tmp_path) == {name, "into"}
        # It is there: the archive is not needed any more.
        (tmp_path / name).unlink()
        assert unpack(tmp_path / name, list(FILES), into) == into

    def test_members_wherever_they_lie(self, make, name, tmp_path):
        archive = make(tmp_path / name, FILES)
        into = unpack(archive, ["a.txt"], tmp_path / "into")
        assert names(into) == {"a.txt"}
        unpack(archive, ["a.txt", "d.txt", "b/c.txt"], into)
        assert {str(p.relative_to(into)) for p in into.rglob("*") if p.is_file()} == {"a.txt", "d.txt", "b/c.txt"}
        with pytest.raises(OSError, match=rf"{name}: no files named e\.txt; it holds top/a\.txt, top/b/c\.txt, d\.txt"):
            unpack(archive, ["e.txt"], into)

    def test_a_name_that_two_members_have(self, make, name, tmp_path):
        archive = make(tmp_path / name, {"one/a.txt": b"1", "two/a.txt": b"2"})
        with pytest.raises(OSError, match=r": 2 files named a\.txt"):
            unpack(archive, ["a.txt"], tmp_path / "into")
        assert (unpack(archive, ["two/a.txt"], tmp_path / "into") / "two" / "a.txt").read_bytes() == b"2"

    @pytest.mark.parametrize("evil", ["../evil", "/evil", "a/../../evil", "..\\evil", "C:/evil", "C:\\evil"])
    def test_what_leads_out_is_not_unpacked(self, make, name, evil, tmp_path):
        archive = make(tmp_path / name, {"top/good": b"", evil: b"evil"})
        into = unpack(archive, ["good"], tmp_path / "deep" / "into")
        assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == [
            archive,
            into / "good",
        ]
        assert not list(tmp_path.rglob("*evil*"))

    @pytest.mark.parametrize("keep", [0.3, 0.9])
    def test_truncated(self, make, name, keep, tmp_path):
        files = {"a.txt": random.Random(0).randbytes(100_000), "b.txt": b"b"}
        archive = make(tmp_path / name, files)
        content = archive.read_bytes()
        archive.write_bytes(content[: int(keep * len(content))])
        with pytest.raises(OSError, match=rf"{name}: damaged \(.*\); delete it and run again"):
            unpack(archive, list(files), tmp_path / "into")
        assert names(tmp_path) == {name}

    def test_damaged_inside(self, make, name, tmp_path):
        archive = make(tmp_path / name, {"a.txt": random.Random(0).randbytes(100_000)})
        content = bytearray(archive.read_bytes())
        content[50_000] ^= 0xFF
        archive.write_bytes(content)
        with pytest.raises(OSError, match=": damaged"):
            unpack(archive, ["a.txt"], tmp_path / "into")
        with pytest.raises(OSError, match=": damaged"), open_archive(archive) as (_, open_member):
            open_member("a.txt").read()
        assert names(tmp_path) == {name}

    def test_a_full_disk(self, make, name, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        archive = make(tmp_path / name, FILES)
        monkeypatch.setattr(data.shutil, "copyfileobj", full)
        with pytest.raises(OSError, match=rf"into: cannot be unpacked from .*{name} \(No space left on device\)"):
            unpack(archive, list(FILES), tmp_path / "into")
        assert names(tmp_path) == {name}

    def test_after_a_process_that_was_killed(self, make, name, tmp_path):
        (tmp_path / "into.tmp" / "top").mkdir(parents=True)
        (tmp_path / "into.tmp" / "top" / "half.txt").write_bytes(b"")
        into = unpack(make(tmp_path / name, FILES), list(FILES), tmp_path / "into")
        assert names(into) == {"top", "d.txt"}
        assert names(into / "top") == {"a.txt", "b"}
        assert names(tmp_path) == {name, "into"}


def damaged(path: Path, old: bytes, new: bytes) -> Path:
    """Replaces bytes of a small archive."""
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    return path


def test_encrypted_or_of_an_unknown_compression(tmp_path):
    # In the local header and in the directory: flags, then the method.
    for name, flags, method, reason in (("e.zip", 1, 8, "is encrypted"), ("u.zip", 0, 99, "compression method")):
        path = make_zip(tmp_path / name, {"a.txt": b"a" * 100})
        for signature, version in ((b"PK\3\4", b"\x14\0"), (b"PK\1\2", b"\x14\3\x14\0")):
            start = signature + version
            damaged(path, start + b"\0\0\x08\0", start + bytes([flags, 0, method, 0]))
        with pytest.raises(DataError, match=rf"{name}: damaged \(.*{reason}.*\)") as caught:
            unpack(path, ["a.txt"], tmp_path / "into")
        assert "\n" not in str(caught.value)


def test_a_member_without_a_name(tmp_path):
    # A name ends at a zero byte.
    nameless = damaged(make_zip(tmp_path / "x.zip", {"name.txt": b"a", "b": b"b"}), b"name", b"\0ame")
    for archive in (nameless, make_tar(tmp_path / "x.tar", {"": b"a", "b": b"b"})):
        with pytest.raises(DataError, match=rf"{archive}: a file without a name; refused"):
            unpack(archive, ["b"], tmp_path / "into")


@pytest.mark.parametrize(("make", "name"), [(make_zip, "x.zip"), (make_tar, "x.tar.gz")])
def test_what_unpacks_to_too_much(make, name, tmp_path, monkeypatch):
    archive = make(tmp_path / name, {"a": bytes(300_000), "b": bytes(300_000)})
    assert unpack(archive, ["a"], tmp_path / "small")
    monkeypatch.setattr(data, "SMALL", 500_000)
    with pytest.raises(DataError, match=rf"{name}: \d kB that unpack to at least 6\d\d kB; refused"):
        unpack(archive, ["a"], tmp_path / "ratio")
    monkeypatch.setattr(data, "RATIO", 10**6)
    assert unpack(archive, ["a"], tmp_path / "enough")
    monkeypatch.setattr(data, "LARGEST_ARCHIVE", 500_000)
    with pytest.raises(DataError, match="; refused"):
        unpack(archive, ["a"], tmp_path / "size")


def test_what_follows_the_files_of_a_tar_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SMALL", 1 << 20)
    plain = make_tar(tmp_path / "x.tar.gz", {"a": b"a"})
    plain.write_bytes(gzip.compress(gzip.decompress(plain.read_bytes()) + bytes(8 << 20)))
    with pytest.raises(DataError, match=r"that unpack to at least \d MB; refused"):
        unpack(plain, ["a"], tmp_path / "into")


def test_links_are_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    for name in ("x.tar", "x.zip"):
        with pytest.raises(OSError, match="link: a link or a special file; refused"):
            unpack(tmp_path / name, ["link"], tmp_path / "into")
    assert names(tmp_path) == {"x.tar", "x.zip"}


def test_no_archive_at_all(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"no tar"))
    with pytest.raises(OSError, match=": damaged") as caught:
        unpack(tmp_path / "x.gz", ["a"], tmp_path / "into")
    assert "\n" not in str(caught.value)


# The cache


class Builder:
    """Counts how often it builds."""

    def __init__(self):
        self.count = 0
        self.__code__ = (lambda: None).__code__

    def __call__(self):
        self.count += 1
        return {"x": torch.arange(1000.0).view(10, 100), "names": ["a", "b"], "n": 3}


def good(kept) -> bool:
    return torch.equal(kept["x"], torch.arange(1000.0).view(10, 100)) and (kept["names"], kept["n"]) == (["a", "b"], 3)


def test_builds_once_per_key(tmp_path):
    build = Builder()
    for _ in range(2):
        assert good(cached(tmp_path, "t", {"protocol": "a", "sum": [1, 2]}, build))
    assert build.count == 1
    cached(tmp_path, "t", {"protocol": "b", "sum": [1, 2]}, build)
    cached(tmp_path, "u", {"protocol": "a", "sum": [1, 2]}, build)
    assert build.count == 3
    assert len(names(tmp_path / "cache")) == 3


def test_other_code_builds_anew(tmp_path):
    module = tmp_path / "module.py"
    for text in ("def build():\n    return {'n': 1}\n", "def build():\n    return {'n': 2}\n"):
        module.write_text(text)
        found = {}
        exec(compile(text, str(module), "exec"), found)
        result = cached(tmp_path, "t", {}, found["build"])
    assert result == {"n": 2}
    assert data.code(__file__) != data.code(__file__, data.__file__)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other"])
def test_a_damaged_cache_is_built_anew(tmp_path, damage, caplog):
    build = Builder()
    cached(tmp_path, "t", {}, build)
    [path] = (p for p in (tmp_path / "cache").iterdir() if p.suffix == ".pt")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes({"flip": content, "truncate": content[:-100], "empty": b"", "other": b"PK no zip"}[damage])
    assert good(cached(tmp_path, "t", {}, build))
    assert build.count == 2
    assert "is damaged" in caplog.text
    assert good(cached(tmp_path, "t", {}, build))
    assert build.count == 2


def test_ten_threads_build_once(tmp_path):
    build = Builder()
    assert all(map(good, in_ten_threads(lambda: cached(tmp_path, "t", {}, build))))
    assert build.count == 1


def _die_while_caching(root, build):
    save = torch.save

    def die(content, out):
        save(content, out)
        out.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = die
    cached(root, "t", {}, build)


@forks
def test_a_process_killed_while_caching(tmp_path):
    build = Builder()
    process = multiprocessing.get_context("fork").Process(target=_die_while_caching, args=(tmp_path, build))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    [left] = names(tmp_path / "cache")
    assert left.endswith(".tmp")
    assert good(cached(tmp_path, "t", {}, build))
    assert build.count == 1
    [left] = names(tmp_path / "cache")
    assert left.endswith(".pt")


@needs_full
def test_a_full_disk_while_caching(tmp_path):
    build = Builder()
    cached(tmp_path, "t", {}, build)
    [path] = (p for p in (tmp_path / "cache").iterdir() if p.suffix == ".pt")
    path.unlink()
    path.with_name(f"{path.name}.tmp").symlink_to(FULL)
    with pytest.raises(OSError, match=rf"{path}: cannot be written \(.*\); make room") as caught:
        cached(tmp_path, "t", {}, build)
    assert "\n" not in str(caught.value)
    assert names(tmp_path / "cache") == set()
    assert FULL.exists()
    assert good(cached(tmp_path, "t", {}, build))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("failed\nto write")])
def test_a_write_that_fails(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=r"cannot be written \((No space left on device|failed to write)\); make room"):
        cached(tmp_path, "t", {}, Builder())
    assert names(tmp_path / "cache") == set()


def test_a_data_root_that_keeps_nothing(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(data, "FileLock", refuse)
    assert good(cached(tmp_path, "t", {}, Builder()))
    assert "Read-only file system" in caplog.text


def test_what_fails_to_build_keeps_nothing(tmp_path):
    def build():
        raise OSError("line 3 is wrong")

    with pytest.raises(OSError, match="line 3 is wrong"):
        cached(tmp_path, "t", {}, build)
    assert names(tmp_path / "cache") == set()
