"""Seconds until a command prints something, and its slowest imports: ``python -m longwave.benchmarks.startup``.

On an idle machine: each command is run a few times, the median counts.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

from longwave import PACKAGE

COMMANDS = (("train.py", "modl=x"), ("train.py", "--help"), ("sweep.py", "table=har2", "dry_run=true"))


def seconds(command: tuple[str, ...]) -> float:
    """Wall-clock time of a command, whatever it says."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, PACKAGE / command[0], *command[1:]], capture_output=True)
    return time.perf_counter() - begin


def imports(command: tuple[str, ...], count: int) -> list[tuple[float, str]]:
    """The most expensive imports of a command: milliseconds of each module without what it imports itself."""
    timed = [sys.executable, "-X", "importtime", PACKAGE / command[0], *command[1:]]
    lines = subprocess.run(timed, capture_output=True, text=True).stderr.splitlines()
    found = [re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", line) for line in lines]
    return sorted(((int(m[1]) / 1000, m[2]) for m in found if m), reverse=True)[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each command (%(default)s)")
    repeats = parser.parse_args().repeats
    table = Table("command", "seconds", box=None)
    for command in COMMANDS:
        table.add_row(" ".join(command), f"{statistics.median(seconds(command) for _ in range(repeats)):.2f}")
    slowest = Table("slowest imports", "ms", box=None)
    for milliseconds, name in imports(COMMANDS[0], 10):
        slowest.add_row(name, f"{milliseconds:.0f}")
    Console().print(table, slowest)


if __name__ == "__main__":
    main()
