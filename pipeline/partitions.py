"""Apply a function to the partitions of some data: in this process, in processes of this machine, or on a cluster.

The order of the results is that of the partitions, so they do not depend on the number of workers. A room that sets
`pipeline.rooms.Room.executor` provides the cluster.
"""

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pkgutil import resolve_name
from typing import Any, Protocol, TypeVar

from pipeline.errors import PipelineError
from pipeline.rooms import find_rooms

AHEAD = 4  # partitions per worker that are being computed, or are computed and not yet used

Partition = TypeVar("Partition")
Result = TypeVar("Result", covariant=True)


class Pending(Protocol[Result]):
    """A call that was submitted, such as a `concurrent.futures.Future`."""

    def result(self) -> Result:
        """Wait for the result. Raises the error of the call, or BrokenExecutor if its worker was lost."""


@dataclass(frozen=True)
class Executor:
    """A started executor."""

    workers: int
    submit: Callable[[Callable[[Any], Any], Any], Pending[Any]]  # of a function and its partition


def map_partitions(
    function: Callable[[Partition], Result], partitions: Iterable[Partition], *, workers: int | None = None
) -> Iterator[Result]:
    """Yield the result of each partition, in the order of the partitions.

    The partitions are read when they are needed, and only a few results are in memory at a time. If the iterator is
    closed or interrupted, partitions that have not started are not computed.

    Args:
        function: a function of a module. It and the partitions are pickled: let them contain small values or paths.
        workers: processes of this machine, if there is no cluster. None: one for each processor. 1: this process. On
            Linux, processes are forked: call this before TensorFlow is imported.

    Raises:
        PipelineError: a worker was lost, such as one that needed too much memory.
    """
    executor = _find_executor()
    if executor is None:
        workers = workers or count_processors()
        if workers == 1:
            yield from map(function, partitions)
            return
        executor = _start_processes(workers)
    with executor as started:
        yield from _in_order(started, function, partitions)


def count_processors() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_executor() -> None:
    """Refuse to continue if an executor is configured that cannot be used. Starts none.

    Raises:
        PipelineError: its package or its certificates are missing.
    """
    _find_executor()


def _find_executor() -> AbstractContextManager[Executor] | None:
    """Return the executor of the first room that has one configured. Entering its context starts it."""
    functions = (resolve_name(room.executor) for room in find_rooms().values() if room.executor)
    return next((executor for function in functions if (executor := function()) is not None), None)


def _in_order(
    executor: Executor, function: Callable[[Partition], Result], partitions: Iterable[Partition]
) -> Iterator[Result]:
    waiting: deque[Pending[Result]] = deque()
    yielded = 0
    rest = iter(partitions)
    try:
        while True:
            for partition in islice(rest, AHEAD * executor.workers - len(waiting)):
                waiting.append(executor.submit(function, partition))
            if not waiting:
                return
            yield waiting.popleft().result()
            yielded += 1
    except BrokenExecutor as error:
        raise PipelineError(
            f"cannot compute partition {yielded + 1} of {function.__qualname__}: a worker ended",
            found=str(error),
            remedy="check whether the workers have enough memory, then run the same command again",
        ) from error


@contextmanager
def _start_processes(workers: int) -> Iterator[Executor]:
    """Start processes on this machine. They end with this process, even after `kill -9`."""
    # Forked processes start fastest. Only on Linux do the system libraries allow it.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, context, _end_with_parent, (os.getpid(),))
    try:
        yield Executor(workers, pool.submit)
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the processes

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
