"""The command ``longwave``: ``longwave train model=cornn task=adding`` is ``python train.py ...`` in any folder."""

import os
import runpy
import sys

COMMANDS = {
    "train": "longwave.train",
    "sweep": "longwave.sweep",
    "evaluate": "longwave.training.evaluate",
    "export": "longwave.training.export",
    "new": "longwave.new",
    "download": "longwave.tasks.download",
    "show": "longwave.tasks.show",
    "collect": "longwave.results.collect",
    "repeat": "longwave.results.repeat",
    "tables": "longwave.results.tables",
    "report": "longwave.results.report",
}


def main() -> None:
    """Runs one of ``COMMANDS`` with the rest of the command line; runs and data are kept under the current folder."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(f"usage: longwave {{{','.join(COMMANDS)}}} ...   (longwave train --help lists models and tasks)")
        return
    command = sys.argv.pop(1)
    if command not in COMMANDS:
        sys.exit(f"error: longwave {command}: no such command; choose one of {', '.join(COMMANDS)}")
    os.environ.setdefault("LONGWAVE_HOME", os.getcwd())
    runpy.run_module(COMMANDS[command], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
