"""The kernels are imported without torch._dynamo, and torch.compile still knows what is constant."""

import subprocess
import sys

import torch

from longwave.kernels import derivatives, dispatch

DEAR = ("torch._dynamo", "torch._inductor", "sympy", "torchvision", "scipy", "triton")


def test_nothing_dear_is_imported():
    program = f"import sys, longwave.kernels; print([name for name in {DEAR} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_marks_as_torch_does():
    ours, theirs = derivatives.constant(lambda: None), torch.compiler.assume_constant_result(lambda: None)
    assert vars(ours) == vars(theirs) != {}
    for function in (dispatch._cpu_obstacle, dispatch._triton_obstacle):
        assert vars(function) == vars(theirs)
