"""Files as people have them, which lie beside the checkout on some machines: ``../shared/own_data``."""

import json

import numpy as np
import pytest

from longwave import PACKAGE
from longwave.tasks.checks import DataError
from longwave.tasks.files import Config, read

FOLDERS = [folder / "shared" / "own_data" for folder in PACKAGE.parents]
FOLDER = next((folder for folder in FOLDERS if (folder / "expected.json").exists()), None)
CASES = json.loads((FOLDER / "expected.json").read_text()) if FOLDER else []

# Their names of keys, and ours.
KEYS = {
    "sample_id": "sample_column",
    "time": "time_column",
    "target": "target_column",
    "group": "group_column",
    **{key: key for key in ("time_unit", "time_format", "channels", "comment")},
}
KINDS = {"classes": "classes", "real": "numbers", "classes_per_step": "classes"}


def configured(keys: dict, path: str) -> Config:
    found = {ours: keys[theirs] for theirs, ours in KEYS.items() if theirs in keys}
    found["predict"] = KINDS[keys["target_kind"]]
    found["decimal"] = "comma" if keys.get("decimal") == "," else "point"
    found["missing_marks"] = [str(mark) for mark in keys.get("missing", [])]
    if "labels_file" in keys:
        found["labels_path"] = str(FOLDER / keys["labels_file"])
    return Config(path=str(FOLDER / path), **found)


def test_they_are_there():
    if FOLDER is None:
        pytest.skip("no shared/own_data beside the checkout or above it")
    assert len(CASES) >= 14


@pytest.mark.parametrize("case", [case for case in CASES if case["expect"] == "load"], ids=lambda case: case["path"])
def test_what_is_read(case, tmp_path):
    found = read(configured(case["keys"], case["path"]), tmp_path)
    everything = np.arange(len(found))
    values = found.block(everything)
    inside = np.arange(values.shape[1]) < found.lengths[:, None]
    assert len(found) == case["n"]
    assert found.lengths.tolist() == case["lengths"]
    assert found.channels == case["channels"]
    assert (found.ids, found.groups) == (case["sample_ids"], case["groups"])
    assert found.split == case.get("split")
    assert (np.isnan(values) & inside[:, :, None]).sum((0, 1)).tolist() == case["missing_per_channel"]
    assert np.nansum(values.astype(float), (0, 1)) == pytest.approx(case["sum_per_channel"], abs=1e-4)
    for step, expected in (0, "first"), (found.lengths[0] - 1, "last"):
        wanted = [np.nan if value is None else value for value in case["first_sample"][expected]]
        assert values[0, step] == pytest.approx(wanted, nan_ok=True)
    target = case["target"]
    if target["kind"] == "real":
        assert found.targets.tolist() == target["values"]
    elif target["kind"] == "classes":
        assert found.classes == target["classes"]
        assert [found.classes[code] for code in found.targets] == target["values"]
    else:
        codes = found.block_targets(everything)
        assert [found.classes[code] for code in codes[0]] == [str(label) for label in target["first_sample"]]
        assert np.bincount(codes[codes >= 0]).tolist() == target["counts"]
    if "times" in case:
        times, expected = found.block_times(everything), case["times"]["seconds_from_first"]
        assert times[0, : found.lengths[0]] == pytest.approx(expected["first_sample"], abs=1e-6)
        assert times[everything, found.lengths - 1] == pytest.approx(expected["last_of_each"], abs=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if case["expect"] == "refuse"], ids=lambda case: case["path"])
def test_what_is_refused(case, tmp_path):
    with pytest.raises(DataError) as caught:
        read(configured(case["keys"], case["path"]), tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for name in case["error"]["names"]:
        assert any(one in message for one in ([name] if isinstance(name, str) else name)), name
