"""The loop of `pipeline up`: start the parts, restart those that ended or stopped responding, and end all of them.

Each part leads a process group of its own, which gets no signals of the terminal. Its standard input is a pipe that
closes when this process ends, even after `kill -9`: the part then ends too (`pipeline.process_lifetime`).
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipeline import logs
from pipeline.errors import FlowError
from pipeline.flows.prefect_server import ATTACHED_MODULE
from pipeline.redaction import without_password
from pipeline.server_addresses import answers, remove_stack, write_stack
from pipeline.servers.parts import Part, describe

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)

LOOP_SECONDS = 0.2  # between two rounds of the loop
CHECK_SECONDS = 2.0  # between two health checks of a server that responds
UNRESPONSIVE_SECONDS = 180.0  # a server without a response for this time, also at its start, is killed
STOP_SECONDS = 45.0  # until SIGKILL: the runner ends its flow runs first, and each of them its stage
MOST_STARTS, MOST_STARTS_SECONDS = 5, 120.0  # after this number of starts in this time, the next start waits
PAUSE_SECONDS = 60.0
LAST_LINES_SECONDS = 1.0  # to wait for the output of an ended process

_LOGGER = logging.getLogger(__name__)


class SupervisedPart:
    """A part of `pipeline up`, its present process, and the result of its health checks.

    Args:
        needs: the server that must respond before this part starts; without it, this part ends at once.
        secrets: masked in its lines, in addition to the secrets of the environment.
    """

    def __init__(
        self, part: Part, directory: Path, needs: "SupervisedPart | None" = None, secrets: Sequence[str] = ()
    ) -> None:
        self.part, self.needs = part, needs
        self.last_lines: deque[str] = deque(maxlen=3)
        self.process: subprocess.Popen[bytes] | None = None
        self.responds = False  # the present process has passed a health check
        self._directory, self._secrets = directory, secrets
        self._starts: deque[float] = deque(maxlen=MOST_STARTS)
        self._responded = 0.0  # start of the last successful health check
        self._has_responded = False  # this process or one before it

    def supervise(self) -> None:
        """Start the part if it is due, restart it if it has ended, and kill a server that does not respond.

        Raises:
            FlowError: a server did not start.
        """
        if self.process is None:
            if not self._is_paused() and (not self.needs or self.needs.responds):
                self._start()
        elif self.process.poll() is not None:
            self._clear(self.process)
        elif self.part.address:
            self._check_response(self.process)

    def kill(self) -> None:
        """Kill the process and its children: a child of a server would keep its port."""
        if self.process:
            with suppress(ProcessLookupError, PermissionError):  # macOS: a group of zombies
                os.killpg(self.process.pid, signal.SIGKILL)
            if self.process.stdin:
                self.process.stdin.close()

    def stop(self, deadline: float) -> None:
        """Wait for the end of a process that got SIGTERM, and kill what remains of it at the deadline."""
        if self.process:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(max(0.0, deadline - time.monotonic()))
            self.kill()
            self.process.wait()
            self._reader.join(LAST_LINES_SECONDS)

    def take_line(self, line: str) -> None:
        """Write a line of the process to the log."""
        line = without_password(line, *self._secrets)  # a server's traceback may contain the address of its database
        self.last_lines.append(line)
        logs.forward(self.part.name, line)

    def _start(self) -> None:
        self._starts.append(time.monotonic())
        self.process = process = subprocess.Popen(
            [sys.executable, "-m", ATTACHED_MODULE, self.part.module, *self.part.arguments],
            cwd=self._directory,
            env={**self.part.environment, "PYTHONUNBUFFERED": "1", logs.FORWARDED_VARIABLE: "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._reader.start()
        if self.part.address:
            threading.Thread(target=self._check_health, args=(process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        for line in process.stdout or ():
            if line.strip():
                self.take_line(line.decode(errors="replace").rstrip())

    def _check_health(self, process: subprocess.Popen[bytes]) -> None:
        """Run health checks in a thread while the process runs: one that hangs must not stop the loop."""
        while self.process is process:
            start = time.monotonic()
            if answers(f"{self.part.address}{self.part.health}"):
                self._responded = start
            time.sleep(CHECK_SECONDS if self.responds else LOOP_SECONDS)

    def _check_response(self, process: subprocess.Popen[bytes]) -> None:
        if not self.responds and self._responded > self._starts[-1]:
            again = " again" if self._has_responded else ""
            _LOGGER.info("%s responds%s: %s", self.part.name, again, str(self.part.address).removesuffix("/api"))
            self.responds = self._has_responded = True
        elif time.monotonic() > max(self._responded, self._starts[-1]) + UNRESPONSIVE_SECONDS:
            if not self._has_responded:
                raise self._start_error()
            name, seconds = self.part.name, UNRESPONSIVE_SECONDS
            _LOGGER.error("%s (process %s) did not respond for %.0f s: killing it", name, process.pid, seconds)
            self.kill()

    def _clear(self, process: subprocess.Popen[bytes]) -> None:
        """Kill the rest of an ended process, and log when the part starts again."""
        self.kill()
        self._reader.join(LAST_LINES_SECONDS)
        if self.part.address and not self._has_responded:
            raise self._start_error()
        self.process, self.responds = None, False
        restart = "restarting it"
        if self._is_paused():
            restart = f"ended {MOST_STARTS} times in {MOST_STARTS_SECONDS:.0f} s; next start in {PAUSE_SECONDS:.0f} s"
        elif self.needs and not self.needs.responds:
            restart = f"restarting it when {self.needs.part.name} responds"
        name, code = self.part.name, process.returncode
        _LOGGER.warning("%s (process %s) ended with exit code %s; %s", name, process.pid, code, restart)

    def _is_paused(self) -> bool:
        now = time.monotonic()
        recent = [start for start in self._starts if start > now - MOST_STARTS_SECONDS]
        return len(recent) == MOST_STARTS and now < self._starts[-1] + PAUSE_SECONDS

    def _start_error(self) -> FlowError:
        return FlowError(
            f"{self.part.name} did not start",
            expected=f"a response at {self.part.address} within {UNRESPONSIVE_SECONDS:.0f} s",
            found="\n            ".join(self.last_lines) or "it ended without output",
            remedy="fix the problem in its lines above, then: pipeline up",
        )


def run(root: Path, parts: Sequence[Part], secrets: Sequence[str] = ()) -> None:
    """Keep the parts running until a signal, then end them.

    Commands use MLflow's and Prefect's servers once both respond; then the parts that need one of them start.

    Args:
        secrets: masked in the lines of the parts.

    Raises:
        FlowError: a server did not start.
    """
    signals: list[int] = []
    for number in ENDING_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, lambda received, _: signals.append(received))
    servers = [SupervisedPart(part, root, secrets=secrets) for part in parts if part.address and not part.needs]
    by_name = {server.part.name: server for server in servers}
    others = [
        SupervisedPart(part, root, by_name.get(part.needs or ""), secrets) for part in parts if part.name not in by_name
    ]
    supervised = servers
    _LOGGER.info("starting %s; Ctrl-C ends all of them", ", ".join(part.name for part in parts))
    try:
        while not signals:
            for part in supervised:
                part.supervise()
            if supervised is servers and all(server.responds for server in servers):
                write_stack(root, describe(parts))
                _LOGGER.info("`pipeline run` and `dvc repro` use these servers from now on, without configuration")
                supervised = servers + others
            time.sleep(LOOP_SECONDS)
    finally:
        remove_stack(root)
        _LOGGER.info("stopping")
        _stop(others)  # before the servers that they use: Prefect's records how the runner's flow runs end
        _stop(servers)
        _LOGGER.info("all parts have ended")


def _stop(parts: Sequence[SupervisedPart]) -> None:
    for part in parts:
        if part.process:
            part.process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for part in parts:
        part.stop(deadline)
