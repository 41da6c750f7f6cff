"""Start the processes of a training on several workers, watch them, and end them together.

The first worker is the chief: DVC runs its stage. The others compute their shares of its batches and write nothing.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from subprocess import Popen, TimeoutExpired
from typing import Any

from pipeline.dvc import is_advice, parse_announcement, remove_stale_rwlock_entries, signal_group, start_python
from pipeline.errors import FlowError, WorkspaceError
from pipeline.files import file_digest, read_cached_json, write_json
from pipeline.params import Params
from pipeline.scale.addresses import Address
from pipeline.workspace import STATE, main_repository

TRAIN = "train"
SPLITS = (Path("data/splits/train.parquet"), Path("data/splits/validation.parquet"))
POLL_SECONDS = 0.2
TOGETHER_SECONDS = 5  # between the end of a worker and the errors that it causes in the others
END_SECONDS = 5  # for the workers, after the chief has finished
SIGNALLED = 128  # a shell adds it to the number of the signal that ended a command
LAST_LINES = 15

Show = Callable[[str], None]


@dataclass
class Worker:
    """A process of the training on this machine."""

    number: int
    address: Address
    process: Popen[str]
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))

    def __str__(self) -> str:
        return f"worker {self.number} at {self.address}{' (the chief)' if self.number == 0 else ''}"

    @property
    def exit_code(self) -> int | None:
        """Exit code of the stage. Negative: the signal that ended it. None while it runs."""
        code = self.process.poll()
        if code and self.number == 0:  # that of DVC, which prints that of the stage
            found = [parse_announcement(line) for line in self.lines]
            code = next((one.exit_code for one in found if one and one.exit_code), code)
            return SIGNALLED - code if SIGNALLED < code < SIGNALLED + 65 else code
        return code


def train(params: Params, addresses: Sequence[Address], show: Show) -> None:
    """Start this machine's workers and wait for the end of the training.

    On the machine of the chief, run the stages before `train` first.

    Args:
        show: called with each line that the chief prints; of the other workers if they run alone on this machine.

    Raises:
        WorkspaceError: params.yaml does not ask for several workers, or an unfinished training has another number.
        FlowError: a worker failed. The message names it.
    """
    if params.train.data_parallel != "multi_worker":
        raise WorkspaceError(
            "params.yaml does not ask for a training on several workers",
            expected="train.data_parallel: multi_worker",
            found=f"train.data_parallel: {params.train.data_parallel}",
            remedy="set it, on all machines",
        )
    if not any(address.is_local for address in addresses):
        raise WorkspaceError("none of the workers is on this machine", found=", ".join(map(str, addresses)))
    if addresses[0].is_local:
        remove_stale_rwlock_entries(Path.cwd())
        _run("repro", "split", show=show)
    unfinished = _Unfinished(params)
    unfinished.require_same_number(len(addresses))
    unfinished.record(len(addresses))
    workers = [_start(number, address, addresses) for number, address in enumerate(addresses) if address.is_local]
    try:
        _watch(workers, show)
    finally:
        for worker in workers:
            signal_group(worker.process, SIGKILL)
    unfinished.remove()


def _run(*arguments: str, show: Show) -> None:
    """Run a DVC command, which ends with this process."""
    process = start_python("pipeline.process_lifetime", "dvc", *arguments, environment={})
    assert process.stdout
    for line in process.stdout:
        if not is_advice(line.rstrip()):
            show(line.rstrip())
    if process.wait():
        raise FlowError(f"dvc {' '.join(arguments)} failed", found=f"exit code {process.returncode}")


def _start(number: int, address: Address, addresses: Sequence[Address]) -> Worker:
    cluster = {"worker": list(map(str, addresses))}
    config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": number}})
    module = ("dvc", "repro", TRAIN) if number == 0 else (f"pipeline.stages.{TRAIN}",)
    process = start_python("pipeline.process_lifetime", *module, environment={"TF_CONFIG": config})
    return Worker(number, address, process)


def _watch(workers: Sequence[Worker], show: Show) -> None:
    """Wait until the training has ended. If a worker fails, raise an error that names it."""
    shown = workers[0]
    readers = [
        threading.Thread(target=_read, args=(worker, show if worker is shown else _ignore), daemon=True)
        for worker in workers
    ]
    for reader in readers:
        reader.start()
    while shown.process.poll() is None and not _failed(workers):
        time.sleep(POLL_SECONDS)
    if failed := _failed(workers):
        time.sleep(TOGETHER_SECONDS)
        # Errors are a consequence of a kill.
        raise _explain(min([*failed, *_failed(workers)], key=lambda worker: (worker.exit_code or 0) >= 0))
    deadline = time.monotonic() + END_SECONDS
    for worker in workers:  # if DVC restored the chief's outputs, they wait for it in vain
        try:
            worker.process.wait(max(0, deadline - time.monotonic()))
        except TimeoutExpired:
            signal_group(worker.process, SIGTERM)
    for reader in readers:
        reader.join(POLL_SECONDS)


def _failed(workers: Sequence[Worker]) -> list[Worker]:
    return [worker for worker in workers if worker.process.poll()]


def _explain(worker: Worker) -> FlowError:
    code = worker.exit_code or 0
    ended = f"was killed by {Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    last = ("\n" + " " * 12).join(worker.lines)
    return FlowError(
        f"{worker} {ended}, so the training stopped",
        found=last if worker.number else "",  # the chief's lines are above
        remedy="run the same command again, with the same workers: it continues from the last complete epoch",
    )


def _read(worker: Worker, show: Show) -> None:
    assert worker.process.stdout
    for line in worker.process.stdout:
        worker.lines.append(line.rstrip())
        if not is_advice(line.rstrip()):
            show(line.rstrip())


def _ignore(_line: str) -> None:
    """Show nothing."""


class _Unfinished:
    """The number of workers of a training that has not finished. A checkpoint is of this number.

    Gradients are added in another order by another number of workers, so the result would be of no number.
    """

    def __init__(self, params: Params) -> None:
        self._file = main_repository() / STATE / "training-workers.json"
        self._training = {
            "params": repr(params.train),
            "splits": [file_digest(path) for path in SPLITS if path.exists()],
        }

    def require_same_number(self, workers: int) -> None:
        """Refuse another number of workers than that of the unfinished training, if it is the same one."""
        former: Any = read_cached_json(self._file) or {}
        checkpoints = self._file.parent.glob("checkpoints/*.npz")
        if former.get("training") != self._training or former["workers"] == workers:
            return
        if any(path.stat().st_mtime >= self._file.stat().st_mtime for path in checkpoints):
            raise WorkspaceError(
                f"an unfinished training cannot continue with {workers} workers",
                expected=f"{former['workers']}, as it started: another number adds the gradients in another order",
                found=f"{workers} workers",
                remedy=f"give {former['workers']} addresses; or start it anew: rm {self._file}",
            )

    def record(self, workers: int) -> None:
        """Write the number of workers."""
        content = {"training": self._training, "workers": workers}
        if read_cached_json(self._file) != content:  # its time is that of the first start
            write_json(self._file, content)

    def remove(self) -> None:
        """Delete the file after the training has finished."""
        self._file.unlink(missing_ok=True)
