"""Functions that the tests send to workers."""

import os
import signal
import time
from pathlib import Path

from pipeline.errors import DataError


def square(value: int) -> int:
    time.sleep(0.05 * (value % 3 == 0))  # later partitions end first
    return value * value


def refuse(value: int) -> int:
    if value == 3:
        raise DataError("image 3 is damaged", remedy="delete it")
    return value


def time_out(value: int) -> int:
    raise TimeoutError(f"partition {value} took too long")


def end_always(value: int) -> int:
    if value == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def end_once(partition: tuple[str, int]) -> int:
    """End the worker of partition 5, unless the file exists, which it creates."""
    path, value = partition
    if value == 5 and not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
    return value * value


def wait_for_file(path: str) -> int:
    """Return the process, after its file exists."""
    Path(f"{path}.started").touch()
    while not Path(path).exists():
        time.sleep(0.02)
    return os.getpid()


def current_directory(_value: int) -> str:
    return os.getcwd()
