"""The coRNN time loop."""

from kernels.cornn.reference import cornn

__all__ = ["cornn"]
