"""The end of a process that must not wait for a server.

Prefect waits without a limit, when Python ends, until its server has taken what it still holds.
"""

import os
import sys

_at_once = False


def skip_exit_handlers() -> None:
    """Let the process end without Python's exit handlers when `leave` is called."""
    global _at_once
    _at_once = True


def leave() -> None:
    """End the process now, if that was asked for, with the exit code of the exception that is being raised."""
    error = sys.exception()
    if _at_once and (error is None or isinstance(error, SystemExit)):
        sys.stdout.flush()
        sys.stderr.flush()
        code = error.code if error else 0
        os._exit(code if isinstance(code, int) else int(code is not None))
