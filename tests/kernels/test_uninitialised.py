"""Working space of the C code that is read before it is written shows: glibc fills what it gives out."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import ctypes

import torch

from longwave.benchmarks.cases import EVERY_EQUATION, NRDE_OPTIONS, NRDE_SIZES, case, differences, nrde_case

libc = ctypes.CDLL(None)
libc.aligned_alloc.restype = ctypes.c_void_p
libc.aligned_alloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
libc.free.argtypes = (ctypes.c_void_p,)
M_PERTURB = -6


def check_filled(byte, size):
    address = libc.aligned_alloc(64, size)
    content = ctypes.string_at(address, size)
    libc.free(address)
    assert content == bytes([byte]) * size, content[:16]


# Freed memory is filled with this byte, fresh memory with its complement. 0xfe makes numbers of -1e304.
for freed in (0x01, 0xFE):
    assert libc.mallopt(M_PERTURB, freed) == 1
    # One of a size that the heap has not had, and one that comes from the system.
    check_filled(freed ^ 0xFF, 64 * 1234)
    check_filled(freed ^ 0xFF, 2**24)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name in EVERY_EQUATION:
            for size in ((1, 1, 1), (3, 5, 7), (2, 17, 33), (66, 3, 5)):
                try:
                    example = case(name, *size)
                    assert not differences(example)
                    # With no gradient of a final state, too.
                    found, expected = (
                        torch.autograd.grad(
                            example.run(backend)[0].sum(), list(example.inputs.values()), materialize_grads=True
                        )
                        for backend in ("cpu", "reference")
                    )
                    torch.testing.assert_close(found, expected)
                except AssertionError as error:
                    raise AssertionError(f"{name} {size}") from error
        for size in NRDE_SIZES:
            for options in NRDE_OPTIONS:
                assert not differences(nrde_case(*size, **options)), (size, options)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc: M_PERTURB is its own")
def test_no_result_depends_on_what_memory_held():
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
