"""The common entry point of all stage processes.

It reads the parameters, holds the stage's lock, and ends the process when the DVC process that started it has ended.
It refuses damaged data, and a workspace that lacks a batch of the main repository. It turns an error into a
message and an exit code.
"""

import errno
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from pipeline.data.batches import INCOMING, require_same_batches, require_same_local_data
from pipeline.data.catalog import load_entry
from pipeline.errors import PipelineError, WorkspaceError
from pipeline.garbage_collection import collect_rarely
from pipeline.models.tasks import create_task
from pipeline.params import Params, load_params
from pipeline.proxies import bypass_proxy
from pipeline.rooms import find_remedy
from pipeline.tracking.dvc_integrity import require_sound_batches, require_sound_inputs
from pipeline.workspace import OWNER, lock, main_repository

ORPHAN_POLL_SECONDS = 0.5
FULL = {errno.ENOSPC: "on that disk", errno.EDQUOT: "in your quota"}
REMEDIES = {  # by errno
    errno.EACCES: "correct the permissions, then run the same command again",
    errno.EPERM: "correct the owner or the permissions, then run the same command again",
    errno.EROFS: "mount that disk for writing, or choose another place",
    errno.ENOENT: "it does not exist, or another process has just deleted it: see that it is there, then run again",
    errno.EIO: "the disk may be failing: look at the system's log, and copy what you need",
    errno.EMFILE: "allow more open files (ulimit -n), then run the same command again",
}
LOCK_WAIT_SECONDS = 15  # an orphan of a killed DVC holds the lock until its next poll and its exit


def execute(stage: str, run: Callable[[Params], None], *, part: Callable[[], str] = str) -> None:
    """Run one stage as the process `python -m pipeline.stages.STAGE`.

    Args:
        part: returns a name, such as "worker 1", if the stage has several processes. Each holds its own lock.
    """
    collect_rarely()
    end_with_parent()
    bypass_proxy()
    try:
        params = read_params()
        with lock(
            f"stage {stage} {part()}".rstrip(), wait=LOCK_WAIT_SECONDS, remedy="wait for it, or end that process"
        ):
            if not OWNER.is_file():  # a retraining selects its own data
                require_same_batches(INCOMING, main_repository() / INCOMING)
                require_same_local_data(Path(params.dataset.path), main_repository() / params.dataset.path)
            if "DVC_STAGE" in os.environ:  # not if a user runs the stage without DVC
                require_sound_inputs(Path(), stage)
                if stage == "ingest":
                    require_sound_batches(Path(), INCOMING)
            run(params)
    except PipelineError as error:
        fail(stage, error)
    except OSError as error:
        fail(stage, explain(error))


def read_params() -> Params:
    """Load `params.yaml` and check it against the catalogue.

    Raises:
        ParamsError, ModelError: it cannot be used, or names a dataset or a class that is not in the catalogue.
    """
    params = load_params()
    dataset = load_entry(params.dataset.name).dataset
    create_task(params.train.loss, dataset.classes, params.dataset.positive_classes)
    return params


def fail(stage: str, error: PipelineError) -> NoReturn:
    """Print why the stage failed and how to restore its former outputs. DVC deleted them before the start."""
    print(f"\n{stage} failed: {error}", file=sys.stderr)
    if stage != "register":  # its output is not cached
        print(
            f"  former:   to restore the outputs of its last successful run: dvc checkout {stage}",
            file=sys.stderr,
        )
    raise SystemExit(error.exit_code)


def explain(error: OSError) -> WorkspaceError:
    """Convert an operating system's error to a WorkspaceError with the names of the files and a remedy."""
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes) and name]
    paths = [Path(os.fsdecode(name)) for name in names]
    found, kind = error.strerror or str(error), error.errno
    remedy = REMEDIES.get(kind or 0, "run the same command again")
    if kind in FULL:
        remedy = f"free space {FULL[kind]} ({find_remedy('free space', 'by hand')}), then run the same command again"
    if paths and kind in FULL:
        place = next(parent for parent in (paths[-1], *paths[-1].absolute().parents) if parent.exists())
        found += f" ({shutil.disk_usage(place).free // 2**20} MiB free on the disk of {place})"
    return WorkspaceError(
        f"cannot read or write {' or '.join(map(str, paths))}"
        if paths
        else "cannot read or write a file, or reach a server",
        found=found,
        remedy=remedy,
    )


def end_with_parent() -> None:
    """End this process when the DVC process that started it ends. DVC ends with its flow.

    After `kill -9` of DVC, the stage would keep running, and a rerun would start a second writer. DVC starts the stage
    through a shell, so this watches the parent and the grandparent. It does nothing for a stage that a user starts
    without DVC.
    """
    if "DVC_STAGE" not in os.environ:
        return
    import psutil

    parent = psutil.Process().parent()
    watched = [parent, parent.parent() if parent and "dvc" not in " ".join(parent.cmdline()) else None]

    def alive(process: psutil.Process) -> bool:
        try:
            return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def watch() -> None:
        while all(alive(process) for process in watched if process):
            time.sleep(ORPHAN_POLL_SECONDS)
        with suppress(OSError):  # the reader of this pipe may have ended as well
            print("the process that started this stage is gone: stopping", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
