"""Counted randomness: each consumer draws from a generator seeded by (seed, purpose, counter); no state is carried.

A resumed run therefore draws the same numbers, and two models with one seed see the same batches.
"""

import hashlib

import torch


def counted_seed(seed: int, purpose: str, counter: int = 0) -> int:
    """A 63-bit seed that depends on all three arguments, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{counter}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, purpose: str, counter: int = 0) -> torch.Generator:
    """A fresh CPU generator for one purpose, such as ``("order", epoch)`` or ``("batch", step)``."""
    return torch.Generator().manual_seed(counted_seed(seed, purpose, counter))
