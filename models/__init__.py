"""One file a model.

A model file defines a dataclass ``Config`` (its keys, checked in ``__post_init__``) whose ``build(inputs, outputs)``
returns a :class:`longwave.models.network.Network`: x (T, B, inputs) to (B, outputs).
"""
