"""Send partitions to the workers of a cluster.

Only workers with the code, the packages and the files of this process get work.
"""

import atexit
import os
import pickle
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from distributed import Client, Future
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker
from distributed.worker import get_worker

from pipeline.errors import WorkspaceError
from pipeline.partitions import Executor
from pipeline.scale.certificates import read_certificate
from pipeline.scale.local import start_workers, stop_workers
from pipeline.scale.processes import LOOPBACK, silence
from pipeline.scale.software import Software, describe_software
from pipeline.workspace import STATE, make_state

CONNECT_SECONDS = 10
NO_WORKER_SECONDS = 60  # during which a run waits for workers that were lost
POLL_SECONDS = 5


@contextmanager
def use_cluster(address: str) -> Iterator[Executor]:
    """Use the cluster of a scheduler.

    Raises:
        WorkspaceError: it cannot be reached, has no workers, or its workers differ from this process.
    """
    yield _executor(connect(address))


@contextmanager
def use_local_workers(workers: int) -> Iterator[Executor]:
    """Use workers of this machine. They are started once in a process, and end with it."""
    yield _executor(_start(workers))


@cache
def connect(address: str) -> Client:
    """Connect to a scheduler, with the certificate. The connection lasts as long as this process.

    Raises:
        WorkspaceError: it cannot be reached, or has another certificate.
    """
    silence()
    security = read_certificate()
    try:
        client = Client(
            address,
            security=security,
            timeout=CONNECT_SECONDS,
            set_as_default=False,
            direct_to_workers=LOOPBACK in address or None,
        )
    except (OSError, TimeoutError) as error:
        raise WorkspaceError(
            f"cannot connect to the cluster at {address}",
            found=str(error),
            remedy="check that its scheduler is running, and that its certificate is the same here",
            temporary=True,
        ) from error
    atexit.register(client.close)
    return client


@cache
def _start(workers: int) -> Client:
    address, process = start_workers(workers)
    atexit.register(stop_workers, process)
    client = connect(address)
    client.wait_for_workers(workers, timeout=NO_WORKER_SECONDS)
    return client


def _executor(client: Client) -> Executor:
    with suppress(TimeoutError):
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)  # they may have been killed, and start again
    workers = inspect_workers(client)
    require_same_software(workers)
    digest, directory = describe_software().digest, os.getcwd()

    def submit(function: Callable[[Any], Any], partition: Any) -> _Pending:
        call = pickle.dumps((function, partition), pickle.HIGHEST_PROTOCOL)
        return _Pending(client, lambda: client.submit(compute, call, digest, directory, pure=False))

    return Executor(sum(worker.threads for worker in workers), submit)


def compute(call: bytes, digest: str, directory: str) -> Any:
    """Compute a partition. This runs on the workers, also on those that joined after the start.

    Args:
        call: a function and its argument, pickled.
        digest: of the software of the process that sends the call.
        directory: its current directory.
    """
    if describe_software().digest != digest:
        raise WorkspaceError(
            f"the worker {get_worker().address} has other code or packages than this process", remedy="restart it"
        )
    if os.getcwd() != directory:
        if get_worker().state.nthreads > 1:  # the threads of a process share its directory
            raise WorkspaceError(f"the worker {get_worker().address} has several threads", expected="one thread")
        os.chdir(directory)
    function, partition = pickle.loads(call)
    return function(partition)


@dataclass(frozen=True)
class WorkerFacts:
    """A worker of the cluster."""

    address: str
    threads: int
    problem: str  # why it cannot work for this process; empty if it can
    differences: tuple[str, ...] = ()


def inspect_workers(client: Client) -> list[WorkerFacts]:
    """Ask all workers for their software, and whether they see the files of this checkout."""
    threads: dict[str, int] = client.nthreads()
    probe = make_state().absolute() / f"dask-probe-{secrets.token_hex(8)}"
    probe.touch()
    try:
        answers = client.run(_describe_worker, str(probe), on_error="return")
    except (OSError, CommClosedError) as error:
        raise BrokenExecutor(str(error)) from error
    finally:
        probe.unlink(missing_ok=True)
    return [_judge(address, threads.get(address, 1), answer) for address, answer in sorted(answers.items())]


def require_same_software(workers: list[WorkerFacts]) -> None:
    """Refuse a cluster without workers, and one with a worker that differs.

    Raises:
        WorkspaceError: names the worker and the differences.
    """
    if not workers:
        raise WorkspaceError(
            "the cluster has no workers", remedy="start some: pipeline scale worker tls://HOST:PORT", temporary=True
        )
    for worker in workers:
        if worker.problem:
            raise WorkspaceError(
                f"the worker {worker.address} {worker.problem}",
                expected="the code, the versions and the files of this process",
                found="; ".join(worker.differences),
                remedy="update its checkout and its packages, and restart it",
            )


def _describe_worker(probe: str) -> tuple[Software, bool]:
    return describe_software(), Path(probe).is_file()


def _judge(address: str, threads: int, answer: Any) -> WorkerFacts:
    if not isinstance(answer, tuple):
        return WorkerFacts(address, threads, "cannot import this project", (str(answer),))
    software, sees_files = answer
    if differences := describe_software().find_differences(software):
        return WorkerFacts(address, threads, "has other code or packages", tuple(differences))
    if not sees_files:
        found = f"no {STATE} of {Path.cwd()}"
        return WorkerFacts(address, threads, "does not have the files of this checkout at the same path", (found,))
    return WorkerFacts(address, threads, "")


class _Pending:
    """A call that a worker computes. It is cancelled if nothing refers to it any more."""

    def __init__(self, client: Client, submit: Callable[[], Future]) -> None:
        self._client, self._submit, self._future = client, submit, submit()

    def result(self) -> Any:
        """Wait for the result.

        Raises:
            BrokenExecutor: the workers that tried it ended, no worker is left, or the scheduler ended.
        """
        try:
            return self._wait()
        except KilledWorker:
            self._future = self._submit()  # another partition at the same workers may have ended them
        try:
            return self._wait()
        except KilledWorker as error:
            attempts, last = 2 * (error.allowed_failures + 1), error.last_worker.address
            raise BrokenExecutor(f"{attempts} workers ended while they computed it, the last one at {last}") from error

    def _wait(self) -> Any:
        waited = 0
        try:
            while waited < NO_WORKER_SECONDS:
                try:
                    return self._future.result(timeout=POLL_SECONDS)
                except TimeoutError:
                    if self._future.done():  # now, or with this error of the function
                        return self._future.result()
                waited = 0 if self._client.nthreads() else waited + POLL_SECONDS
        except (CancelledError, CommClosedError) as error:
            if self._future.status == "error":  # of the function
                raise
            raise BrokenExecutor("the connection to the scheduler was lost") from error
        raise BrokenExecutor(f"the cluster has had no workers for {waited} seconds")
