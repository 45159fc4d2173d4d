import argparse
import json
import re
import shlex
import shutil

import pytest

from longwave.results import collect, records, report, tables
from longwave.training.config import compose_run, numbers
from longwave.training.errors import UserError
from tests.results.cases import make_record, make_run


def options(*arguments):
    parser = argparse.ArgumentParser()
    records.add_arguments(parser)
    return parser.parse_args(arguments)


def names(found):
    return sorted(record.name for record in found)


@pytest.fixture
def output(tmp_path, monkeypatch):
    """A checkout with three committed records, and two runs of its user: of a dirty tree, and not finished."""
    monkeypatch.setattr(records, "FOLDER", tmp_path / "committed")
    monkeypatch.setattr(records, "OUTPUT", tmp_path / "outputs")
    monkeypatch.setattr(tables, "PATH", tmp_path / "TABLES.md")
    records.FOLDER.mkdir()
    for seed in range(3):
        made = make_record(seed=seed, value=0.97 + seed / 1000)
        (records.FOLDER / f"{made['name']}.json").write_text(json.dumps(made))
    make_run(records.OUTPUT / "runs", seed=0, value=0.96, git={"commit": "c", "dirty": True})
    failed = {"status": "interrupted", "metrics": {}, "published": None}
    make_run(records.OUTPUT / "runs", model="lem", recipe="lem/psmnist", **failed)
    return records.OUTPUT


def test_ones_own_runs_beside_the_committed_records(output):
    found = records.shown(options())
    assert (len(found.records), len(found.mine)) == (3, 2)
    assert str(found) == "5 records, 2 of them yours"
    mine = records.shown(options("--mine"))
    assert (names(mine.records), mine.mine) == (names(found.mine), [])
    assert str(mine) == "2 records"


@pytest.mark.parametrize("folder", ["outputs", "outputs/runs"])
def test_a_folder_of_runs_is_read_as_one_of_records(output, folder, tmp_path):
    assert names(records.shown(options("--runs", str(tmp_path / folder))).records) == names(
        records.shown(options("--mine")).records
    )
    assert len(records.shown(options("--runs", str(records.FOLDER))).records) == 3


def test_what_was_collected_or_published_is_shown_once(output):
    collect.collect(output / "runs", output / "records")
    assert len(list((output / "records").iterdir())) == 1
    assert len(records.shown(options()).mine) == 2
    # Also where only the record is left.
    shutil.rmtree(output / "runs")
    assert len(records.shown(options("--mine")).records) == 1
    (path,) = (output / "records").iterdir()
    shutil.copy(path, records.FOLDER)
    assert records.shown(options()).mine == []


def test_nothing_to_show(output, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^--runs .*empty: has no record of a run that can be read$"):
        records.shown(options("--runs", str(tmp_path / "empty")))
    shutil.rmtree(output)
    with pytest.raises(UserError, match=r"^--mine: there is no record of a run in .*outputs"):
        records.shown(options("--mine"))
    assert len(records.shown(options()).records) == 3


def test_the_tables_mark_them(output, capsys):
    tables.main([])
    page = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in page.splitlines()]
    assert any(line.startswith("| cornn/psmnist | 97.10 ± 0.10 (3) |") for line in lines)
    assert any(line.startswith("| cornn/psmnist (yours) | 96.00 (1) |") for line in lines)
    assert "- cornn/psmnist (yours): 1 run from a dirty tree." in lines
    assert any(line.startswith("| lem/psmnist (yours) | ") and "| not finished |" in line for line in lines)
    assert "- lem/psmnist (yours): 1 run interrupted." in lines
    assert "not run" in page
    assert "writes this page" not in page
    tables.main(["--mine"])
    page = capsys.readouterr().out
    assert "yours" not in page
    assert "not run" not in page
    assert re.findall("## .*", page) == ["## Summary", "## psmnist: accuracy, %"]
    tables.main(["--format", "csv"])
    assert capsys.readouterr().out.count(",True\n") == 2


def test_what_is_committed_does_not_depend_on_them(output, capsys):
    tables.main(["--publish"])
    assert "3 records" in capsys.readouterr().out
    page = tables.PATH.read_text()
    assert "yours" not in page
    assert "96.00" not in page
    tables.main([])
    assert tables.PATH.read_text() == page
    tables.main(["--check"])


def test_the_report_marks_them(output, tmp_path, capsys):
    path = tmp_path / "r.html"
    report.main(["--into", str(path)])
    assert "5 records, 2 of them yours" in capsys.readouterr().out
    page = path.read_text()
    assert "psmnist (yours)</td>" in page
    assert 'id="unrun"' in page
    assert "No records of this yet." in page
    report.main(["--mine", "--into", str(path)])
    mine = path.read_text()
    # Neither rows nor charts, filters nor headings of what was not run.
    assert "not run</label>" not in mine
    assert 'data-run="no">' in page
    assert 'data-run="no">' not in mine
    assert "No records of this yet." not in mine
    assert '<h2 id="gradients">' not in mine
    assert 'href="#gradients"' not in mine
    assert mine.count("<figure") == 2
    assert page.count("<figure") > 2
    assert 'value="lstm"' in page
    assert 'value="lstm"' not in mine


def test_every_committed_record_is_found_by_its_command():
    """What came later than a record (settings, defaults, recipes) leaves its identity as it is."""
    for record in records.load()[0]:
        config, recipe = compose_run(shlex.split(record.command)[2:])
        assert (config.identity(), recipe) == (record.identity, record.recipe), record.name
        assert numbers(config.as_dict()) == numbers(record.config), record.name
