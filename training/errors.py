"""Failures that are shown in one line. They are pickled between processes, by their arguments."""


class UserError(Exception):
    """Something that the user can fix; shown as one line, without a traceback."""


class Diverged(UserError):
    """A loss, gradient or score that is not finite, found at a training step whose update was not made."""

    def __init__(self, step: int, what: str, value: float):
        super().__init__(step, what, value)
        self.step, self.what, self.value = step, what, value

    def __str__(self) -> str:
        return f"the {self.what} is {self.value} at step {self.step}; earlier checkpoints are kept"


class Taken(UserError):
    """Another process is training this run, or has just finished it."""


class Pruned(UserError):
    """A search has pruned the run, which can still be resumed."""


class Interrupted(KeyboardInterrupt):
    """A signal, by its number, stopped the run, which has saved its state at ``step`` and can be resumed."""

    def __init__(self, step: int, signal: int):
        super().__init__(step, signal)
        self.step, self.signal = step, signal

    def __str__(self) -> str:
        return f"interrupted at step {self.step}; the same command (without fresh=true) resumes there"
