"""End processes with their parent, on a signal, and without waiting for a server.

`python -m pipeline.process_lifetime MODULE ARGUMENTS` runs `python -m MODULE ARGUMENTS` and ends it with the process
that started it. Its standard input is a pipe, which the operating system closes when the parent ends, even after
`kill -9`.
"""

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 20  # between SIGTERM and SIGKILL: a stage closes its run, a runner ends its flow runs

_skips_exit_handlers = False


def end_with_input() -> None:
    """End this process when its standard input closes: first by SIGTERM, then by SIGKILL.

    If it leads a process group, SIGKILL goes to the whole group. Processes that it starts read from `/dev/null`.
    """
    pipe, null = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)

    def watch() -> None:
        while os.read(pipe, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-input", daemon=True).start()


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Raise SystemExit on SIGTERM and on SIGHUP, so that `with` blocks end the processes they started.

    Existing handlers stay: Prefect's, which distinguishes a cancelled flow run from a crashed one, and `nohup`'s.
    """

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    ending = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    former = {number: signal.signal(number, leave) for number in ending}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def skip_exit_handlers() -> None:
    """Let `exit_now` end the process without Python's exit handlers.

    Prefect's handler waits without a limit until its server has accepted every event.
    """
    global _skips_exit_handlers
    _skips_exit_handlers = True


def exit_now() -> None:
    """End the process if `skip_exit_handlers` was called, with the exit code of the current SystemExit, if any."""
    error = sys.exception()
    if _skips_exit_handlers and (error is None or isinstance(error, SystemExit)):
        sys.stdout.flush()
        sys.stderr.flush()
        code = error.code if error else 0
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    end_with_input()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
