"""Whole time loops, one folder an operation. Sequences are time-major, (T, B, H)."""

from kernels.cornn import cornn

__all__ = ["cornn"]
