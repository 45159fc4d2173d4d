import json

import pytest


@pytest.fixture
def save(tmp_path):
    """Writes records where the tools find them: ``save(record, ...)`` gives the folder."""

    def call(*made: dict):
        folder = tmp_path / "runs"
        folder.mkdir(exist_ok=True)
        for index, record in enumerate(made):
            name = f"{record['name']}-{index:05d}"
            (folder / f"{name}.json").write_text(json.dumps(record | {"name": name}))
        return folder

    return call
