"""One file an input transform: a map of the sequences of any task, before any model reads them.

A transform file defines a dataclass ``Config`` (a :class:`longwave.schema.Section`) whose ``apply(task, data_root)``
returns a :class:`longwave.tasks.base.Task` with the same splits, targets and scores, whose ``statistics`` have the
``length`` of the sequences before. For trained models, ``prepare(x)`` transforms sequences (T, B, D), and
``stream(length)`` gives an object whose ``push(x)`` takes one step (B, D) after the other, and gives the entry that it
completes, or None.
"""
