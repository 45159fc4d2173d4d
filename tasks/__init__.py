"""One file a task: where the data comes from, its split, its loss and its metric.

A task file defines a dataclass ``Config`` (its keys, checked in ``__post_init__``) whose
``build(seed, data_root)`` returns a :class:`longwave.tasks.base.Task`.
"""
