"""The processes of the runner's flow runs, recorded so that Prefect does not show a crashed flow run as running.

Prefect still shows a flow run as running if its process was killed or the machine crashed. Each process that our runner
starts therefore writes a note with its process id (`flows/deployed.py`). The runner checks the notes whose processes
have ended.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psutil

from pipeline.files import read_cached_json
from pipeline.flows.deployed import NOTES
from pipeline.tracking.processes import start_of

END_SECONDS = 20  # for a process whose runner ended: to end its stage and report to Prefect


@dataclass(frozen=True)
class Note:
    """The record that a flow run's process wrote to a main repository."""

    flow_run: UUID
    path: Path
    process: psutil.Process | None  # None if it has ended


def read_notes(root: Path) -> list[Note]:
    """Read the notes in a main repository."""
    return [Note(UUID(path.stem), path, _process(path)) for path in sorted((root / NOTES).glob("[!.]*.json"))]


def end_processes(notes: Iterable[Note]) -> None:
    """End the processes of flow runs that still run: SIGTERM, then SIGKILL after `END_SECONDS`."""
    processes = [note.process for note in notes if note.process]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(processes, timeout=END_SECONDS)
    for process in stubborn:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _process(path: Path) -> psutil.Process | None:
    if not (found := read_cached_json(path)):
        return None
    try:
        process = psutil.Process(found["pid"])
        return process if start_of(process) == found["started"] else None
    except psutil.NoSuchProcess:
        return None
