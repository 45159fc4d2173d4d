"""One file per task: its data, split, loss and metric.

A task file defines a dataclass ``Config`` (a :class:`longwave.schema.Section`) whose ``build(seed, data_root)`` returns
a :class:`longwave.tasks.base.Task`.
"""
