import io

import numpy as np
import pytest

from longwave.tasks.checks import DataError
from longwave.tasks.formats import numbers, read
from tests.archives import write_arff, write_ts

HEADER = "@problemName X\n@timeStamps false\n@equalLength {equal}\n@classLabel true a b\n@data\n"


def ts(body: str, equal: str = "true", header: str = HEADER):
    return read(io.BytesIO((header.format(equal=equal) + body).encode()), "X_TRAIN.ts")


def arff(body: str, attributes: str):
    return read(io.BytesIO(f"@relation 'x'\n{attributes}\n@data\n{body}".encode()), "X_TRAIN.arff")


RELATIONAL = "@attribute r relational\n@attribute t0 numeric\n@attribute t1 real\n@end r\n@attribute c {a,b}"
COLUMNS = "@attribute t0 numeric\n@attribute 't 1' numeric\n@attribute target numeric"


def same(part, series, labels):
    assert part.labels == labels
    assert len(part.series) == len(series)
    for found, expected in zip(part.series, series, strict=True):
        assert found.dtype == np.float32
        assert np.array_equal(found, expected.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("write", [write_ts, write_arff])
@pytest.mark.parametrize("lengths", [[5, 5, 5], [1, 1], [1], [3, 1, 7]])
@pytest.mark.parametrize("channels", [1, 2, 7])
@pytest.mark.parametrize("classes", [None, ["b", "a"]])
def test_what_was_written_is_read(tmp_path, write, lengths, channels, classes):
    rng = np.random.default_rng(0)
    series = [rng.normal(size=(length, channels)) * 10.0 ** rng.integers(-20, 14) for length in lengths]
    labels = [str(classes[i % 2] if classes else i / 3) for i in range(len(lengths))]
    suffix = write.__name__.removeprefix("write_")
    path = write(tmp_path / f"X_TRAIN.{suffix}", series, labels, classes)
    with open(path, "rb") as file:
        part = read(file, str(path))
    same(part, series, labels)
    assert part.classes == classes
    text = path.read_text().split("\n")
    assert all(labels[i] in text[line - 1] for i, line in enumerate(part.lines))


def test_numbers():
    expected = [1, np.nan, -0.002, np.nan, 7]
    assert np.array_equal(numbers(b"1, ?,-2e-3 ,NaN,+7."), expected, equal_nan=True)
    assert numbers(b"0.1")[0] == 0.1


def test_numbers_are_the_nearest():
    rng = np.random.default_rng(0)
    values = rng.normal(size=2000) * 10.0 ** rng.integers(-30, 30, 2000)
    texts = [repr(v) for v in values[:500].tolist()]
    texts += [f"{v:.17e}" for v in values[500:1000]] + [f"{v:.5f}" for v in values[1000:1500]]
    # Not as JSON has them.
    texts += [text.replace("0.", ".") for text in map(repr, rng.normal(size=50).tolist())]
    texts += ["1.", "+2.5", "007", "-0", "12345678901234567890", "1E-3", "-.5e+2"]
    expected = [float(text) for text in texts]
    assert numbers(",".join(texts).encode()).tolist() == expected
    assert numbers(",".join(texts[:1500]).encode()).tolist() == expected[:1500]


def test_a_missing_value_inside_is_kept():
    part = ts("1,?,3:4,5,NaN:a\n")
    same(part, [np.array([[1, 4], [np.nan, 5], [3, np.nan]])], ["a"])
    # In ARFF the end of a shorter series is marked so too, but only where all channels are missing.
    same(arff(r"'1,?\n2,3',a", RELATIONAL), [np.array([[1, 2], [np.nan, 3]])], ["a"])
    same(arff(r"'1,?\n2,?',a", RELATIONAL), [np.array([[1, 2]])], ["a"])
    same(arff(r"'?,1\n?,2',a", RELATIONAL), [np.array([[np.nan, np.nan], [1, 2]])], ["a"])


def test_missing_values_at_the_end_are_padding():
    padded = [np.array([[1.0, 4], [2, 5]]), np.array([[1, 4], [2, 5], [np.nan, 6]])]
    body = "1,2,?,?:4,5,?,?:a\n1,2,?,?:4,5,6,?:a\n"
    for equal in ("true", "false"):
        same(ts(body, equal), padded, ["a", "a"])
    same(ts("(1,7),(2,?),(3,?):a\n", header=STAMPED), [np.array([[7]])], ["a"])
    # Nothing but missing values is no padding.
    same(ts("?,?:?,?:a\n"), [np.full((2, 2), np.nan)], ["a"])
    complete = HEADER.replace("@data", "@missing false\n@data")
    with pytest.raises(DataError, match="line 7: ends with 2 missing values, where the header says @missing false"):
        ts(body, header=complete)


def test_details_of_real_files():
    header = "%comment\r\n#comment\r\n\r\n@problemname X\r\n@TARGETLABEL True\r\n@data\r\n"
    part = ts("\r\n# a comment\r\n 1 , 2 : -3.5 \r\n1,2:0\r\n", header=header)
    same(part, [np.array([[1.0], [2.0]])] * 2, ["-3.5", "0"])
    assert part.lines == [9, 10]
    assert part.classes is None
    # The header lists 1 2 where the series say 1.0 2.0.
    numeric = HEADER.replace("a b", "1 2")
    assert ts("1,2:1.0\n", header=numeric).labels == ["1.0"]
    same(arff("1,2,0.5\n% comment\n3,?,-1", COLUMNS), [np.array([[1.0], [2.0]]), np.array([[3.0]])], ["0.5", "-1"])
    same(arff('"1,2\\n3,4","b"', RELATIONAL), [np.array([[1.0, 3.0], [2.0, 4.0]])], ["b"])


STAMPED = HEADER.replace("@timeStamps false", "@timeStamps True")


def test_time_stamps_that_are_even():
    body = "(2007-01-01 00:00:00,1.5),(2007-01-01 00:01:00,-2):(0,3),(0.5,4):a\n(1,2), (2,?):(3,4),(9,5):b\n"
    part = ts(body, header=STAMPED)
    same(part, [np.array([[1.5, 3], [-2, 4]]), np.array([[2, 4], [np.nan, 5]])], ["a", "b"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("(1,2),(2,3),(4,5):a", "line 6: its times are not evenly spaced"),
        ("(1,2),(1,3),(1,5):a", "line 6: its times are not evenly spaced"),
        ("(NaT,2),(NaT,3),(NaT,5):a", "line 6: its times are not evenly spaced"),
        ("(1e999,2),(1e999,3):a", "line 6: its times are not evenly spaced"),
        ("(1,2),2:a", "line 6: .* is not .time,value."),
        ("1,2:a", "line 6: .* is not .time,value."),
        ("(noon,2),(night,3):a", "line 6: "),
    ],
)
def test_time_stamps_that_are_not(body, message):
    with pytest.raises(OSError, match=message):
        ts(body, header=STAMPED)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1,2:a\n1,x:a\n", r"X_TRAIN\.ts, line 7: 'x' is not a number"),
        ("1,2:a\n\n1,,2:a\n", "line 8: '' is not a number"),
        ("1,2,:a\n", "line 6: '' is not a number"),
        ("1 2:a\n", "line 6: '1 2' is not a number"),
        ("1_0:a\n", "line 6: '1_0' is not a number"),
        ("1,true:a\n", "line 6: 'true' is not a number"),
        ("1,null:a\n", "line 6: 'null' is not a number"),
        ("1,[2]:a\n", r"line 6: '\[2\]' is not a number"),
        ("1,1e:a\n", "line 6: '1e' is not a number"),
        ("1,1e400:a\n", "line 6: a value that is infinite"),
        (":a\n", "line 6: '' is not a number"),
        ("1,inf:a\n", "line 6: a value that is infinite"),
        ("1,2:3,-1e30:a\n", r"line 6, step 2 of channel 2: -1e\+30 is not a number from -1e\+15 to 1e\+15"),
        ("1,-1e60:a\n", "line 6: a value that is infinite"),
        ("1,2\n", "line 6: no colon"),
        ("1,2:c\n", "line 6: label 'c' is none of the header's"),
        ("1,2:a\n1,2:\n", "line 7: label '' is none of the header's"),
        ("1,2:3,4,5:a\n", "line 6: channels of 2 and 3 steps in one series"),
        ("1,2:3,4:a\n1,2:a\n", "line 7: 1 channels, where the first series has 2"),
        ("1,2:a\n1:a\n", "line 7: 1 steps, where the first series has 2"),
        # A file that ends in the middle of a line.
        ("1,2:3,4:a\n1,2:3,", "line 7: 1 channels|line 7: label '3,'"),
        ("1,2:a\n" + "7" * 100 + "x,2:a\n", r"line 7: '7{40}\.\.\.' is not a number"),
        ("", r"X_TRAIN\.ts: no series"),
    ],
)
def test_a_malformed_line_is_named(body, message):
    with pytest.raises(OSError, match=message):
        ts(body)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("a", "line 3: target 'a' is not a finite number"),
        ("", "line 3: target '' is not a finite number"),
        ("?", r"line 3: target '\?' is not a finite number"),
        ("nan", "line 3, target: nan is not a number from"),
        ("inf", "line 3, target: inf is not a number from"),
        ("1e300", r"line 3, target: 1e\+300 is not a number from -1e\+15 to 1e\+15"),
    ],
)
def test_a_target_must_be_a_number(target, message):
    with pytest.raises(DataError, match=message):
        ts(f"1,2:{target}\n", header="@targetLabel true\n@data\n")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("@classLabel true a\n", "line 2: '1,2:a' comes before @data"),
        ("@classLabel true a\n1,2:a\n@data\n", "line 2: '1,2:a' comes before @data"),
        ("@classLabel false\n@data\n", "neither @classLabel true nor @targetLabel true"),
        ("@univariate true\n@data\n", "neither @classLabel true nor @targetLabel true"),
    ],
)
def test_a_malformed_header(header, message):
    with pytest.raises(OSError, match=message):
        read(io.BytesIO(header.encode() + b"1,2:a\n"), "X.ts")


@pytest.mark.parametrize("name", ["X.ts", "X.arff"])
def test_without_data(name):
    with pytest.raises(OSError, match="no line @data"):
        read(io.BytesIO(b"@relation x\n@attribute t numeric\n"), name)
    with pytest.raises(OSError, match=f"{name}: is empty"):
        read(io.BytesIO(b""), name)


@pytest.mark.parametrize(
    ("body", "attributes", "message"),
    [
        (r"'1,2\n3,4',c", RELATIONAL, "line 8: label 'c' is none of the header's"),
        (r"'1,2\n3',a", RELATIONAL, "line 8: channels of 1 and 2 steps"),
        (r"'1,2\n3,x',a", RELATIONAL, "line 8: 'x' is not a number"),
        (r"'1,2\n3,4", RELATIONAL, "line 8: not 'values',label"),
        ("1,2,a", RELATIONAL, "line 8: not 'values',label"),
        ("1,2,3,4", COLUMNS, "line 6: 3 values, where the header has 2"),
        ("1,2,x", COLUMNS, "line 6: target 'x' is not a finite number"),
        ("1,2,x", COLUMNS.replace("target numeric", "target string"), "the label is of the type string"),
        ("1", "@attribute target numeric", "1 attributes"),
        ("1", "@attribute", "line 2: @attribute without a name"),
        ("1", "hello", "line 2: 'hello' comes before @data"),
    ],
)
def test_a_malformed_arff(body, attributes, message):
    with pytest.raises(OSError, match=message):
        arff(body, attributes)
