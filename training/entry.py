"""The end of a command: one line and an exit code."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from longwave.training.errors import Interrupted, UserError


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Ends the process without a traceback for an error that the user can fix, a signal or a closed pipe."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        # Since the imports, during which Ctrl-C ends the process without a traceback.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as error:
        print(error if str(error) else "interrupted; the same command resumes", file=sys.stderr)
        sys.exit(128 + (error.signal if isinstance(error, Interrupted) else signal.SIGINT))
    except BrokenPipeError:
        # As head -1 leaves it. Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
