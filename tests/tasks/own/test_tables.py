"""Tables are read to the numbers that were written, or refused with file, row and column."""

import gzip

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from longwave.tasks.checks import DataError
from longwave.tasks.files import Config, read

LONG = """sample,time,x,y,target,group
b,0,1,-1,up,p1
b,1,2,-2,up,p1
a,0,3,-3,down,p2
a,1,4,-4,down,p2
a,2,5,-5,down,p2
"""


@pytest.fixture
def load(tmp_path):
    """``load(text, name, **settings)``: the samples of a file with this content."""

    def call(content: str | bytes, name: str = "my.csv", **settings):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read(Config(path=str(path), **settings), tmp_path)

    return call


def series(found, index: int) -> list[list[float]]:
    return found.block(np.array([index]))[0].tolist()


def labels(found) -> list[str]:
    return [found.classes[code] for code in found.targets]


def same_as_long(found) -> None:
    assert (found.ids, found.lengths.tolist(), found.channels) == (["b", "a"], [2, 3], ["x", "y"])
    assert series(found, 0) == [[1, -1], [2, -2]]
    assert series(found, 1) == [[3, -3], [4, -4], [5, -5]]
    assert (labels(found), found.classes, found.groups) == (["up", "down"], ["down", "up"], ["p1", "p2"])
    assert found.block_times(np.array([0, 1])).tolist() == [[0, 1, 1], [0, 1, 2]]


LINES = LONG.splitlines()
VARIANTS = {
    "as it is": LONG,
    "CRLF, a byte order mark, no end of the last line": "\ufeff" + LONG.replace("\n", "\r\n").rstrip(),
    "tabs": LONG.replace(",", "\t"),
    "semicolons": LONG.replace(",", ";"),
    "spaces in columns": "\n".join("  ".join(line.split(",")) for line in LINES),
    "quotes": "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in LINES),
    "empty lines and columns": "\n" + "\n\n".join(f"{line},," for line in LINES) + "\n,,,,,,,\n,,,,,,,\n",
    "comments": "# by a logger\n#\n" + LONG.replace("a,0", "# a gap\na,0"),
    "interleaved": "\n".join(LINES[i] for i in (0, 1, 3, 2, 4, 5)),
    "an index without a name": "\n".join(f"{'' if i == 0 else i},{line}" for i, line in enumerate(LINES)),
    "a target once a sample": LONG.replace("1,2,-2,up,p1", "1,2,-2,,"),
    "gzip": gzip.compress(LONG.encode()),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_long_table_in_many_dresses(load, variant):
    same_as_long(load(VARIANTS[variant], "my.csv.gz" if variant == "gzip" else "my.csv"))


def test_names_decimal_commas_and_marks(load):
    text = "Messung;Zeit;a b;Wert;Klasse\n7;12/04/2025 23.30.00;0,5;-200;1\n7;13/04/2025 00.30.00;-200,0;2,5;1,0\n"
    found = load(
        text,
        sample_column="Messung",
        time_column="Zeit",
        time_format="%d/%m/%Y %H.%M.%S",
        target_column="Klasse",
        decimal="comma",
        missing_marks=["-200"],
    )
    assert found.channels == ["a b", "Wert"]
    assert series(found, 0) == pytest.approx(np.array([[0.5, np.nan], [np.nan, 2.5]]), nan_ok=True)
    assert found.block_times(np.array([0])).tolist() == [[0, 3600]]
    # 1 and 1,0 are one class.
    assert labels(found) == ["1"]


@pytest.mark.parametrize(
    ("times", "settings", "seconds"),
    [
        (["5", "5.5", "7"], {}, [0, 0.5, 2]),
        (["1760000000000", "1760000000250", "1760000001000"], {"time_unit": "ms"}, [0, 0.25, 1]),
        (["1760000000000000001", "1760000000000000003", "1760000000000000004"], {"time_unit": "ns"}, [0, 2e-9, 3e-9]),
        (["2025-01-01", "2025-01-02", "2025-01-04"], {}, [0, 86400, 259200]),
        (["2025-01-01 00:00:00.5", "2025-01-01 00:00:01", "2025-01-01 00:00:03"], {}, [0, 0.5, 2.5]),
        # The clock goes back, time does not.
        (["2026-10-25T02:30:00+02:00", "2026-10-25T02:10:00+01:00", "2026-10-25T02:30:00Z"], {}, [0, 2400, 7200]),
        (["01.02.2025 10:00 +0200", "01.02.2025 10:00 +0100", "01.02.2025 10:00 +0000"],
         {"time_format": "%d.%m.%Y %H:%M %z"}, [0, 3600, 7200]),
        (["1:00.25", "1:00.5", "2:00.0"], {"time_format": "%M:%S.%f"}, [0, 0.25, 59.75]),
    ],
)  # fmt: skip
def test_times(load, times, settings, seconds):
    text = "sample,time,x,target\n" + "".join(f"a,{time},1,0\n" for time in times)
    found = load(text, **settings)
    assert found.block_times(np.array([0]))[0] == pytest.approx(seconds, abs=1e-12)


def test_a_target_a_step(load):
    text = "sample,x,target\na,1,up\na,2,down\nb,3,up\nb,4,\nb,5,up\n"
    found = load(text, per_step=True)
    assert found.per_step
    assert found.block_targets(np.array([0, 1])).tolist() == [[1, 0, -1], [1, -1, 1]]
    found = load(text.replace("up", "0.5").replace("down", "2"), per_step=True)
    assert found.classes is None
    assert found.block_targets(np.array([1]))[0] == pytest.approx([0.5, np.nan, 0.5], nan_ok=True)


def test_what_is_predicted(load):
    text = "sample,x,target\na,1,{}\nb,2,{}\n"
    assert load(text.format("3", "2.0")).classes == ["2", "3"]
    assert load(text.format("10", "9")).classes == ["9", "10"]
    assert load(text.format("3", "2.5")).targets.tolist() == [3, 2.5]
    assert load(text.format("3", "2"), predict="numbers").targets.tolist() == [3, 2]
    assert load(text.format("3", "2.5"), predict="classes").classes == ["2.5", "3"]


def test_labels_in_a_second_table(load, tmp_path):
    (tmp_path / "labels.csv").write_text("sample,kind,group,split\n2,x,g1,test\n1,y,g2,train\n9,z,g3,train\n")
    found = load(
        "sample,time,v\n1,0,5\n1,1,6\n2,0,7\n2,1,8\n", labels_path=str(tmp_path / "labels.csv"), target_column="kind"
    )
    assert (found.ids, labels(found), found.channels) == (["1", "2"], ["y", "x"], ["v"])
    assert (found.groups, found.split) == (["g2", "g1"], ["train", "test"])


def test_parquet(tmp_path):
    table = pa.table(
        {
            "run": pa.array([7, 7, 8]).cast(pa.int16()),
            "when": pa.array([0, 1500, 0], pa.timestamp("ms")),
            "v": pa.array([1.5, None, 3], pa.float32()),
            "n": pa.array([1, 2, 3], pa.uint8()),
            "what": pa.array(["p", "p", "q"]).dictionary_encode(),
            "__index_level_0__": pa.array([9, 8, 7]),
        }
    )
    parquet.write_table(table, tmp_path / "my.parquet")
    settings = {"sample_column": "run", "time_column": "when", "target_column": "what"}
    found = read(Config(path=str(tmp_path / "my.parquet"), **settings), tmp_path)
    assert (found.ids, found.channels, labels(found)) == (["7", "8"], ["v", "n"], ["p", "q"])
    assert series(found, 0) == pytest.approx(np.array([[1.5, 1], [np.nan, 2]]), nan_ok=True)
    assert found.block_times(np.array([0])).tolist() == [[0, 1.5]]
    with pytest.raises(DataError, match=r"my\.parquet, column what: of type .*; must be numbers"):
        read(
            Config(path=str(tmp_path / "my.parquet"), channels=["what"], **settings | {"target_column": "n"}), tmp_path
        )


WIDE = {
    "a header": ("label,t0,t1,t2\nb,1,2,2.5\na,4,,6\na,7,8,\n", "my.csv", {"layout": "wide"}),
    "numbers as a header": ("label,0,1,2\nb,1,2,2.5\na,4,,6\na,7,8,\n", "my.csv", {"layout": "wide"}),
    "no header": ("b\t1\t2\t2.5\na\t4\tNaN\t6\na\t7\t8\tNaN\n", "X_TRAIN.tsv", {}),
    "old files of the UCR archive": ("  b  1.0  2.0e+00  2.5\n  a  4  NaN  6\n  a  7  8  NaN\n", "X_TRAIN.txt", {}),
}


@pytest.mark.parametrize("name", WIDE)
def test_wide(load, name):
    text, file, settings = WIDE[name]
    found = load(text, file, **settings)
    assert (labels(found), found.channels, found.lengths.tolist()) == (["b", "a", "a"], ["0"], [3, 3, 2])
    assert series(found, 0) == [[1], [2], [2.5]]
    # In the middle it is missing, at the end it is none.
    assert series(found, 1) == pytest.approx(np.array([[4], [np.nan], [6]]), nan_ok=True)
    assert series(found, 2) == [[7], [8]]


def test_wide_with_further_columns(load):
    found = load("sample,group,target,0,1\ns1,g1,0.5,1,2\ns2,g2,1.5,3,4\n", layout="wide")
    assert (found.ids, found.groups, found.targets.tolist()) == (["s1", "s2"], ["g1", "g2"], [0.5, 1.5])
    assert series(found, 1) == [[3], [4]]


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("walk/b.csv", "walk/a.csv", "run/c.csv")):
        (tmp_path / "rec" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "rec" / name).write_text(f"time,x\n0,{number}\n10,{number}.5\n")
    (tmp_path / "rec" / "notes.txt").write_text("nothing\n")
    (tmp_path / "rec" / "walk" / "README.txt").write_text("nothing\n")
    return tmp_path / "rec"


def test_folders_of_classes(folder, tmp_path):
    found = read(Config(path=str(folder), time_unit="ms"), tmp_path)
    assert found.ids == ["run/c.csv", "walk/a.csv", "walk/b.csv"]
    assert labels(found) == ["run", "walk", "walk"]
    assert series(found, 2) == [[0], [0.5]]
    assert found.block_times(np.array([0])).tolist() == [[0, 0.01]]
    (folder / "walk" / "a.csv").write_text("time,z\n0,1\n")
    with pytest.raises(DataError, match=r"walk/a\.csv: its columns are z, and those of c\.csv are x"):
        read(Config(path=str(folder)), tmp_path)
    (folder / "walk" / "a.csv").write_text("time,x\n0,1\n1,2\n1,3\n")
    with pytest.raises(DataError, match=r"walk/a\.csv, line 4, column time: the same time twice"):
        read(Config(path=str(folder)), tmp_path)


def test_a_folder_of_recordings_with_a_table_of_labels(tmp_path):
    (tmp_path / "rec").mkdir()
    for name in ("r1", "r2"):
        (tmp_path / "rec" / f"{name}.csv").write_text("x\n1\n2\n")
    (tmp_path / "rec" / "labels.csv").write_text("sample,target\nr2,5.5\nr1,4.5\n")
    found = read(Config(path=str(tmp_path / "rec"), labels_path=str(tmp_path / "rec" / "labels.csv")), tmp_path)
    assert found.targets.tolist() == [4.5, 5.5]
    with pytest.raises(
        DataError, match=r"tables in no folders of classes; name a table of labels by task\.labels_path"
    ):
        read(Config(path=str(tmp_path / "rec")), tmp_path)


WRONG = [
    (LONG.replace("a,1,4,-4", "a,1,4"), {}, "line 5: 5 fields, where the header has 6"),
    (LONG.replace("a,1,4,", "a,1,#REF!,"), {}, "line 5, column x: '#REF!' is not a number"),
    (LONG.replace("a,1,4,-4", "a,1,4;-4"), {}, "line 5: 5 fields"),
    (LONG.replace(",", ";").replace("4;-4", "4,5;-4"), {}, "column x: '4,5' is not a number; use task.decimal=comma"),
    (LONG.replace("a,1,4", "a,0,4"), {}, "line 5, column time: the same time twice in one sample: 0 after 0"),
    (LONG.replace("a,2,5", "a,-1,5"), {}, "line 6, column time: times go back in one sample: -1 after 1"),
    (LONG.replace("a,2,5", "a,,5"), {}, "line 6, column time: a time is missing"),
    (LONG.replace("a,2,5", "a,soon,5"), {}, "line 6, column time: 'soon' is not a number or ISO time"),
    (LONG.replace("a,2,5", "a,2,inf"), {}, "line 6, column x: inf is not a number from"),
    (LONG.replace("a,2,5", "a,2,1e30"), {}, "line 6, column x: 1e+30 is not a number from -1e+15 to 1e+15"),
    (LONG.replace("5,-5,down", "5,-5,up"), {}, "line 6, column target: 'up' after 'down' in one sample; task.per_step"),
    (LONG.replace("down,p2\na,2", "down,p3\na,2"), {}, "line 5, column group: 'p3' after 'p2' in one sample"),
    (LONG.replace("up,p1", ",p1"), {}, "line 2, column target: a sample without a value here"),
    (LONG.replace("a,2,5", ",2,5"), {}, "line 6, column sample: a row that belongs to no sample"),
    (LONG.replace("1,-1,", ",,").replace("2,-2,", ",,"), {}, "line 2: a sample without any value"),
    (LONG.replace("sample", "id"), {}, "no column sample, which says whose step a row is: name it by"),
    (LONG.replace("target", "kind"), {}, "no column target; name it by task.target_column; there are sample, time, x"),
    (LONG, {"channels": ["x", "z"]}, "no column z; there are sample, time, x, y, target, group"),
    (LONG, {"group_column": "who"}, "no column who; there are"),
    (LONG.replace("sample,time,x,y", "sample,time,x,x"), {}, "two columns x"),
    (LONG.replace("x,y", "who,y").replace("1,-1", "Ann,-1"), {},
     "line 2, column who: 'Ann' is not a number; where the column is no channel, name those that are by task.channels"),
    (LONG, {"predict": "numbers"}, "line 2, column target: 'up' is not a number to predict"),
    (LINES[0], {}, "has no row of data"),
    ("", {}, "is empty"),
    ("\n\n", {}, "has no line of data"),
    ("<html>\n", {}, "is an HTML page"),
    (b"PK\x03\x04 and more\n", {}, "is a zip archive; unpack it"),
    (LONG.encode("utf-16"), {}, "is in UTF-16"),
    (LONG.replace("b,0", "\u00fc,0").encode("latin-1"), {}, "line 2: the byte 0xfc is not UTF-8"),
    (b"\x1f\x8b and more", {}, "cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "settings", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_what_is_refused(load, content, settings, message):
    with pytest.raises(DataError) as caught:
        load(content, **settings)
    text = str(caught.value)
    assert message in text
    assert "my.csv" in text
    assert "\n" not in text


def test_lines_are_counted_as_an_editor_does(load):
    wrong = LONG.replace("a,2,5", "a,2,oops")
    for text, line in (("# above\n\n" + wrong, 8), (wrong.replace("b,1", "\n# inside\nb,1"), 8),
                       (wrong.replace(",up,", ',"u\np",'), 8), (wrong.replace("\n", "\r\n"), 6)):  # fmt: skip
        with pytest.raises(DataError, match=f"line {line}, column x: 'oops'"):
            load(text)


def test_another_encoding(load):
    found = load(LONG.replace("b,", "\u00fc,").encode("latin-1"), encoding="latin-1")
    assert found.ids == ["\u00fc", "a"]
    with pytest.raises(DataError, match=r"task\.encoding=klingon: unknown encoding"):
        load(LONG, encoding="klingon")


def test_wrong_labels(load, tmp_path):
    path = tmp_path / "labels.csv"
    for text, message in (
        ("sample,kind\nb,1\n", r"labels\.csv, column sample: no row for the sample a"),
        ("sample,kind\nb,1\na,2\nb,1\n", r"labels\.csv, line 4, column sample: b a second time"),
        ("sample,kind\nb,1\na,\n", r"labels\.csv, line 3, column kind: an empty cell"),
        ("id,kind\nb,1\n", r"labels\.csv: no column sample"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            load(LONG, labels_path=str(path), target_column="kind", channels=["x"])
