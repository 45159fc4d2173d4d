"""Longwave: recurrent layers for long sequences, and what reproduces the papers on them.

The layers are used like ``torch.nn.LSTM``: ``from longwave import CoRNN``; docs/library.md shows how.
"""

import importlib
import os
from pathlib import Path

# Nothing is imported before it is asked for: a layer needs torch, a command may not.
_HOMES = {
    "AntisymmetricRNN": "longwave.models.antisymmetric_rnn",
    "CoRNN": "longwave.models.cornn",
    "EURNN": "longwave.models.eurnn",
    "ExpRNN": "longwave.models.exprnn",
    "FastGRNN": "longwave.models.fastgrnn",
    "GRU": "longwave.models.gru",
    "IndRNN": "longwave.models.indrnn",
    "LEM": "longwave.models.lem",
    "LSTM": "longwave.models.lstm",
    "LinOSS": "longwave.models.linoss",
    "NeuralRDE": "longwave.models.nrde",
    "RNN": "longwave.models.rnn",
    "SpectralRNN": "longwave.models.spectral_rnn",
    "Stacked": "longwave.models.stack",
    "UGRNN": "longwave.models.ugrnn",
    "UnICORNN": "longwave.models.unicornn",
    "detach": "longwave.models.layer",
    "load": "longwave.training.trained",
}

__all__ = [*_HOMES, "home", "kernels"]

# The folder of the code: a checkout, or where a wheel was installed.
PACKAGE = Path(__file__).resolve().parent
CONF = PACKAGE / "conf"


def home() -> Path:
    """Folder that relative paths of runs, records and data start from.

    It is ``LONGWAVE_HOME`` where that is set (``longwave train`` sets it to the current folder), else the checkout,
    else the current folder.
    """
    if "LONGWAVE_HOME" in os.environ:
        return Path(os.environ["LONGWAVE_HOME"]).expanduser().absolute()
    return PACKAGE if (PACKAGE / "pyproject.toml").exists() else Path.cwd()


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'longwave' has no attribute {name!r}")
