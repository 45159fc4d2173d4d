"""Copies the records of runs that finished or diverged into ``outputs/records``: ``python -m results.collect``.

``--publish`` copies them into ``results/runs``, which is committed. It refuses runs of uncommitted
code, and runs that are no result (trained on one batch, tested on a part of the test set). ``--force`` takes them, and
runs that are not finished; the record then says so, and so do the tables.
"""

import argparse
import contextlib
import json
from pathlib import Path

from longwave import home
from longwave.results import records
from longwave.training.errors import UserError
from longwave.training.files import write_atomic
from longwave.training.record import Record


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m results.collect", description=__doc__)
    parser.add_argument("runs", nargs="*", help="names of runs, or prefixes of names; default all")
    parser.add_argument("--output", default="outputs", help="folder of the runs, in the checkout (%(default)s)")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--into", type=Path, help="folder of the records (records in --output)")
    target.add_argument("--publish", action="store_true", help="copy into results/runs")
    parser.add_argument("--force", action="store_true", help="also copy runs that would be refused")
    chosen = parser.parse_args(arguments)
    output = home() / Path(chosen.output).expanduser()
    into = records.FOLDER if chosen.publish else chosen.into or output / "records"
    publish = into.resolve() == records.FOLDER.resolve()
    try:
        for line in collect(output / "runs", into, tuple(chosen.runs), chosen.force, publish):
            print(line)
    except UserError as error:
        parser.exit(1, f"error: {error}\n")


def collect(
    source: Path, into: Path, names: tuple[str, ...] = (), force: bool = False, publish: bool = False
) -> list[str]:
    """Copies the records of the runs in ``source`` whose names begin with one of ``names``; of all where there is none.

    ``publish`` refuses what is no result. Returns what was done, a line a run; those that had not changed are counted
    in the last line. Raises UserError where there is no such folder or run, or a file cannot be written.
    """
    if not source.is_dir():
        raise UserError(f"{source}: there are no runs; name another folder with --output")
    folders = [path for path in sorted(source.iterdir()) if path.is_dir() and path.name.startswith(names or "")]
    if names and not folders:
        raise UserError(f"{', '.join(names)}: no run in {source} begins with that")
    try:
        into.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{into}: cannot be made ({error.strerror})") from error
    counts = dict.fromkeys(("collected", "updated", "unchanged", "refused", "damaged"), 0)
    lines = []
    for folder in folders:
        outcome, reason = _collect_one(folder, into / f"{folder.name}.json", force, publish)
        counts[outcome] += 1
        if outcome != "unchanged":
            lines.append(f"{outcome} {folder.name}" + (f": {reason}" if reason else ""))
    return [*lines, ", ".join(f"{count} {outcome}" for outcome, count in counts.items())]


def _collect_one(folder: Path, target: Path, force: bool, publish: bool) -> tuple[str, str]:
    if not (folder / "record.json").exists():
        return "refused", "it has not begun to train"
    try:
        record = records.read_run(folder)
        reasons = (records.refusals if publish else records.unfinished)(record)
        if reasons:
            record.forced = reasons
    except ValueError as error:
        return "damaged", str(error)
    if reasons and not force:
        return "refused", ", ".join(reasons)
    there = None
    # A damaged one is none.
    with contextlib.suppress(ValueError):
        there = records.read(target)
    if not target.exists():
        outcome = "collected"
    elif there == record:
        return "unchanged", ""
    elif reasons and there and not there.forced:
        return "refused", f"{', '.join(reasons)}; the record that is there needed no force"
    else:
        outcome = "updated"
    write_atomic(target, encode(record))
    return outcome, f"forced ({', '.join(reasons)})" if reasons else ""


def encode(record: Record) -> bytes:
    """A line a key and a curve: short, and readable in a difference."""
    kept = record.dump()
    body = {key: json.dumps(value, allow_nan=False) for key, value in kept.items() if key != "curves"}
    drawn = [f"  {json.dumps(key)}: {json.dumps(curve, allow_nan=False)}" for key, curve in kept["curves"].items()]
    body["curves"] = "{\n" + ",\n".join(drawn) + "\n}" if drawn else "{}"
    return ("{\n" + ",\n".join(f"{json.dumps(key)}: {text}" for key, text in body.items()) + "\n}\n").encode()


if __name__ == "__main__":
    main()
