"""The Prefect server of a run: the one that is configured, that of `pipeline up`, or a temporary one of the run's own.

Prefect can start a temporary server by itself, but imports all of the server into the flow's own process first. Here it
starts before anything else, in a process of its own, and takes its 5 s (15 s when its database is new) beside the other
preparations. It ends when the run's process does, however that happens.

`python -m pipeline.flows.prefect_server SOCKET` is that process. It ends at once when a profile or `prefect.toml` names
a server: only Prefect knows all the places, and asking it in the flow's process first would lose the head start.
`python -m pipeline.flows.prefect_server HOST PORT [ALLOWED_HOSTS]` is the server of `pipeline up`, which also runs
Prefect's services. Both require credentials, and refuse foreign hosts and origins.
"""

import logging
import os
import secrets
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from http import HTTPStatus
from pathlib import Path
from typing import Self

from pipeline.allowed_hosts import guard
from pipeline.errors import FlowError
from pipeline.files import PRIVATE, make_private
from pipeline.proxies import bypass_proxy
from pipeline.redaction import without_password
from pipeline.stack import CLIENT_AUTH, SERVER_AUTH, auth_string, find_server, prefect_credentials, prefect_home
from pipeline.tracking.store import hold_creation_lock
from pipeline.workspace import STATE, main_repository, make_state

START_SECONDS = 120
STOP_SECONDS = 5
ANSWER_SECONDS = 5
LOG_FILE = STATE / "prefect-server.log"
ATTACHED = "pipeline.process"

RETRIES = "PREFECT_CLIENT_MAX_RETRIES"

# Read by Prefect when it is imported. What the user has set stays.
SETTINGS = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the run prints its own lines; Prefect keeps them as logs
    # A server that went away is asked again for half a minute, in which `pipeline up` has it back; one that hangs, for
    # a minute. Prefect's own 60 seconds a request are 5 minutes, and it makes several.
    RETRIES: "4",
    "PREFECT_API_REQUEST_TIMEOUT": "8",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # it prints every event that it could not send
    "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "1.0",  # seconds until a line shows in Prefect's pages
}
LASTING_SETTINGS = {
    "PREFECT_UI_API_URL": "/api",  # where the pages come from, under whatever name the browser knows this machine
    # Who holds a deployment's slot outlives a crash of the server, or its runs would be ended for having lost theirs.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}
TEMPORARY_SETTINGS = {
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",  # automations need a server that stays
    "PREFECT_SERVER_EVENTS_STREAM_OUT_ENABLED": "false",
}


@contextmanager
def open_server(workspace: Path) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Have a Prefect server for the length of the block. Prefect must not be imported before.

    Yields:
        what to call once Prefect is imported, for a block in which its client can use the server.

    Raises:
        FlowError: the server that is configured does not answer, or a temporary one does not start.
    """
    root = main_repository(workspace)
    for name, value in settings(root).items():
        os.environ.setdefault(name, value)
    if url := os.environ.get("PREFECT_API_URL"):
        require_answer(url)
    else:
        url = find_server(root, "prefect")
    if url:
        with _environment({"PREFECT_API_URL": url, **prefect_credentials(root, url)}):
            yield nullcontext
    else:
        with TemporaryServer(workspace) as temporary:
            yield temporary.connect


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the length of the block."""
    former = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def settings(root: Path) -> dict[str, str]:
    """What Prefect is to find in the environment when it is imported, unless the user has set it."""
    home = prefect_home(root)
    return {**SETTINGS, **({"PREFECT_HOME": str(home)} if home else {})}


def require_answer(url: str) -> None:
    """Refuse a server that does not answer at all.

    Raises:
        FlowError: naming its address.
    """
    try:
        urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it answers: whether it lets us in is for Prefect's client to find out
    except (OSError, ValueError) as error:
        raise FlowError(
            f"the Prefect server at {without_password(url)} does not answer",
            expected=f"an answer within {ANSWER_SECONDS} s",
            found=str(getattr(error, "reason", error)),
            remedy=f"start it (prefect server start), or {_unset_server()}: then each run starts a temporary server",
        ) from None


def _unset_server() -> str:
    """The command that removes the address of the server from where it is set: environment, profile or file."""
    if "PREFECT_API_URL" in os.environ:
        return "unset PREFECT_API_URL"
    from prefect.context import get_settings_context
    from prefect.settings import PREFECT_API_URL

    profile = get_settings_context().profile
    if PREFECT_API_URL in profile.settings:
        return f"prefect --profile {shlex.quote(profile.name)} config unset PREFECT_API_URL"
    return "take it out of the file that `prefect config view` names (prefect.toml, pyproject.toml or .env)"


def await_answer() -> None:
    """Wait for half a minute if Prefect's server does not answer now. Prefect must be imported.

    Prefect itself would wait at each of its next requests, and its engine makes several after one has failed. Once this
    has failed, none of them is repeated.

    Raises:
        FlowError: it did not come back.
    """
    from prefect.context import SettingsContext, get_settings_context

    context = get_settings_context()
    current = context.settings
    url, start = str(current.api.url), time.monotonic()
    waits = [2**retry for retry in range(1, current.client.max_retries + 1)]  # as those of Prefect's client
    for place in range(len(waits) + 1):
        try:
            return require_answer(url)
        except FlowError as error:
            if place == len(waits):
                hurried = current.copy_with_update(updates={"client.max_retries": 0})
                SettingsContext(profile=context.profile, settings=hurried).__enter__()  # until this run's end
                raise _stopped_answering(error.found) from None
            time.sleep(max(0.0, start + sum(waits[: place + 1]) - time.monotonic()))


@contextmanager
def answering_server() -> Iterator[None]:
    """Say in words that Prefect's server stopped answering, or does not let us in. Prefect must be imported.

    Raises:
        FlowError: it did.
    """
    from httpx import TransportError
    from prefect.exceptions import PrefectHTTPStatusError

    # Prefect's log handler prints an error for each batch that it cannot send. It sends the last batches when the
    # process exits, after the error below is printed: only a block without an error restores the setting.
    prints, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
        logging.raiseExceptions = prints
    except (TransportError, RuntimeError) as error:
        # Prefect's client raises a RuntimeError of its own where its first request finds nobody.
        if not isinstance(error, TransportError) and "Failed to reach API" not in str(error):
            raise
        raise _stopped_answering(str(error) or type(error).__name__) from None
    except PrefectHTTPStatusError as error:
        if error.response.status_code != HTTPStatus.UNAUTHORIZED:
            raise
        raise FlowError(
            "Prefect's server wants to know who you are",
            expected="in the environment: PREFECT_API_AUTH_STRING, as the server has it",
            remedy="set it, then run the same command again",
        ) from None


def _stopped_answering(found: str) -> FlowError:
    return FlowError(
        "Prefect's server stopped answering during the run",
        expected="an answer within a minute",
        found=found,
        remedy="pipeline run: the stages that ended are kept",
        temporary=True,
    )


class TemporaryServer:
    """A Prefect server on a free port of this machine, on the database in Prefect's home."""

    def __init__(self, workspace: Path) -> None:
        self.log = workspace / LOG_FILE
        make_state(workspace)
        self.log.touch(PRIVATE)
        make_private(self.log)
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        self.auth = f"run:{secrets.token_urlsafe(32)}"  # a port by itself keeps nobody out; it is in no file
        with listener, self.log.open("w") as log:
            # A session of its own keeps the terminal's Ctrl-C away, so that it can still take down how the run ended.
            self.process = subprocess.Popen(
                [sys.executable, "-m", ATTACHED, "pipeline.flows.prefect_server", str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
                env=TEMPORARY_SETTINGS | os.environ | {SERVER_AUTH: self.auth},
            )

    @contextmanager
    def connect(self) -> Iterator[None]:
        """Wait until it answers, and have Prefect use it; or, if Prefect's own settings name another, see to that one.

        Raises:
            FlowError: it ended, or took too long, with the last lines of its log; or the other does not answer.
        """
        from prefect.context import refresh_global_settings_context
        from prefect.settings import get_current_settings, temporary_settings

        if configured := get_current_settings().api.url:
            require_answer(configured)
            yield
            return
        self._wait()
        own = {"PREFECT_API_URL": self.url, CLIENT_AUTH: self.auth, RETRIES: "2"}  # it never returns once it has ended
        with _environment(own):
            refresh_global_settings_context()
            # Nobody watches for heartbeats here, and their thread takes up to a second to end.
            with temporary_settings(updates={"flows.heartbeat_frequency": None}):
                yield

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                # The socket listens already: this returns when somebody accepts.
                urllib.request.urlopen(f"{self.url}/health", timeout=START_SECONDS).close()
                return
            except OSError:
                time.sleep(0.05)
        last = self.log.read_text(errors="replace").strip().splitlines()[-3:]
        is_file = _database_address().startswith("sqlite")
        advice = "PREFECT_HOME=DIRECTORY pipeline run" if is_file else "PREFECT_SERVER_DATABASE_CONNECTION_URL"
        raise FlowError(
            "the temporary Prefect server did not start",
            expected=f"an answer within {START_SECONDS} s",
            found="\n            ".join(last) or f"exit code {self.process.poll()}",
            remedy=f"read {self.log}; another database: {advice}",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()


def make_tables() -> None:
    """Let Prefect make or migrate its tables in PostgreSQL, one server at a time.

    Its migrations take no lock: of two servers that find the database empty, one fails.
    """
    from prefect.server.database import provide_database_interface

    address = _database_address()
    if not address.startswith("postgresql"):
        return
    import asyncio

    from sqlalchemy.ext.asyncio import create_async_engine

    async def migrate() -> None:
        engine = create_async_engine(address, isolation_level="AUTOCOMMIT")
        try:
            async with engine.connect() as connection:
                await connection.run_sync(hold_creation_lock)
                await provide_database_interface().run_migrations_upgrade()
        finally:
            await engine.dispose()  # and with the connection goes the lock

    asyncio.run(migrate())


def _database_address() -> str:
    from prefect.settings import get_current_settings

    url = get_current_settings().server.database.connection_url
    return url.get_secret_value() if url else ""


def serve_temporarily(descriptor: int) -> None:
    """Serve on an open, listening socket, unless Prefect's own settings name another server."""
    from prefect.settings import get_current_settings

    if get_current_settings().api.url:
        return
    _make_private_home(get_current_settings().home)
    make_tables()
    import uvicorn
    from prefect.server.api.server import create_app

    app = guard(create_app(ephemeral=True, final=True), "127.0.0.1")
    config = uvicorn.Config(app, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


def serve(host: str, port: int, allowed_hosts: str = "") -> None:
    """Be what `prefect server start` is, without its welcome and the import of the whole command line.

    Args:
        allowed_hosts: names under which browsers and clients may know this machine, with commas between them.
    """
    root = main_repository()
    for name, value in {**settings(root), **LASTING_SETTINGS}.items():
        os.environ.setdefault(name, value)
    os.environ[SERVER_AUTH] = os.environ.get(SERVER_AUTH) or auth_string(root)
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    _make_private_home(get_current_settings().home)
    make_tables()
    app = guard(create_app(final=True), host, allowed_hosts)
    uvicorn.run(app, host=host, port=port, log_level="warning", lifespan="on")


def _make_private_home(home: Path) -> None:
    """Keep Prefect's database, and whatever else this process creates, for its owner only."""
    os.umask(0o077)
    home.mkdir(parents=True, exist_ok=True)
    make_private(*home.glob("prefect.db*"), *([home] if home == prefect_home(main_repository()) else []))


if __name__ == "__main__":
    bypass_proxy()
    if len(sys.argv) == 2:
        serve_temporarily(int(sys.argv[1]))
    else:
        serve(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
