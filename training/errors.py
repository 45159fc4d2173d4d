"""Failures that a user is told in one line."""


class UserError(Exception):
    """Something that the user can mend; shown as one line, without a traceback."""


class Interrupted(KeyboardInterrupt):
    """The run was told to stop, has saved its state, and can be resumed by the same command."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal
