"""The worker processes of a sweep on this machine. They share its cores, and killed ones are replaced."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import TEMPORARY_FAILURE, FlowError
from pipeline.partitions import count_processors
from pipeline.search.claims import is_finished
from pipeline.search.store import directory, get_all

if TYPE_CHECKING:
    from optuna import Study

POLL_SECONDS = 0.2
STOP_SECONDS = 20  # for a worker to end after SIGTERM
MOST_DEATHS = 5  # killed workers without a finished trial in between, after which the sweep stops
MOST_TRIALS = 100  # of a process: TensorFlow keeps about 5 MB of each training until its process ends
LOG_LINES = 15
THREADS = "TF_NUM_INTRAOP_THREADS"  # of an operation; TensorFlow reads it


@dataclass(frozen=True)
class Workers:
    """How many workers this machine runs, and until when they start trials."""

    count: int
    until: float = float("inf")  # seconds since 1970

    @property
    def threads(self) -> int:
        """Threads of each worker: TF_NUM_INTRAOP_THREADS, or else the cores of this machine, divided."""
        wanted = os.environ.get(THREADS, "")
        if wanted.isdigit() and int(wanted):
            return int(wanted)
        return max(1, count_processors() // self.count)


def supervise(study: "Study", workers: Workers, on_poll: Callable[[], None] = lambda: None) -> None:
    """Run workers until the sweep is finished or the time is over. Killed workers are replaced.

    Raises:
        FlowError: the workers fail.
    """
    deaths, finished = 0, _count_finished(study)
    with _running(study.study_name, workers) as processes:
        while processes:
            time.sleep(POLL_SECONDS)
            on_poll()
            for place, process in list(processes.items()):
                code = process.poll()
                if code is None:
                    continue
                del processes[place]
                if code > 0:
                    raise _failure(study.study_name, place, code)
                if code < 0:  # by a signal: killed, or out of memory
                    now = _count_finished(study)
                    deaths, finished = (deaths + 1 if now == finished else 1), now
                    if deaths >= MOST_DEATHS:
                        raise _failure(study.study_name, place, code)
                if code < 0 or (time.time() < workers.until and not is_finished(study)):
                    processes[place] = _start(study.study_name, place, workers)


@contextmanager
def _running(name: str, workers: Workers) -> Iterator[dict[int, "subprocess.Popen[bytes]"]]:
    """Start the workers, and end them with the block. Yields those that run, by their place."""
    processes = {place: _start(name, place, workers) for place in range(workers.count)}
    try:
        yield processes
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(name: str, place: int, workers: Workers) -> "subprocess.Popen[bytes]":
    """Start a worker, which ends with this process: its standard input is a pipe."""
    module = ["pipeline.process_lifetime", "pipeline.search.worker", name, "--most", str(MOST_TRIALS)]
    until = [] if workers.until == float("inf") else ["--until", str(workers.until)]
    threads = {name: str(workers.threads) for name in (THREADS, "TF_NUM_INTEROP_THREADS")}
    log = _log(name, place)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *module, *until],
            env=os.environ | threads | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _log(name: str, place: int) -> Path:
    return directory(name.partition("/")[0]) / f"worker-{place + 1}.log"


def _failure(name: str, place: int, code: int) -> FlowError:
    log = _log(name, place)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
    return FlowError(
        f"worker {place + 1} of the sweep {name} ended with {how}",
        found="\n             ".join(lines),
        remedy=f"correct it, then run the same command again: finished trials are kept. The whole log: {log}",
        temporary=code == TEMPORARY_FAILURE,
    )


def _count_finished(study: "Study") -> int:
    return sum(trial.state.is_finished() for trial in get_all(study))
