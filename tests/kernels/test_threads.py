"""Threads share a range out between them, with the OpenMP that PyTorch has loaded and without one."""

import ctypes
import subprocess
import sys

import pytest
import torch

from longwave.kernels.library import FOLDER, compiler, flags

SOURCE = r"""
#include "threads.h"
#include <stdio.h>
#include <string.h>

static int done[1000];
static void task(void *context, long first, long last) {
    for (long i = first; i < last; i++) __atomic_fetch_add(&done[i], 1 + *(int *)context, __ATOMIC_RELAXED);
}

// The number of those that were not done once.
int wrong(long threads, long count) {
    int context = 0, bad = 0;
    memset(done, 0, sizeof done);
    parallel(threads, count, task, &context);
    for (long i = 0; i < 1000; i++) bad += done[i] != (i < count);
    return bad;
}

int main(void) {
    long threads[] = {1, 2, 3, 7, 300}, counts[] = {1, 2, 3, 50, 1000};
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 5; j++)
            if (wrong(threads[i], counts[j])) return 1;
    puts(dlsym(RTLD_DEFAULT, "GOMP_parallel") ? "OpenMP" : "threads of its own");
    return 0;
}
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("threads") / "source.c"
    path.write_text(SOURCE)
    return path


def compiled(source, output, program=False):
    options = [option for option in flags(torch.float32) if not (program and option == "-shared")]
    command = [*compiler(), *options, f"-I{FOLDER}", str(source), "-o", str(output)]
    subprocess.run(command, check=True)
    return output


def test_without_openmp(source, tmp_path):
    program = compiled(source, tmp_path / "program", program=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "threads of its own\n")


@pytest.mark.parametrize("threads", [1, 2, 3, 7, 300])
def test_with_that_of_pytorch(source, tmp_path, threads):
    library = ctypes.CDLL(str(compiled(source, tmp_path / "library.so")))
    for count in (1, 2, 3, 50, 1000):
        assert library.wrong(ctypes.c_long(threads), ctypes.c_long(count)) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere PyTorch may have another OpenMP")
def test_that_of_pytorch_is_found():
    assert hasattr(ctypes.CDLL(None), "GOMP_parallel")
