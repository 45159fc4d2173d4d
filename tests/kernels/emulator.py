"""Clusters of CUDA thread blocks on CPU tensors: the kernels of ``longwave.kernels.cluster``, compiled by ``cc``."""

import ctypes
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from longwave.kernels import library
from longwave.kernels.cluster import Loop, Plan

HEADER = Path(__file__).parent / "emulator.h"


def launch(given: library.Source, p: Plan, loop: Loop, clusters: int, device: int, order: Sequence[int] = ()) -> None:
    """In place of ``cluster.launch``; ``order`` is that of a cluster's threads."""
    # Quick to compile, since it is never quick to run; and built again where the emulator has changed.
    changed = hashlib.sha256(HEADER.read_bytes()).hexdigest()[:16]
    given = replace(given, options=(*given.options, "-O1", f"-I{HEADER.parent}", f"-DEMULATOR={changed}"))
    kernel = getattr(library.load(given, torch.float32), p.entry)
    order = order or range(p.cluster * p.threads)
    threads = (ctypes.c_int * len(order))(*order)
    failed = kernel(ctypes.byref(loop), ctypes.c_long(clusters), threads, ctypes.c_long(p.shared))
    if failed > 1:
        raise MemoryError(f"{given.name}: no memory")
    if failed:
        raise RuntimeError(f"{given.name}: some threads wait for ever, or write to a block that has ended")
