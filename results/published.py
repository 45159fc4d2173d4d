"""Looks up published values in ``results/published/<paper>.yaml``."""

from pathlib import Path

from omegaconf import OmegaConf

FOLDER = Path(__file__).parent / "published"


def lookup(key: str | None) -> dict | None:
    """The published record ``<paper>/<cell>``, with its key in it; None for None.

    Raises:
        ValueError: for a key that does not exist; names those that do.
    """
    if key is None:
        return None
    paper, _, cell = key.partition("/")
    records = load(paper)
    if cell not in records:
        known = [f"{p.stem}/{c}" for p in sorted(FOLDER.glob("*.yaml")) for c in load(p.stem)]
        raise ValueError(f"published={key}: no such published value; there are {', '.join(known)}")
    return {"key": key, **records[cell]}


def load(paper: str) -> dict[str, dict]:
    """All records of one paper; none where there is no such file."""
    path = FOLDER / f"{paper}.yaml"
    return OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
