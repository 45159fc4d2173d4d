"""One file a model.

A model file defines a dataclass ``Config`` (a :class:`longwave.models.network.ModelConfig`) whose ``build(inputs,
outputs)`` returns a :class:`longwave.models.network.Network`: x (T, B, inputs) to (B, outputs).
"""
