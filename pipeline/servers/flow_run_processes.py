"""Which flow runs a runner's processes work on, so that none is shown as running for ever after a crash.

A flow run that Prefect calls running may have lost its process: killed, or gone with the machine. Each process that our
runner starts therefore leaves a note with its number. The runner goes through the notes of those that have ended.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psutil
from prefect.runtime import flow_run

from pipeline.files import read_kept, write_json
from pipeline.process import end_with_input
from pipeline.tracking.processes import start_of
from pipeline.workspace import STATE

NOTES = STATE / "flow-runs"
RUNNER_VARIABLE = "PIPELINE_RUNNER"  # in the environment of the flow runs that our runner starts
END_SECONDS = 20  # for a process that lost its runner to end its stage and to say so to Prefect


@dataclass(frozen=True)
class Note:
    """What a flow run's process left in a main repository."""

    flow_run: UUID
    path: Path
    process: psutil.Process | None  # None: it has ended


def attend(root: Path) -> None:
    """Leave a note for this flow run, and end with the runner that started it. Does nothing under another runner."""
    if os.environ.get(RUNNER_VARIABLE) and flow_run.id:
        end_with_input()
        content = {"pid": os.getpid(), "started": start_of(psutil.Process())}
        write_json(root / NOTES / f"{flow_run.id}.json", content)


def read_notes(root: Path) -> list[Note]:
    """The notes in a main repository."""
    return [Note(UUID(path.stem), path, _process(path)) for path in sorted((root / NOTES).glob("[!.]*.json"))]


def end_processes(notes: Iterable[Note]) -> None:
    """End the processes of flow runs that are still alive: politely, then not."""
    processes = [note.process for note in notes if note.process]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(processes, timeout=END_SECONDS)
    for process in stubborn:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _process(path: Path) -> psutil.Process | None:
    if not (found := read_kept(path)):
        return None
    try:
        process = psutil.Process(found["pid"])
        return process if start_of(process) == found["started"] else None
    except psutil.NoSuchProcess:
        return None
