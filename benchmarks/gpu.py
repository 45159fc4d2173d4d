"""Values, speed and training of the Triton kernels on a GPU: ``python -m longwave.benchmarks.gpu``, 8 minutes.

Three parts, each alone by its name: ``check`` compares every kernel with its definition in float64, ``speed`` times it
beside its rivals, ``train`` trains. Every result is printed, and ``gpu.json`` written, as soon as it is there. Each
part has its share of the time; what comes after it is skipped, and named. Ends with status 1 where something is wrong.

``check`` and ``speed`` need torch, Triton and this folder; ``python benchmarks/gpu.py`` runs in a checkout of any name
that was never installed. ``--small`` is for a CPU: the same at small sizes, in Triton's interpreter.
"""

import argparse
import dataclasses
import importlib.util
import os
import sys
import time
import types
from pathlib import Path

if not __package__:
    # The checkout is the package, whatever its folder is called; modules beside this one would hide others.
    root = Path(__file__).resolve().parents[1]
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != root / "benchmarks"]
    spec = importlib.util.spec_from_file_location("longwave", root / "__init__.py")
    sys.modules["longwave"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["longwave"])

import torch

from longwave import PACKAGE, home
from longwave.benchmarks import gpu_check, gpu_speed, gpu_train
from longwave.benchmarks.cases import FUNCTIONS
from longwave.benchmarks.gpu_cases import NRDE
from longwave.benchmarks.gpu_report import Report

# The parts, and their shares of the time.
SHARES = {"check": 0.45, "speed": 0.3, "train": 0.25}


def stand_in_for_annotated_types() -> None:
    """The one package beside torch that models need: four bounds of their settings."""
    try:
        importlib.import_module("annotated_types")
    except ImportError:
        sys.modules["annotated_types"] = module = types.ModuleType("annotated_types")
        for name in ("Ge", "Gt", "Le", "Lt"):
            setattr(module, name, dataclasses.make_dataclass(name, [name.lower()], frozen=True))


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts; 1 where something failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(SHARES)}; default all")
    parser.add_argument("--out", type=Path, help="folder of gpu.json and the runs; benchmarks, and with --small none")
    parser.add_argument("--minutes", type=float, default=8, help="time for all parts together")
    names = sorted({*FUNCTIONS.values(), NRDE})
    parser.add_argument("--only", choices=names, metavar="OPERATION", help="this operation alone, and no model")
    parser.add_argument("--small", action="store_true", help="small sizes on the CPU, in Triton's interpreter")
    parser.add_argument("--compile-only", metavar="I/N", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if wrong := set(given.parts) - set(SHARES):
        parser.error(f"{min(wrong)!r}: must be one of {', '.join(SHARES)}")
    if not given.small and not torch.cuda.is_available():
        parser.error("no CUDA device here; --small runs on the CPU")
    stand_in_for_annotated_types()
    if given.compile_only:
        gpu_check.compile_some(given.compile_only, given.only)
        return 0
    if given.small:
        # Before a kernel is defined.
        os.environ.setdefault("TRITON_INTERPRET", "1")
    # For deterministic products, before the first.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    out = given.out or (None if given.small else PACKAGE / "benchmarks")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    report = Report(out and out / "gpu.json", torch.device("cpu" if given.small else "cuda"))
    chosen = [part for part in SHARES if part in (given.parts or SHARES)]
    deadline, whole = time.monotonic(), sum(SHARES[part] for part in chosen)
    for part in chosen:
        # What a part leaves over is the next one's.
        deadline += 60 * given.minutes * SHARES[part] / whole
        report.start(part, deadline)
        if part == "check":
            items = gpu_check.checks(report.device, given.small, given.only)
        elif part == "speed":
            items = gpu_speed.speeds(report, given.small, given.only)
        else:
            items = gpu_train.runs(report, given.small, (given.out or home() / "outputs") / "gpu")
        report.each(items)
        report.finish()
    for row in report.failures:
        print("FAILED", row["what"], row.get("mode", ""), row.get("failed") or row.get("worst", ""))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
