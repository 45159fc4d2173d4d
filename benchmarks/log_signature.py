"""Log-signatures of data of the size of EigenWorms: ``python -m longwave.benchmarks.log_signature``.

259 random series of 17,984 samples of 6 channels, with time; each backend that is installed on its own.
"""

import argparse
import importlib.util
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from longwave.tasks.base import ArrayTask
from longwave.tasks.transforms.log_signature import BACKENDS, Config
from longwave.training.environment import set_up_process


class Walks(ArrayTask):
    """Random walks, (N, L, C)."""

    inputs, outputs, split_id = 6, 1, "walks"

    def prepare(self, samples: Tensor) -> Tensor:
        return samples.transpose(0, 1).contiguous()


def measure(backend: str, depth: int, step: int) -> str:
    """Seconds of a whole transform with its cache, and the memory that it takes beside the data."""
    transform = Config(depth=depth, step=step, backend=backend)
    task = Walks(torch.randn(259, 17_984, 6).cumsum(dim=1), torch.zeros(259), {"train": torch.arange(259)}, seed=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        samples = transform.apply(task, Path(folder)).samples
        seconds = time.perf_counter() - began
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    size = samples.nbytes / 1e9
    return f"{backend:10}  {seconds:6.1f} s  {peak:.2f} GB at most, of which the result {size:.2f} GB"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--step", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", choices=tuple(BACKENDS))
    chosen = parser.parse_args()
    if chosen.backend:
        set_up_process(chosen.threads)
        print(measure(chosen.backend, chosen.depth, chosen.step))
    else:
        # A process each, since memory is the most that a process ever had.
        for name in BACKENDS:
            if name == "torch" or importlib.util.find_spec(name):
                command = [sys.executable, "-m", "longwave.benchmarks.log_signature", "--backend", name, *sys.argv[1:]]
                subprocess.run(command)
