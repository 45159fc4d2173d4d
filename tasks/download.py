"""Fetches data sets ahead of time: ``python -m tasks.download eigenworms uea/BasicMotions``, or ``all``, ``--list``."""

import argparse
import importlib
import logging
import os
import pkgutil
import sys

from longwave import tasks
from longwave.tasks import uea
from longwave.tasks.base import data_root
from longwave.tasks.data import Source, fetch_all, readable


def known() -> dict[str, tuple[tuple[Source, ...], tuple[Source, ...]]]:
    """(sources, fallback) of every name in the ``SOURCES`` of the task files."""
    found = {}
    for module in pkgutil.iter_modules(tasks.__path__, "longwave.tasks."):
        if module.name != __name__:
            loaded = importlib.import_module(module.name)
            fallbacks = getattr(loaded, "FALLBACKS", {})
            for name, sources in getattr(loaded, "SOURCES", {}).items():
                found[name] = (sources, fallbacks.get(name, ()))
    return dict(sorted(found.items()))


def main(arguments: list[str]) -> int:
    """Returns the exit code: 1 if a download failed."""
    parser = argparse.ArgumentParser(prog="python -m tasks.download", description="Fetch data sets ahead of time.")
    parser.add_argument("names", nargs="*", help="names from --list, uea/<data set of the archives>, or all")
    parser.add_argument("--list", action="store_true", help="list the data sets: size, state, licence")
    parser.add_argument("--root", help="folder of the data sets; default LONGWAVE_DATA, or data/ in the checkout")
    options = parser.parse_args(arguments)
    # As data.root in train.py, but relative to the current folder.
    root = data_root(options.root and os.path.abspath(os.path.expanduser(options.root)))
    offered = known()
    if options.list:
        for name, (sources, _) in offered.items():
            for source in sources:
                path = root / source.path
                state = "there" if path.exists() else "-"
                size = path.stat().st_size if path.exists() else source.size
                print(f"{name:12} {source.path:42} {readable(size):>8}  {state:6} licence: {source.licence}")
        print("uea/<data set of the UEA, UCR and Monash archives>, such as uea/BasicMotions")
        return 0
    if not options.names:
        parser.error("name what to fetch, or --list")
    logging.getLogger("longwave").setLevel(logging.INFO)
    logging.basicConfig(format="%(message)s")
    wanted = {}
    for name in offered if "all" in options.names else options.names:
        if name.startswith("uea/"):
            wanted[name] = uea.sources(name.removeprefix("uea/"), None)
        elif name in offered:
            wanted[name] = offered[name]
        else:
            parser.error(f"{name}: no such data set; there are {', '.join([*offered, 'uea/<data set>', 'all'])}")
    failed = 0
    for name, (sources, fallback) in wanted.items():
        try:
            for path in fetch_all(sources, fallback, root):
                print(f"{name}: {path}")
        except OSError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
