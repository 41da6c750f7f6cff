"""The main process of `pipeline serve`: it opens the port, and keeps the answering processes and the resolver running.

All of them end with it: their standard input is a pipe that closes when it ends, even after `kill -9`.
"""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from pipeline.serving.errors import ServeError
from pipeline.serving.settings import (
    METRICS_VARIABLE,
    NUMBER_VARIABLE,
    SOCKET_VARIABLE,
    VARIABLE,
    ServeSettings,
    dump_settings,
)

LOOP_SECONDS = 0.1
STOP_SECONDS = 30.0  # until SIGKILL: longer than a worker waits for its requests
PAUSE_SECONDS, QUICK_SECONDS = 2.0, 5.0  # before a process that ended so soon after its start is started again
MOST_QUICK_ENDS = 5
STUCK_SECONDS = 60.0  # without a word in its file, a resolver is killed
BACKLOG = 2048
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_LOGGER = logging.getLogger(__name__)


class Child:
    """A process that is restarted when it ends."""

    def __init__(self, title: str, module: str, environment: Mapping[str, str], pass_fds: tuple[int, ...] = ()) -> None:
        self.title, self._module, self._environment, self._fds = title, module, environment, pass_fds
        self.process: subprocess.Popen[bytes] | None = None
        self.started, self._not_before = 0.0, 0.0
        self.quick_ends = 0  # one after the other

    def supervise(self) -> int | None:
        """Start the process if it is due. Returns the id of a process that has just ended."""
        if self.process is None:
            if time.monotonic() >= self._not_before:
                self._start()
            return None
        if (code := self.process.poll()) is None:
            return None
        ended, self.process = self.process.pid, None
        is_quick = time.monotonic() < self.started + QUICK_SECONDS
        self.quick_ends = self.quick_ends + 1 if is_quick else 0
        self._not_before = time.monotonic() + PAUSE_SECONDS * is_quick
        _LOGGER.warning("the %s (process %s) ended with exit code %s; restarting it", self.title, ended, code)
        return ended

    def end(self) -> None:
        """Ask the process to end."""
        if self.process and self.process.poll() is None:
            self.process.terminate()

    def wait(self, deadline: float) -> None:
        """Wait for its end, and kill it at the deadline."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()

    def kill(self) -> None:
        """Kill the process."""
        if self.process:
            self.process.kill()

    def _start(self) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.process_lifetime", self._module],
            env={**os.environ, **self._environment},
            stdin=subprocess.PIPE,
            pass_fds=self._fds,
            start_new_session=True,
        )


def serve(settings: ServeSettings) -> None:
    """Answer until a signal, then end the processes: they finish the requests in flight.

    Raises:
        ServeError: the address cannot be listened on, or no process that answers stays alive.
    """
    signals: list[int] = []
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, lambda received, _: signals.append(received))
    metrics = settings.folder / f"metrics-{settings.port}"
    with listen(settings.host, settings.port) as listening:
        shutil.rmtree(metrics, ignore_errors=True)
        metrics.mkdir(parents=True)
        workers, resolver = _create_children(settings, listening, metrics)
        children = [resolver, *workers]  # the workers wait for the first answer of the resolver
        try:
            while not signals:
                for child in children:
                    if ended := child.supervise():
                        mark_process_dead(ended, str(metrics))
                _require_start(workers)
                _check_resolver(settings, resolver)
                time.sleep(LOOP_SECONDS)
        finally:
            _LOGGER.info("ending: the requests in flight are answered")
            deadline = time.monotonic() + STOP_SECONDS
            for child in children:
                child.end()
            for child in children:
                child.wait(deadline)
            shutil.rmtree(metrics, ignore_errors=True)


def listen(host: str, port: int) -> socket.socket:
    """Open the port. The processes that answer share it.

    Raises:
        ServeError: it is in use, or the address is not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ServeError(
            f"cannot listen on {host} port {port}",
            found=error.strerror or str(error),
            remedy="end the process that uses the port, or choose another with --port",
        ) from None


def _create_children(settings: ServeSettings, listening: socket.socket, metrics: Path) -> tuple[list[Child], Child]:
    shared = {VARIABLE: dump_settings(settings), "PYTHONUNBUFFERED": "1"}
    number = listening.fileno()
    workers = [
        Child(
            f"answering process {place}",
            "pipeline.serving.worker",
            {**shared, METRICS_VARIABLE: str(metrics), SOCKET_VARIABLE: str(number), NUMBER_VARIABLE: str(place)},
            (number,),
        )
        for place in range(settings.workers)
    ]
    return workers, Child("resolver", "pipeline.serving.resolver", shared)


def _require_start(workers: Sequence[Child]) -> None:
    """Give up if no process that answers stays alive.

    Raises:
        ServeError: naming the first of them.
    """
    if all(worker.quick_ends >= MOST_QUICK_ENDS for worker in workers):
        raise ServeError(
            f"the {workers[0].title} ended {MOST_QUICK_ENDS} times right after its start",
            expected="a process that answers",
            remedy="fix the problem in its lines above, then: pipeline serve",
        )


def _check_resolver(settings: ServeSettings, resolver: Child) -> None:
    """Kill a resolver that hangs; it is then restarted."""
    try:
        written = time.time() - settings.current_file.stat().st_mtime
    except FileNotFoundError:
        written = STUCK_SECONDS + 1
    if written > STUCK_SECONDS and time.monotonic() > resolver.started + STUCK_SECONDS and resolver.process:
        _LOGGER.error("the resolver has written nothing for %.0f s: killing it", STUCK_SECONDS)
        resolver.kill()
