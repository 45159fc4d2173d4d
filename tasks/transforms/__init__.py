"""One file an input transform: a map of the sequences of any task, before any model reads them.

A transform file defines a dataclass ``Config`` (a :class:`longwave.schema.Section`) whose ``apply(task, data_root)``
returns a :class:`longwave.tasks.base.Task` with the same splits, targets and scores.
"""
