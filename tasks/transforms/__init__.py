"""One file an input transform: what is done to the sequences of any task before any model reads them.

A transform file defines a dataclass ``Config`` (its keys, checked in ``__post_init__``) whose ``apply(task,
data_root)`` returns a :class:`longwave.tasks.base.Task` with the same splits, targets and scores.
"""
