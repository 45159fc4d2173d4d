"""Whole time loops, one folder an operation. Sequences are time-major, (T, B, H).

Each takes ``pre``, the input's contribution for every step, or an :class:`Input`, which makes it, and returns the
sequence and the final state.
"""

from kernels.antisymmetric_rnn import antisymmetric_rnn
from kernels.cornn import cornn
from kernels.dispatch import backend_for
from kernels.gru import gru
from kernels.indrnn import indrnn
from kernels.lem import lem
from kernels.linear import Input, linear
from kernels.linoss import linoss
from kernels.lstm import lstm
from kernels.modrelu_rnn import modrelu_rnn
from kernels.rnn import rnn
from kernels.unicornn import unicornn

__all__ = [
    "Input",
    "antisymmetric_rnn",
    "backend_for",
    "cornn",
    "gru",
    "indrnn",
    "lem",
    "linear",
    "linoss",
    "lstm",
    "modrelu_rnn",
    "rnn",
    "unicornn",
]
