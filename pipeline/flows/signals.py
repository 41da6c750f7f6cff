"""Signals that end a command, as exceptions: whatever was started is then ended on the way out."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Unwind on SIGTERM and when the terminal is closed, as on an error, so that whatever was started is ended.

    A handler that is there already stays: that of a flow run, with which Prefect tells a cancelled run from a crashed
    one, unwinds too; and under nohup a closed terminal is to be ignored.
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
