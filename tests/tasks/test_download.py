import pytest

from longwave.tasks import download, series
from longwave.tasks.data import Source
from tests.server import Page, Server


@pytest.fixture
def server(monkeypatch):
    server = Server()
    for name in ("a", "b", "c"):
        server.pages[name] = Page(name.encode() * 1500)

    def source(name):
        return Source(f"there/{name}", (server.url(name),), size=1_234_567, licence=f"licence of {name}")

    offered = {
        "one": ((source("a"), source("b")), ()),
        "two": ((source("missing"),), (source("c"),)),
        "three": ((source("gone"),), ()),
    }
    monkeypatch.setattr(download, "known", lambda: offered)
    monkeypatch.setattr(series, "zipped", lambda name: (source(f"uea{name}"),))
    yield server
    server.close()


def run(tmp_path, *arguments):
    return download.main([*arguments, "--root", str(tmp_path)])


def test_fetches_what_is_named(server, tmp_path, capsys):
    server.pages["ueaBasicMotions"] = Page(b"x")
    assert run(tmp_path, "one", "uea/BasicMotions") == 0
    assert {path.name for path in (tmp_path / "there").iterdir() if "." not in path.name} == {
        "a",
        "b",
        "ueaBasicMotions",
    }
    assert capsys.readouterr().out.split("\n")[0] == f"one: {tmp_path / 'there' / 'a'}"


def test_all_goes_on_after_a_failure(server, tmp_path, capsys):
    assert run(tmp_path, "all") == 1
    out, err = capsys.readouterr()
    assert [line.split(": ")[0] for line in out.strip().split("\n")] == ["one", "one", "two"]
    assert (tmp_path / "there" / "c").exists()
    [line] = [line for line in err.split("\n") if line.startswith("error")]
    assert line.startswith(f"error: {tmp_path}/there/gone: cannot be downloaded; ")


def test_list(server, tmp_path, capsys):
    run(tmp_path, "one")
    capsys.readouterr()
    assert run(tmp_path, "--list") == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].split(maxsplit=5) == ["one", "there/a", "2", "kB", "there", "licence: licence of a"]
    assert lines[2].split(maxsplit=5) == ["two", "there/missing", "1", "MB", "-", "licence: licence of missing"]
    assert not server.asked("missing")


@pytest.mark.parametrize("arguments", [["foo"], ["one", "foo"], []])
def test_a_name_that_is_not_known(server, tmp_path, arguments, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, *arguments)
    assert "foo: no such data set; there are one" in capsys.readouterr().err or not arguments
    assert not server.requests


def test_every_task_file_offers_its_sources():
    known = download.known()
    assert {"eigenworms", "bidmc_rr", "bidmc_hr", "bidmc_spo2"} <= set(known)
    sources, fallback = known["eigenworms"]
    assert [source.path for source in sources] == ["uea/EigenWorms.zip"]
    assert [source.path for source in fallback] == ["uea/EigenWorms_TRAIN.ts", "uea/EigenWorms_TEST.ts"]
    for sources, fallback in known.values():
        for source in (*sources, *fallback):
            assert source.urls
            assert all(url.startswith(("https://", "http://")) for url in source.urls)
