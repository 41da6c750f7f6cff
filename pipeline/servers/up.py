"""`pipeline up`: start MLflow's server, Prefect's server and the runner, and keep them running.

circus runs in this process, without a socket. It restarts parts that ended and collects their output. This module adds
health checks, a pause after repeated restarts, and the removal of leftover processes. Every part ends when this process
does, even if it is killed (`pipeline.process`).
"""

import asyncio
import errno
import ipaddress
import logging
import os
import shlex
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
from circus.arbiter import Arbiter
from circus.exc import ConflictError
from circus.watcher import Watcher
from tornado.ioloop import IOLoop

from pipeline.allowed_hosts import ANY_ADDRESS, own_names
from pipeline.errors import FlowError, WorkspaceError
from pipeline.flows.prefect_server import ATTACHED
from pipeline.proxies import bypass_proxy
from pipeline.redaction import without_password
from pipeline.servers.mlflow_server import PROTECTION
from pipeline.stack import (
    AUTH_FILE,
    CLIENT_AUTH,
    LOCK,
    SERVER_AUTH,
    Server,
    Stack,
    answers,
    auth_string,
    data_directory,
    is_same_server,
    move_data,
    prefect_home,
    remove_stack,
    write_stack,
)
from pipeline.workspace import lock, main_repository

Show = Callable[[str, str], None]  # takes the name of a part and a line

RUNNER = "pipeline.servers.runner"
OWN = "up"  # the name that marks this module's own lines
PREFECT_PROTECTION = SERVER_AUTH
SHORTEST_PASSWORD = 12  # characters
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)

ASK_SECONDS = 1.0  # to wait for the lock: a command that checks for a `pipeline up` holds it briefly
NOTICE_SECONDS = 1.0  # until circus detects that a part has ended
CHECK_SECONDS = 2.0  # between two health checks
SILENT_SECONDS = 180.0  # a server that does not respond for this time, at its start or later, is ended
STOP_SECONDS = 45.0  # for a part to end by itself: the runner ends its flow runs first, and each of them its stage
MOST_STARTS, SPELL_SECONDS = 5, 120.0  # after this number of starts in this time, the next start waits
PAUSE_SECONDS = 60.0


@dataclass(frozen=True)
class Listening:
    """Host, ports and allowed host names of the servers."""

    host: str = "127.0.0.1"
    mlflow_port: int = 5000
    prefect_port: int = 4200
    allowed_hosts: str = ""  # this machine's names for other machines, separated by commas

    @property
    def is_open(self) -> bool:
        """True if other machines can reach the servers."""
        if self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True

    @property
    def mlflow(self) -> str:
        """MLflow's address for the processes of this machine."""
        return f"http://{self._own}:{self.mlflow_port}"

    @property
    def prefect(self) -> str:
        """The address of Prefect's API for the processes of this machine."""
        return f"http://{self._own}:{self.prefect_port}/api"

    @property
    def _own(self) -> str:
        own = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{own}]" if ":" in own else own


@dataclass(frozen=True)
class Part:
    """One process of the stack: `python -m MODULE ARGUMENTS`."""

    name: Literal["mlflow", "prefect", "runner"]
    module: str
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    address: str | None = None  # for clients; None if the part is no server


def serve(
    workspace: Path, listening: Listening, *, only: Server | None = None, data: Path | None = None, show: Show
) -> None:
    """Start the parts, and keep them running until a signal.

    Args:
        only: the one server to start, without the runner; None starts all parts.
        data: the new data directory of the servers and of commands that run without them; None keeps the present one.
        show: called with every line that a part or this module prints.

    Raises:
        WorkspaceError: another `pipeline up` runs in this project, or another project's uses the same Prefect home.
        OSError: the data directory cannot be created.
        FlowError: a port is in use, an allowed host is not a host name, other machines can reach a server without a
            password, or a server does not start.
    """
    own_names(listening.host, listening.allowed_hosts)  # raises if one is not a host name
    root = main_repository(workspace)
    bypass_proxy(listening.host)
    parts = plan(listening, only)
    if not parts:
        raise FlowError(
            "there is nothing to start",
            found="MLFLOW_TRACKING_URI or PREFECT_API_URL names a server that runs elsewhere",
            remedy="unset it, or use that server",
        )
    if listening.mlflow_port == listening.prefect_port:
        raise FlowError("MLflow and Prefect cannot share a port", remedy="pipeline up --mlflow-port 5001")
    if listening.is_open:
        require_protection(parts)
    remedy = "use its servers; or end it, with Ctrl-C there or by ending that process"
    with ExitStack() as held:
        held.enter_context(lock(LOCK, wait=ASK_SECONDS, remedy=remedy, root=root))
        remove_stack(root)  # left by a killed `pipeline up`
        for part in parts:
            if part.address:
                require_free_port(part.arguments[0], int(part.arguments[1]), f"--{part.name}-port")
            if part.name == "prefect":
                held.enter_context(_only_project(prefect_home(root, data)))
        if data:
            former = data_directory(root)
            data.mkdir(parents=True, exist_ok=True)
            move_data(root, data)
            if data != former:
                show(OWN, f"data goes to {data} from now on; what was recorded before stays in {former}")
        secrets: list[str] = []
        if any(part.name == "prefect" for part in parts) and not os.environ.get(PREFECT_PROTECTION):
            secrets.append(auth_string(root))
            show(OWN, f"Prefect's pages ask for a password once: paste the line in {root / AUTH_FILE}")
        if listening.host in ANY_ADDRESS and not listening.allowed_hosts.strip(", "):
            show(
                OWN,
                "requests from other machines are refused: no name of this machine is listed. List the names in use: "
                f"pipeline up --host {listening.host} --allowed-hosts gpu-box.lan,192.168.1.20",
            )
        _tie_standard_input()
        asyncio.run(_Stack(root, parts, show, secrets).run())


@contextmanager
def _only_project(home: Path | None) -> Iterator[None]:
    """Lock Prefect's home for this project: the deployments and schedules in it do not name their project."""
    home = Path(os.environ.get("PREFECT_HOME") or home or "~/.prefect").expanduser()
    with ExitStack() as held:
        try:
            held.enter_context(lock(LOCK, wait=ASK_SECONDS, remedy="", root=home))
        except WorkspaceError as other:
            raise WorkspaceError(
                f"another project's `pipeline up` works with Prefect's home {home}",
                expected="one at a time: schedules are kept there, and whichever project comes first would run them",
                found=other.found,
                remedy="end that process; or give this project's data a place, and Prefect a home, of their own: "
                "pipeline up --data DIRECTORY, with PREFECT_HOME unset",
            ) from None
        yield


def plan(listening: Listening, only: Server | None = None) -> list[Part]:
    """List the parts to start, without those that `only` excludes and servers elsewhere that the environment names."""
    environment = dict(os.environ)
    configured = environment.get("MLFLOW_TRACKING_URI", "")
    if configured.startswith("http"):
        del environment["MLFLOW_TRACKING_URI"]  # otherwise the server would be a client of itself
    host = listening.host
    parts = []
    own: dict[str, str] = {}  # so that the runner uses the servers that are started here
    is_own_mlflow = is_same_server(configured, listening.mlflow)
    if only != "prefect" and (not configured.startswith("http") or is_own_mlflow):
        where = (host, str(listening.mlflow_port), listening.allowed_hosts)
        parts.append(Part("mlflow", "pipeline.servers.mlflow_server", where, environment, listening.mlflow))
        if is_own_mlflow:
            own["MLFLOW_TRACKING_URI"] = listening.mlflow
    prefect = os.environ.get("PREFECT_API_URL") or listening.prefect
    if only != "mlflow" and is_same_server(prefect, listening.prefect):
        at = (host, str(listening.prefect_port), listening.allowed_hosts)
        parts.append(Part("prefect", "pipeline.flows.prefect_server", at, dict(os.environ), listening.prefect))
        own["PREFECT_API_URL"] = listening.prefect
        if password := os.environ.get(PREFECT_PROTECTION):
            own[CLIENT_AUTH] = password  # replaces the environment's, which may be for another server
    if only is None:
        parts.append(Part("runner", RUNNER, environment=client_credentials(os.environ) | os.environ | own))
    return parts


def describe(parts: Sequence[Part]) -> Stack:
    """Describe the servers of this process for the commands that use them."""
    served = {part.name: part for part in parts if part.address}
    return Stack(
        os.getpid(),
        **{name: part.address for name, part in served.items()},
        auth_from_file="prefect" in served and not served["prefect"].environment.get(PREFECT_PROTECTION),
    )


def client_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """Derive the clients' credentials from those of the servers."""
    pairs = {
        "MLFLOW_TRACKING_USERNAME": environment.get("MLFLOW_AUTH_ADMIN_USERNAME", "admin"),
        "MLFLOW_TRACKING_PASSWORD": environment.get("MLFLOW_AUTH_ADMIN_PASSWORD"),
        "PREFECT_API_AUTH_STRING": environment.get(PREFECT_PROTECTION),
    }
    return {name: value for name, value in pairs.items() if value}


def require_protection(parts: Sequence[Part]) -> None:
    """Refuse to serve other machines without a password of sufficient length.

    Raises:
        FlowError: names the variables that are missing or whose passwords are too short.
    """
    names = {part.name for part in parts}
    needed = [*(PROTECTION if "mlflow" in names else ()), *([PREFECT_PROTECTION] if "prefect" in names else [])]
    if missing := [name for name in needed if not os.environ.get(name)]:
        raise FlowError(
            "other machines could use these servers without a password",
            expected=f"in the environment: {', '.join(needed)}",
            found=f"{', '.join(missing)} not set",
            remedy="set them (docs/servers.md), or leave --host out: the servers are then for this machine only",
        )
    passwords = {name: os.environ[name] for name in needed}
    if PREFECT_PROTECTION in passwords:  # USER:PASSWORD
        passwords[PREFECT_PROTECTION] = passwords[PREFECT_PROTECTION].split(":", 1)[-1]
    if weak := [
        f"{len(text)} characters in {name}" for name, text in passwords.items() if len(text) < SHORTEST_PASSWORD
    ]:
        raise FlowError(
            "a password that other machines could guess",
            expected=f"{SHORTEST_PASSWORD} characters or more",
            found=", ".join(weak),
            remedy="set a longer one: python -c 'import secrets; print(secrets.token_urlsafe())'",
        )


def require_free_port(host: str, port: int, option: str) -> None:
    """Refuse a port on which this process cannot listen.

    Raises:
        FlowError: names the process that uses it, and the option for another port.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        is_taken = error.errno == errno.EADDRINUSE
        raise FlowError(
            f"port {port} is in use" if is_taken else f"cannot listen on {host}, port {port}",
            found=find_owner(port) if is_taken else str(error.strerror),
            remedy=f"end that process, or choose another port: pipeline up {option} {port + 1}"
            if is_taken
            else "choose an address of this machine with --host, and a port above 1023",
        ) from None


def find_owner(port: int) -> str:
    """Find the process that listens on a port of this machine: its name, id and command."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                process = psutil.Process(connection.pid)
                return f"{process.name()}, process {process.pid}: {shlex.join(process.cmdline())[:200]}"
    return "a process that this user cannot see"


def _tie_standard_input() -> None:
    """Replace standard input, which the parts inherit, by a pipe that closes when this process ends."""
    read, _kept_open = os.pipe()
    os.dup2(read, 0)
    os.close(read)


class _Lines:
    """Split the chunks of output that circus passes into lines."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take, self._rest = take, b""

    def __call__(self, piece: Mapping[str, Any]) -> None:
        *lines, self._rest = (self._rest + piece["data"]).split(b"\n")
        for line in lines:
            if line.strip():
                self._take(line.decode(errors="replace").rstrip())


class _Member:
    """A part that is kept running.

    Args:
        needs: the part that must respond before this one starts; without it, this one ends at once.
        secrets: masked in its lines, in addition to the secrets of the environment.
    """

    def __init__(
        self, part: Part, workspace: Path, show: Show, needs: "_Member | None", secrets: Sequence[str]
    ) -> None:
        self.part, self.needs, self.secrets = part, needs, secrets
        self.pid: int | None = None  # of the last process started
        self.has_answered = self.is_well = part.address is None
        self.failed = False  # it ended before its first response
        self.starts: deque[float] = deque(maxlen=MOST_STARTS)
        self.last_lines: deque[str] = deque(maxlen=3)
        self._show = show
        self.watcher = Watcher(
            part.name,
            shlex.quote(sys.executable),
            ["-m", ATTACHED, part.module, *part.arguments],
            working_dir=str(workspace),
            env={**part.environment, "PYTHONUNBUFFERED": "1"},
            stdout_stream={"stream": _Lines(self._take)},
            stderr_stream={"stream": _Lines(self._take)},
            close_child_stdin=False,
            graceful_timeout=STOP_SECONDS,
            autostart=part.address is not None,
            hooks={"before_spawn": (self._before_start, False), "after_spawn": (self._after_start, False)},
        )

    def is_due(self) -> bool:
        """True if it may start now: the part that it needs responds, and it has not ended too often recently."""
        return not (self.needs and not self.needs.is_well) and not self._keeps_ending()

    async def answers(self) -> bool:
        """Run the health check of a server. Returns True for a part that is no server."""
        return self.part.address is None or await asyncio.to_thread(answers, f"{self.part.address}/health")

    def kill(self) -> None:
        """Kill the rest of its process group: remaining children of a server would keep its port."""
        if self.pid is not None:
            with suppress(ProcessLookupError, PermissionError):  # macOS: a group of zombies
                os.killpg(self.pid, signal.SIGKILL)

    def _keeps_ending(self) -> bool:
        recent = [start for start in self.starts if start > time.monotonic() - SPELL_SECONDS]
        return len(recent) == MOST_STARTS and time.monotonic() < self.starts[-1] + PAUSE_SECONDS

    def _take(self, line: str) -> None:
        line = without_password(line, *self.secrets)  # a server's traceback may contain the address of its database
        self.last_lines.append(line)
        self._show(self.part.name, line)

    def _before_start(self, **_: object) -> bool:
        if self.pid is not None:
            self.kill()
            self.is_well = False
            if not self.has_answered:
                self.failed = True
                return False
            again = "starting it again"
            if self._keeps_ending():
                again = f"it keeps doing so: next try in {PAUSE_SECONDS:.0f} s"
            elif self.needs and not self.needs.is_well:
                again = f"starting it again when {self.needs.part.name} answers"
            self._show(OWN, f"{self.part.name} (process {self.pid}) has ended; {again}")
            self.pid = None
        return self.is_due()

    def _after_start(self, pid: int, **_: object) -> bool:
        self.pid = pid
        self.starts.append(time.monotonic())
        return True


class _Stack:
    """The parts of `pipeline up`, from start to end."""

    def __init__(self, root: Path, parts: Sequence[Part], show: Show, secrets: Sequence[str]) -> None:
        self.root, self.show = root, show
        self.parts, self.secrets = parts, secrets

    async def run(self) -> None:
        """Start the parts, monitor them, and end them after a signal.

        Raises:
            FlowError: a server did not start.
        """
        ending = asyncio.Event()
        ignores_hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # under nohup
        members: dict[str, _Member] = {}
        for part in self.parts:
            needs = members.get("prefect") if part.name == "runner" else None
            members[part.name] = _Member(part, self.root, self.show, needs, self.secrets)
        self.members = list(members.values())
        watchers = [member.watcher for member in self.members]
        arbiter = Arbiter(watchers, "inproc://control", "inproc://events", NOTICE_SECONDS, loop=IOLoop.current())
        for number in ENDING_SIGNALS:  # replaces the handlers of circus
            asyncio.get_running_loop().add_signal_handler(number, ending.set)
        if ignores_hangup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.show(OWN, f"starting {', '.join(part.name for part in self.parts)}; Ctrl-C ends all of it")
        logging.getLogger("tornado.application").addFilter(_is_no_conflict)
        await arbiter.start()
        work = asyncio.create_task(self._look_after())
        signalled = asyncio.create_task(ending.wait())
        try:
            await asyncio.wait([work, signalled], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            work.cancel()
            signalled.cancel()
            remove_stack(self.root)
            self.show(OWN, "ending")
            for member in self.members:
                if member.part.address is None and not member.watcher.is_stopped():
                    await _in_turn(member.watcher.stop)  # before the servers, which record how its flow runs end
            await _in_turn(arbiter.stop)
            for member in self.members:
                member.kill()
            await asyncio.sleep(0)  # circus closes its resources in the next turn of the event loop
            self.show(OWN, "all have ended")

    async def _look_after(self) -> None:
        await asyncio.gather(*(self._wait_for_answer(member) for member in self.members if member.part.address))
        write_stack(self.root, describe(self.parts))
        self.show(OWN, "`pipeline run` and `dvc repro` use them from now on; nothing needs to be set")
        async with asyncio.TaskGroup() as group:
            for member in self.members:
                group.create_task(self._watch(member))

    async def _wait_for_answer(self, member: _Member) -> None:
        deadline = time.monotonic() + SILENT_SECONDS
        while not await member.answers():
            if member.failed or time.monotonic() > deadline:
                raise FlowError(
                    f"{member.part.name} did not start",
                    expected=f"an answer at {member.part.address} within {SILENT_SECONDS:.0f} s",
                    found="\n            ".join(member.last_lines) or "it ended without a word",
                    remedy="mend what its lines above say, then: pipeline up",
                )
            await asyncio.sleep(0.1)
        member.has_answered = member.is_well = True
        self.show(OWN, f"{member.part.name} answers: {str(member.part.address).removesuffix('/api')}")

    async def _watch(self, member: _Member) -> None:
        """Start a stopped part when it is due, and kill a server that stopped responding."""
        last_answer = time.monotonic()
        while True:
            if member.watcher.is_stopped():
                last_answer = time.monotonic()
                if member.is_due():
                    await _in_turn(member.watcher.start)
            elif await member.answers():
                last_answer = time.monotonic()
                if not member.is_well and member.part.address:
                    self.show(OWN, f"{member.part.name} answers again")
                member.is_well = True
            elif time.monotonic() > max(last_answer, *member.starts) + SILENT_SECONDS:
                self.show(OWN, f"{member.part.name} has not answered for {SILENT_SECONDS:.0f} s: ending it")
                member.kill()
            await asyncio.sleep(CHECK_SECONDS)


def _is_no_conflict(record: logging.LogRecord) -> bool:
    """Filter out the errors that circus logs when it checks its processes while it is busy."""
    return not (record.exc_info and isinstance(record.exc_info[1], ConflictError))


async def _in_turn(ask: Callable[[], Awaitable[object]]) -> None:
    """Call a method of circus, and retry while it is busy."""
    while True:
        try:
            await ask()
            return
        except ConflictError:
            await asyncio.sleep(NOTICE_SECONDS / 10)
