"""Arrays are read in all their shapes, from a .npz or a folder, in memory or on disk; a pickle is never loaded."""

import pickle

import numpy as np
import pytest

from longwave.tasks.checks import DataError
from longwave.tasks.files import Config, read

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 5, 2))
LENGTHS = np.array([5, 3, 4, 1])
T = np.cumsum(RNG.uniform(0.1, 1, (4, 5)), 1)
Y = np.array(["b", "a", "b", "a"])


@pytest.fixture
def load(tmp_path):
    """``load(x=..., y=...)``: the samples of these arrays, in a .npz; ``folder`` puts them into one."""

    def call(folder: bool = False, config: dict | None = None, **arrays):
        path = tmp_path / ("my" if folder else "my.npz")
        if folder:
            path.mkdir()
            for name, array in arrays.items():
                np.save(path / f"{name}.npy", array)
        else:
            np.savez(path, **arrays)
        return read(Config(path=str(path), **(config or {})), tmp_path)

    return call


def cut(array: np.ndarray) -> list[np.ndarray]:
    return [one[:length] for one, length in zip(array, LENGTHS, strict=True)]


@pytest.mark.parametrize("kind", ["padded", "joined", "folder", "on disk", "joined on disk"])
def test_samples_that_differ_in_length(load, kind):
    arrays = {"x": X, "t": T, "y": Y, "lengths": LENGTHS, "mask": X > -1, "group": np.arange(4) // 2}
    if "joined" in kind:
        arrays |= {name: np.concatenate(cut(arrays[name])) for name in ("x", "t", "mask")}
    config = {"memory": 1e-9} if "disk" in kind else {}
    found = load(folder="folder" in kind or "disk" in kind, config=config, **arrays)
    assert found.lengths.tolist() == LENGTHS.tolist()
    assert found.groups == ["0", "0", "1", "1"]
    assert [found.classes[code] for code in found.targets] == Y.tolist()
    everything = found.block(np.arange(4))
    assert everything.dtype == np.float32
    for index in range(4):
        (values,), (times,) = found.block(np.array([index])), found.block_times(np.array([index]))
        expected = np.where(cut(X > -1)[index], cut(X)[index], np.nan).astype(np.float32)
        assert np.array_equal(values, expected, equal_nan=True)
        assert np.array_equal(everything[index, : LENGTHS[index]], expected, equal_nan=True)
        assert np.isnan(everything[index, LENGTHS[index] :]).all()
        assert times == pytest.approx(cut(T)[index] - T[index, 0])
    # In any order.
    assert np.array_equal(found.block(np.array([2, 0])), everything[[2, 0]], equal_nan=True)


@pytest.mark.parametrize(
    ("y", "classes", "targets"),
    [
        (np.array([3, 1, 3, 1]), ["1", "3"], [1, 0, 1, 0]),
        (np.array([[3.0], [1], [3], [1]]), ["1", "3"], [1, 0, 1, 0]),
        (np.array([True, False, True, True]), ["0", "1"], [1, 0, 1, 1]),
        (np.array([b"u", b"v", b"u", b"v"]), ["u", "v"], [0, 1, 0, 1]),
        (np.array([-1, 1, 1, -1]), ["-1", "1"], [0, 1, 1, 0]),
        (np.array([0.5, 1, 2, 3], np.float32), None, [0.5, 1, 2, 3]),
    ],
)
def test_targets(load, y, classes, targets):
    found = load(x=X, y=y)
    assert found.classes == classes
    assert found.targets.tolist() == targets
    assert not found.per_step


@pytest.mark.parametrize("joined", [False, True])
def test_targets_a_step(load, joined):
    y = np.where(X[:, :, 0] > 0, 7, 4)
    y[0, 1] = -1
    arrays = {"x": X, "y": y}
    if joined:
        arrays = {name: np.concatenate(cut(array)) for name, array in arrays.items()}
    found = load(lengths=LENGTHS, **arrays)
    expected = np.full((4, 5), -1)
    for index, one in enumerate(cut(y)):
        expected[index, : len(one)] = np.where(one < 0, -1, one == 7)
    assert found.classes == ["4", "7"]
    assert np.array_equal(found.block_targets(np.arange(4)), expected)


def test_one_channel_and_names(load):
    found = load(x=X[:, :, 0], y=Y, channels=np.array(["ecg"]), id=np.array([7, 8, 9, 10]), t=T[0])
    assert (found.channels, found.ids) == (["ecg"], ["7", "8", "9", "10"])
    assert found.block(np.arange(4)).shape == (4, 5, 1)
    assert found.block_times(np.array([1]))[0] == pytest.approx(T[0] - T[0, 0])


@pytest.mark.parametrize("folder", [False, True])
def test_missing_values_at_the_end_are_padding(load, folder):
    x = np.where((np.arange(5) < LENGTHS[:, None])[..., None], X, np.nan)
    x[0, 2, 0] = x[0, 4, 1] = np.nan
    found = load(folder=folder, config={"memory": 1e-9} if folder else {}, x=x, y=Y)
    assert found.lengths.tolist() == LENGTHS.tolist()
    assert np.isnan(found.block(np.array([0]))).sum() == 2


def test_times_as_dates(load):
    t = np.datetime64("2025-01-01T00:00:00") + np.arange(5) * np.timedelta64(1500, "ms")
    found = load(x=X, y=Y, t=np.tile(t, (4, 1)))
    assert found.block_times(np.array([0])).tolist() == [[0, 1.5, 3, 4.5, 6]]


WRONG = [
    ({"y": Y}, "no array x, (samples, steps, channels); it holds y"),
    ({"x": X}, "no array y, the classes or values to predict"),
    ({"x": X, "y": Y.astype(object)}, "y: an object array (a pickle), never loaded; save text or numbers"),
    ({"x": X.astype(object), "y": Y}, "x: an object array (a pickle), never loaded"),
    ({"x": X[0, 0], "y": Y}, "x: of shape (2,); must be (samples, steps, channels)"),
    ({"x": X.astype(complex), "y": Y}, "x: of type complex128; must be numbers"),
    ({"x": X.astype(str), "y": Y}, "x: of type <U32; must be numbers"),
    ({"x": X, "y": Y[:3]}, "y: of shape (3,); must be (4,), or with a target a step (4, 5)"),
    ({"x": X, "y": np.eye(4)}, "y: of shape (4, 4); must be (4,)"),
    ({"x": X, "y": np.array([1.5, np.nan, 1, 1])}, "y[1]: nan, where there must be a target"),
    ({"x": X, "y": Y, "lengths": LENGTHS + 1}, "lengths[0]: 6 is not from 1 to 5"),
    ({"x": X, "y": Y, "lengths": LENGTHS * 0}, "lengths[0]: 0 is not from 1 to 5"),
    ({"x": X, "y": Y, "lengths": LENGTHS * 1.0}, "lengths: float64 of shape (4,); must be 4 whole numbers"),
    ({"x": X[:, 0], "y": Y, "lengths": LENGTHS[:3]}, "lengths: 12 steps in all, and x has 4"),
    ({"x": X, "y": Y, "mask": X[0] > 0}, "mask: bool of shape (5, 2); must be bool of shape (4, 5, 2)"),
    ({"x": X, "y": Y, "t": T[:, ::-1]}, "t[0, 1]: times go back in one sample"),
    ({"x": X, "y": Y, "t": np.where(T[2, 3] == T, np.nan, T)}, "t[2, 3]: a time is missing"),
    ({"x": X, "y": Y, "t": T[:3]}, "t: float64 of shape (3, 5); must be numbers of shape (4, 5)"),
    ({"x": np.where(X[2, 3, 1] == X, np.inf, X), "y": Y}, "x[2, 3, 1]: inf is not a number from -1e+15 to 1e+15"),
    ({"x": np.where(np.arange(4)[:, None, None] == 3, np.nan, X), "y": Y}, "x[3]: a sample without any value"),
    ({"x": X, "y": Y, "group": np.arange(3)}, "group: int64 of shape (3,); must be one text or number a sample"),
    ({"x": X, "y": Y, "channels": np.array(["a"])}, "channels: 1 names, and x has 2 channels"),
]


@pytest.mark.parametrize(("arrays", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_refused(load, arrays, message):
    with pytest.raises(DataError) as caught:
        load(**arrays)
    assert message in str(caught.value)
    assert "my.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize("kind", ["a pickle", "a pickle in an array", "in a folder"])
def test_no_pickle_is_ever_loaded(tmp_path, kind):
    path = tmp_path / "my.npz"
    trapped = np.empty(4, object)
    trapped[:] = [Trap() for _ in range(4)]
    if kind == "a pickle":
        path.write_bytes(pickle.dumps(Trap()))
    elif kind == "a pickle in an array":
        np.savez(path, x=X, y=trapped)
    else:
        path = tmp_path / "my"
        path.mkdir()
        np.save(path / "x.npy", X)
        np.save(path / "y.npy", trapped)
    with pytest.raises(DataError, match="pickle"):
        read(Config(path=str(path)), tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-200], lambda b: b[:300], lambda b: b"", lambda b: b[:200] + b"x" * 99]
)
def test_a_damaged_archive(tmp_path, damage):
    path = tmp_path / "my.npz"
    np.savez_compressed(path, x=X, y=Y)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"my\.npz(, \w)?: ") as caught:
        read(Config(path=str(path)), tmp_path)
    assert "\n" not in str(caught.value)


def test_one_array_is_no_data_set(tmp_path):
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(DataError, match=r"x\.npy: one array; put x\.npy and y\.npy into a folder"):
        read(Config(path=str(tmp_path / "x.npy")), tmp_path)
