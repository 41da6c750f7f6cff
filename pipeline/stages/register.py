"""Register a model that passed the gate, and report one that did not. An experiment's model is not registered."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.params import Params
from pipeline.stages.entrypoint import execute
from pipeline.workspace import current_experiment

# Run by a process of its own: wait until DVC has ended, then delete the file.
DELETE_AFTER = """
import pathlib, sys
import psutil
try:
    psutil.Process(int(sys.argv[1])).wait()
except psutil.NoSuchProcess:
    pass
pathlib.Path(sys.argv[2]).unlink(missing_ok=True)
"""


def run(params: Params) -> None:
    """Register `models/model.keras` with its evaluation. A rejected model is a success of this stage.

    Under `dvc exp run` nothing is registered, judged or entered in the ledger.

    Raises:
        TrackingError: the tracking store cannot be used.
    """
    from pipeline.registry.registration import register, write_registration
    from pipeline.tracking.stage_outputs import Outputs
    from pipeline.tracking.training_runs import find_or_rebuild

    outputs = Outputs()
    record = find_or_rebuild(outputs)
    record.add_evaluation(outputs)
    if experiment := current_experiment():
        write_registration(outputs, judged=False)
        in_workspace = Path(os.environ.get("DVC_ROOT", "")).resolve() == Path.cwd()  # not in the copy of `--temp`
        if in_workspace:
            _delete_after_dvc(outputs.registration.resolve())
        steps = "pipeline run" if in_workspace else f"dvc exp apply {experiment}, then pipeline run"
        print(f"experiment {experiment}: its model is not registered and not judged. To have it judged: {steps}")
        return
    registration = register(record, outputs, params.register)
    write_registration(outputs)
    print(registration)


def _delete_after_dvc(file: Path) -> None:
    """Delete the result of an experiment in the workspace when its DVC has ended.

    DVC has recorded the file by then. The next run would skip `register` as unchanged, and never judge the model. A
    missing output makes it run again.
    """
    with suppress(psutil.Error):  # if DVC is not found, `pipeline run` and `pipeline sync` judge the model all the same
        above = psutil.Process().parents()
        dvc = next((process for process in above if "dvc" in " ".join(process.cmdline())), None)
        if dvc:
            command = [sys.executable, "-c", DELETE_AFTER, str(dvc.pid), str(file)]
            null = subprocess.DEVNULL
            subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)


if __name__ == "__main__":
    execute("register", run)
