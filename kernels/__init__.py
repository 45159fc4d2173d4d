"""Whole time loops, one folder an operation. Sequences are time-major, (T, B, H).

Each takes ``pre``, the input's contribution for every step, or an :class:`Input`, which makes it, and returns the
sequence and the final state. But for :func:`nrde`, the steps of a solver, which has arguments of its own.
"""

# ruff: noqa: F401
from longwave.kernels.antisymmetric_rnn import antisymmetric_rnn
from longwave.kernels.cornn import cornn
from longwave.kernels.derivatives import transformed
from longwave.kernels.dispatch import backend_for
from longwave.kernels.fastgrnn import fastgrnn
from longwave.kernels.fastrnn import fastrnn
from longwave.kernels.gru import gru
from longwave.kernels.indrnn import indrnn
from longwave.kernels.leaky_relu_rnn import leaky_relu_rnn
from longwave.kernels.lem import lem
from longwave.kernels.linear import Input, linear
from longwave.kernels.linoss import linoss
from longwave.kernels.lstm import lstm
from longwave.kernels.modrelu_rnn import modrelu_rnn
from longwave.kernels.nrde import nrde
from longwave.kernels.rnn import rnn
from longwave.kernels.ugrnn import ugrnn
from longwave.kernels.unicornn import unicornn
