"""The process that records a run, as a tag. The run of a killed process is found by it and marked as KILLED."""

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
    """Return the tag of this process: machine, process id and start time. Process ids alone are reused."""
    return f"{_machine()} {os.getpid()} {start_of(psutil.Process())}"


def start_of(process: psutil.Process) -> str:
    """Return the start time of a process as text. On Linux it is relative to the boot: setting the clock has no effect.

    Raises:
        NoSuchProcess: it has ended.
    """
    if sys.platform != "linux":
        return f"{process.create_time():.2f}"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{process.create_time() - psutil.boot_time():.2f}@{boot}"


def end_abandoned(client: "MlflowClient", experiments: list[str]) -> None:
    """Mark runs as KILLED if their process on this machine has ended, such as by `kill -9` or a power cut."""
    query = f"attributes.status = 'RUNNING' and tags.{PROCESS_TAG} LIKE '{_machine()} %'"
    for run in client.search_runs(experiments, query):
        if not is_running(run.data.tags[PROCESS_TAG]):
            client.set_terminated(run.info.run_id, "KILLED")


def is_running(process: str) -> bool | None:
    """Return True if the process of a tag (see `this_process`) still runs. None if it is on another machine."""
    machine, pid, started = process.rsplit(" ", 2)
    if machine != _machine():
        return None
    try:
        found = psutil.Process(int(pid))  # a container without an init process keeps orphans as zombies
        return found.status() != psutil.STATUS_ZOMBIE and start_of(found) == started
    except psutil.NoSuchProcess:
        return False


def _machine() -> str:
    """Identify host and container: process ids repeat across them."""
    namespace = os.readlink("/proc/self/ns/pid") if sys.platform == "linux" else ""
    return f"{socket.gethostname()}-{uuid.getnode():x}{namespace.replace(':', '-')}"
