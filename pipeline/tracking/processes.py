"""Which process records a run, so that the run of one that was killed does not stay RUNNING for ever."""

import os
import socket
import sys
import uuid
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROCESS_TAG = "process"


def this_process() -> str:
    """The value of the tag: the machine, the process and when it started, because numbers are used again."""
    return f"{_machine()} {os.getpid()} {psutil.Process().create_time():.2f}"


def end_abandoned(client: "MlflowClient", experiments: list[str]) -> None:
    """Mark as KILLED the runs whose process, on this machine, is gone: `kill -9` and power cuts leave no word."""
    query = f"attributes.status = 'RUNNING' and tags.{PROCESS_TAG} LIKE '{_machine()} %'"
    for run in client.search_runs(experiments, query):
        _, pid, started = run.data.tags[PROCESS_TAG].rsplit(" ", 2)
        if not _is_running(int(pid), float(started)):
            client.set_terminated(run.info.run_id, "KILLED")


def _is_running(pid: int, started: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False


def _machine() -> str:
    """Unlike for every place where the same process number means another process: a host, a container."""
    namespace = os.readlink("/proc/self/ns/pid") if sys.platform == "linux" else ""
    return f"{socket.gethostname()}-{uuid.getnode():x}{namespace.replace(':', '-')}"
