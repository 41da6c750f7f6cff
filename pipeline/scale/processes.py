"""Dask's scheduler and workers as this project starts them: TLS, one thread each, no web server."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import dask
from distributed import Nanny, Scheduler, SpecCluster, Worker
from distributed.comm import get_address_host_port
from distributed.security import Security
from distributed.utils import get_ip

from pipeline.scale.executor import IS_WORKER
from pipeline.scale.software import describe_software
from pipeline.workspace import STATE, main_repository

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
CONFIG = {
    "distributed.scheduler.allowed-failures": 1,  # workers that may end during a partition; it is submitted twice
    "distributed.scheduler.worker-saturation": 1.0,  # few partitions wait at a worker: its end is not blamed on them
    "distributed.nanny.pre-spawn-environ": {},  # these would also be set in this process
    "distributed.admin.tick": {"interval": "5s", "limit": "1h", "cycle": "5s"},  # no warnings about a busy machine
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.worker.profile.enabled": False,
    "distributed.worker.use-file-locking": False,
    # Nothing is written to disk and no worker pauses: the results in memory are few.
    **{f"distributed.worker.memory.{limit}": False for limit in ("target", "spill", "pause", "terminate")},
}


class QuietScheduler(Scheduler):
    """A scheduler without its web server, which has no authentication."""

    def start_http_server(self, *_arguments: Any, **_options: Any) -> None:
        """Start nothing."""


class QuietWorker(Worker):
    """A worker without its web server, which has no authentication. It remembers the software it was started with."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        silence()
        describe_software()
        super().__init__(*arguments, **options)

    def start_http_server(self, *_arguments: Any, **_options: Any) -> None:
        """Start nothing."""


def silence() -> None:
    """Configure Dask in this process. Its log messages are about states that it recovers from."""
    dask.config.set(CONFIG | {"temporary-directory": str(main_repository() / STATE / "dask")})
    for name in ("distributed", *logging.root.manager.loggerDict):
        if name.split(".")[0] in ("distributed", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def start_cluster(workers: int, security: Security, *, host: str = LOOPBACK, port: int = 0) -> SpecCluster:
    """Start a scheduler and workers on this machine. They end with this process, even after `kill -9`.

    Raises:
        OSError: the port is in use.
    """
    silence()
    scheduler = {
        "cls": QuietScheduler,
        "options": {"host": host, "port": port, "protocol": "tls://", "security": security, "dashboard": False},
    }
    worker = {"cls": Nanny, "options": worker_options(security, None if host == EVERYWHERE else host)}
    return SpecCluster(dict.fromkeys(range(workers), worker), scheduler, security=security, silence_logs=False)


def join(address: str, workers: int, security: Security, report: Callable[[], None]) -> None:
    """Start workers for a scheduler, and wait until it ends.

    Args:
        report: called when they have joined.

    Raises:
        WorkspaceError: the scheduler cannot be reached.
    """
    silence()

    async def serve() -> None:
        scheduler, port = get_address_host_port(address)
        host = get_ip(scheduler, port)  # the address of this machine in the scheduler's network
        nannies = [Nanny(address, **worker_options(security, host)) for _ in range(workers)]
        try:
            await asyncio.gather(*nannies)
            report()
            await asyncio.gather(*(nanny.finished() for nanny in nannies))
        finally:
            await asyncio.gather(*(nanny.close() for nanny in nannies))

    asyncio.run(serve())


def worker_options(security: Security, host: str | None) -> dict[str, Any]:
    """Return the options of a `Nanny`, the process that starts a worker, and starts it again if it was killed.

    Args:
        host: the address to listen on. None: all of this machine.
    """
    return {
        "host": host,
        "worker_class": QuietWorker,
        "nthreads": 1,
        "memory_limit": 0,
        "security": security,
        "protocol": "tls://",
        "env": {IS_WORKER: "1"} | dict.fromkeys(THREADS, "1"),
    }
