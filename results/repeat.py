"""Runs the command of a record again and compares: ``python -m results.repeat <record> [overrides]``.

The run goes to ``outputs/repeats``. Overrides that cannot change its numbers may be added: ``data.root=...``,
``device=cpu``, ``tracking=none``.
"""

import argparse
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from longwave import PACKAGE
from longwave.results import records
from longwave.training.config import compose_run, numbers
from longwave.training.errors import UserError
from longwave.training.record import Record
from longwave.training.run import Run


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m results.repeat", description=__doc__)
    parser.add_argument("record", help="a file, or the name of one in results/runs")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value")
    parser.add_argument("--anyway", action="store_true", help="even if the command now means another run")
    chosen = parser.parse_args(arguments)
    if wrong := [text for text in chosen.overrides if "=" not in text]:
        parser.error(f"{wrong[0]}: write key=value")
    try:
        for line in repeat(find(chosen.record), chosen.overrides, chosen.anyway):
            print(line)
    except (UserError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")


def find(name: str) -> Record:
    """The record in a file, or of that name in ``results/runs``."""
    path = Path(name)
    if not path.exists():
        path = records.FOLDER / f"{path.name.removesuffix('.json')}.json"
    try:
        return records.read(path)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def repeat(record: Record, overrides: list[str], anyway: bool = False) -> list[str]:
    """Trains, and returns lines that compare the result with the record.

    UserError where the command now means another run than it did, or the run fails.
    """
    own = [*shlex.split(record.command)[2:], "output=outputs/repeats"]
    command = [*own, *overrides]
    config, _ = compose_run(command)
    moved = differences(record.config, config.as_dict())
    then = record.git.commit[:10] if record.git else "an unknown commit"
    if moved and not anyway:
        if not differences(record.config, compose_run(own)[0].as_dict()):
            raise UserError(f"{' '.join(overrides)}: makes another run: {', '.join(moved)}. Or add --anyway")
        raise UserError(
            f"{record.command} now means another run than at {then}: {', '.join(moved)}. "
            "Check that commit out, or add --anyway"
        )
    print(shlex.join(["python", "train.py", *command]), flush=True)
    run = Run(config, record.command)
    before = run.earlier()
    code = _run([sys.executable, PACKAGE / "train.py", *command])
    now = run.earlier()
    # A run that diverges fails; one that fails before it trains leaves the record of an earlier repetition.
    if code and not (record.diverged and now != before and now.diverged):
        raise UserError(f"the run ended with exit code {code}")
    return list(compare(record, now))


def _run(command: list) -> int:
    """The exit code of a run, which is waited for when this process is asked to end: it saves first."""
    with subprocess.Popen(command) as process:
        # Ctrl-C reaches the run by itself.
        handlers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: lambda *_: process.terminate()}
        handlers = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            return process.wait()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


_GONE = "not there"


def differences(before: dict, after: dict) -> list[str]:
    """The settings of two configurations that differ, of those that can change the numbers."""
    before, after = _flat(numbers(before)), _flat(numbers(after))
    pairs = {key: (before.get(key, _GONE), after.get(key, _GONE)) for key in sorted(before.keys() | after.keys())}
    return [f"{key} was {was} and is {now}" for key, (was, now) in pairs.items() if was != now]


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def compare(then: Record, now: Record):
    """Differences between two machines or commits, and the scores of both."""
    about = {
        "commit": (then.git and then.git.commit[:10], now.git and now.git.commit[:10]),
        "torch": (then.packages.get("torch"), now.packages.get("torch")),
        "device": (then.device, now.device),
        "time loop": (then.backend, now.backend),
    }
    for key, (before, after) in about.items():
        if before != after:
            yield f"{key}: {before} then, {after} now"
    if then.diverged:
        end = f"at step {now.failed_step:,}" if now.diverged else "not at all"
        yield f"diverged: at step {then.failed_step:,} then, {end} now"
    for split, scores in then.metrics.items():
        for key, before in scores.items():
            after = now.metrics.get(split, {}).get(key)
            known = _GONE if after is None else f"{after:.6g}"
            yield f"{split} {key}: {before:.6g} then, {known} now" + (", the same" if before == after else "")


if __name__ == "__main__":
    main()
