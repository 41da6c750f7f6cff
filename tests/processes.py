"""Wait for an event, and find the processes that work in a project."""

import os
import time
from collections.abc import Callable

import psutil

from tests.conftest import Project

WAIT_SECONDS = 300  # far longer than anything takes on a busy machine


def wait_until(
    condition: Callable[[], object],
    seconds: float = WAIT_SECONDS,
    explain: Callable[[], object] = lambda: "waited in vain",
) -> None:
    """Wait for an event. After `seconds`, fail with what `explain` returns."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.05)


def processes_of(project: Project) -> list[list[str]]:
    """Return the commands of all other processes that work in the project's directory."""
    processes = psutil.process_iter(["cmdline", "cwd", "pid"])
    return [
        process.info["cmdline"]
        for process in processes
        if (process.info["cwd"] or "").startswith(str(project.path)) and process.pid != os.getpid()
    ]


def wait_until_idle(project: Project) -> None:
    """Wait for the end of all processes of a project. It may take the grace between SIGTERM and SIGKILL."""
    wait_until(lambda: not processes_of(project), 60, lambda: processes_of(project))
