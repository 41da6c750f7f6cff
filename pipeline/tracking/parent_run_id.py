"""The MLflow run of a flow, which is the parent of the runs of its stages.

Stages start before the flow's run is open. The flow writes the run's id to a file, and a stage that needs it waits.
"""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.files import atomic_file
from pipeline.tracking.queries import find_or_none

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT_FILE_VARIABLE = "PIPELINE_PARENT_RUN_FILE"  # environment variable of the stages of a flow: path of the file
REGISTERS_VARIABLE = "PIPELINE_FLOW_REGISTERS"  # set for the stages of a flow whose last stage is `register`
WAIT_SECONDS = 120
POLL_SECONDS = 0.05


def is_in_flow() -> bool:
    """Return True if a flow started this process."""
    return PARENT_FILE_VARIABLE in os.environ


def flow_registers() -> bool:
    """Return True if a flow started this process and will run `register`."""
    return REGISTERS_VARIABLE in os.environ


def write_parent_run(file: Path, run_id: str) -> None:
    """Write the id of the flow's run to a file, for the stages."""
    with atomic_file(file) as partial:
        partial.write_text(run_id, encoding="ascii")


def read_parent_run() -> str | None:
    """Return the id of the MLflow run of the flow that started this process; None outside a flow.

    Waits until the flow has opened its run. If the flow fails to do so, it ends this process.
    """
    if not is_in_flow():
        return None
    file, deadline = Path(os.environ[PARENT_FILE_VARIABLE]), time.monotonic() + WAIT_SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            print(f"the flow has no run after {WAIT_SECONDS} s: recording without it", flush=True)
            return None
        time.sleep(POLL_SECONDS)
    return file.read_text(encoding="ascii")


def find_parent(client: "MlflowClient") -> "Run | None":
    """Find the run of the flow that started this process. None if there is no flow, or its run is not in the store."""
    if not (parent := read_parent_run()):
        return None
    run = find_or_none(client.get_run, parent)
    if run is None:
        print(f"the flow's run {parent} is not in the tracking store: recording without it", flush=True)
    return run
