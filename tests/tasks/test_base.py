from pathlib import Path

from tasks.base import data_root


def test_data_root():
    checkout, home = Path("/checkout"), Path.home()
    assert data_root(None, {}, checkout) == checkout / "data"
    assert data_root(None, {"LONGWAVE_DATA": "~/sets"}, checkout) == home / "sets"
    assert data_root(None, {"LONGWAVE_DATA": ""}, checkout) == checkout / "data"
    assert data_root("here", {"LONGWAVE_DATA": "/there"}, checkout) == checkout / "here"
