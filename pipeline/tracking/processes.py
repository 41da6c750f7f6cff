"""Which process records a run, so that the run of one that was killed does not stay RUNNING for ever."""

import os
import socket
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROCESS_TAG = "process"


def this_process() -> str:
    """The value of the tag: the machine, the process and when it started, because numbers are used again."""
    return f"{_machine()} {os.getpid()} {start_of(psutil.Process())}"


def start_of(process: psutil.Process) -> str:
    """When a process started, in words that stay the same when the clock is set, and not when the machine restarts.

    Raises:
        NoSuchProcess: it has ended.
    """
    if sys.platform != "linux":
        return f"{process.create_time():.2f}"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{process.create_time() - psutil.boot_time():.2f}@{boot}"


def end_abandoned(client: "MlflowClient", experiments: list[str]) -> None:
    """Mark as KILLED the runs whose process, on this machine, is gone: `kill -9` and power cuts leave no word."""
    query = f"attributes.status = 'RUNNING' and tags.{PROCESS_TAG} LIKE '{_machine()} %'"
    for run in client.search_runs(experiments, query):
        if not is_running(run.data.tags[PROCESS_TAG]):
            client.set_terminated(run.info.run_id, "KILLED")


def is_running(process: str) -> bool | None:
    """Whether a process, named as `this_process` does, is still there; None: it is of another machine."""
    machine, pid, started = process.rsplit(" ", 2)
    if machine != _machine():
        return None
    try:
        return start_of(psutil.Process(int(pid))) == started
    except psutil.NoSuchProcess:
        return False


def _machine() -> str:
    """Unlike for every place where the same process number means another process: a host, a container."""
    namespace = os.readlink("/proc/self/ns/pid") if sys.platform == "linux" else ""
    return f"{socket.gethostname()}-{uuid.getnode():x}{namespace.replace(':', '-')}"
