"""The Prefect server of a run: the configured one, the project's own, or a temporary one.

Prefect can start a temporary server itself, but first imports the whole server into the flow's process. This module
starts it before anything else, in a separate process. Its start takes 5 s (15 s with a new database), in parallel with
the other preparations. It ends when the run's process ends, even after `kill -9`.

`python -m pipeline.flows.prefect_server SOCKET` is the temporary server. It exits at once if a profile or
`prefect.toml` names another server. Only Prefect can find all such settings, and to load them in the flow's process
first would delay the start. `python -m pipeline.flows.prefect_server HOST PORT [ALLOWED_HOSTS]` is the project's own
server (`server_addresses.py`), which also runs Prefect's services. Both require credentials, and refuse foreign hosts
and origins.
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

from pipeline import logs
from pipeline.allowed_hosts import guard
from pipeline.errors import FlowError
from pipeline.files import PRIVATE, make_private
from pipeline.flows.prefect_internals import (
    apply_environment,
    create_server,
    database_interface,
    disable_client_retries,
)
from pipeline.garbage_collection import collect_rarely
from pipeline.proxies import bypass_proxy
from pipeline.redaction import without_password
from pipeline.server_addresses import (
    CLIENT_AUTH,
    SERVER_AUTH,
    auth_string,
    find_server,
    prefect_credentials,
    prefect_home,
)
from pipeline.tracking.database_setup import hold_creation_lock
from pipeline.workspace import STATE, main_repository, make_state

START_SECONDS = 120
STOP_SECONDS = 5
ANSWER_SECONDS = 5
LOG_FILE = STATE / "prefect-server.log"
ATTACHED_MODULE = "pipeline.process_lifetime"

RETRIES = "PREFECT_CLIENT_MAX_RETRIES"

# Prefect reads these when it is imported. They do not override the user's settings.
SETTINGS = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the run prints its own lines; Prefect stores them as logs
    # Retry for half a minute if the server is down, in which it is restarted, and for a minute if it hangs.
    # Prefect's default of 60 s for each try takes 5 minutes for each of several requests.
    RETRIES: "4",
    "PREFECT_API_REQUEST_TIMEOUT": "8",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # otherwise it prints every event that it could not send
    "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "1.0",  # seconds until a line appears in Prefect's UI
}
SERVER_SETTINGS = {
    "PREFECT_UI_API_URL": "/api",  # relative: the UI works under every name of this machine
    # Keep the concurrency leases of deployments on disk: Prefect ends runs whose lease is lost in a server crash.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}
TEMPORARY_SETTINGS = {
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",  # automations need a permanent server
    "PREFECT_SERVER_EVENTS_STREAM_OUT_ENABLED": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",  # a flow uses none of them; a permanent server registers them
}


@contextmanager
def open_server(workspace: Path) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Provide a Prefect server until the block ends. Prefect must not be imported before.

    Yields:
        a function to call after Prefect is imported. It returns a context manager: in its block, Prefect's client can
            use the server.

    Raises:
        FlowError: the configured server does not respond, or a temporary one does not start.
    """
    root = main_repository(workspace)
    for name, value in settings(root).items():
        os.environ.setdefault(name, value)
    if url := os.environ.get("PREFECT_API_URL"):
        require_response(url)
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
    """Set environment variables until the block ends."""
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
    """Return the environment variables to set before Prefect is imported, unless the user has set them."""
    home = prefect_home(root)
    return {**SETTINGS, **({"PREFECT_HOME": str(home)} if home else {})}


def require_response(url: str) -> None:
    """Check that a server responds, with any HTTP status.

    Raises:
        FlowError: it does not. The message contains its address.
    """
    try:
        urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it responds; Prefect's client checks the credentials later
    except (OSError, ValueError) as error:
        raise FlowError(
            f"the Prefect server at {without_password(url)} does not answer",
            expected=f"an answer within {ANSWER_SECONDS} s",
            found=str(getattr(error, "reason", error)),
            remedy=f"start it (prefect server start), or {_unset_server()}: then each run starts a temporary server",
        ) from None


def _unset_server() -> str:
    """Return the command that removes the server's address from the environment, profile or file that sets it."""
    if "PREFECT_API_URL" in os.environ:
        return "unset PREFECT_API_URL"
    from prefect.context import get_settings_context
    from prefect.settings import PREFECT_API_URL

    profile = get_settings_context().profile
    if PREFECT_API_URL in profile.settings:
        return f"prefect --profile {shlex.quote(profile.name)} config unset PREFECT_API_URL"
    return "take it out of the file that `prefect config view` names (prefect.toml, pyproject.toml or .env)"


def wait_for_response() -> None:
    """Wait up to half a minute until Prefect's server responds. Prefect must be imported.

    After a failure, Prefect's engine makes several more requests and would wait at each. If this wait fails, Prefect's
    retries are therefore turned off.

    Raises:
        FlowError: the server did not respond in time.
    """
    from prefect.settings import get_current_settings

    current = get_current_settings()
    url, start = str(current.api.url), time.monotonic()
    waits = [2**retry for retry in range(1, current.client.max_retries + 1)]  # the same as in Prefect's client
    for place in range(len(waits) + 1):
        try:
            return require_response(url)
        except FlowError as error:
            if place == len(waits):
                disable_client_retries()
                raise _no_response(error.found) from None
            time.sleep(max(0.0, start + sum(waits[: place + 1]) - time.monotonic()))


@contextmanager
def explain_server_errors() -> Iterator[None]:
    """Convert connection and login errors of Prefect's client to a FlowError. Prefect must be imported.

    Raises:
        FlowError: Prefect's server stopped responding, or requires other credentials.
    """
    from httpx import TransportError
    from prefect.exceptions import PrefectHTTPStatusError

    # Prefect's log handler prints an error for each batch that it cannot send. It sends the last batches when the
    # process exits, after the error below is printed. The setting is therefore restored only if the block succeeds.
    prints, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
        logging.raiseExceptions = prints
    except (TransportError, RuntimeError) as error:
        # Prefect's client raises a RuntimeError if its first request finds no server.
        if not isinstance(error, TransportError) and "Failed to reach API" not in str(error):
            raise
        raise _no_response(str(error) or type(error).__name__) from None
    except PrefectHTTPStatusError as error:
        if error.response.status_code != HTTPStatus.UNAUTHORIZED:
            raise
        raise FlowError(
            "Prefect's server refused the credentials",
            expected="PREFECT_API_AUTH_STRING in the environment, with the value that the server has",
            remedy="set it, then run the same command again",
        ) from None


def _no_response(found: str) -> FlowError:
    return FlowError(
        "Prefect's server stopped answering during the run",
        expected="an answer within a minute",
        found=found,
        remedy="pipeline run: the stages that ended are kept",
        temporary=True,
    )


class TemporaryServer:
    """A Prefect server on a free port of this machine. It uses the database in Prefect's home."""

    def __init__(self, workspace: Path) -> None:
        self.log = workspace / LOG_FILE
        make_state(workspace)
        self.log.touch(PRIVATE)
        make_private(self.log)
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        self.auth = f"run:{secrets.token_urlsafe(32)}"  # other users can reach the port; the password is in no file
        with listener, self.log.open("w") as log:
            # A separate session does not receive the terminal's Ctrl-C: the server must still record how the run ended.
            self.process = subprocess.Popen(
                [sys.executable, "-m", ATTACHED_MODULE, "pipeline.flows.prefect_server", str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
                env=TEMPORARY_SETTINGS | os.environ | {SERVER_AUTH: self.auth},
            )

    @contextmanager
    def connect(self) -> Iterator[None]:
        """Wait until the server responds, and configure Prefect to use it.

        If Prefect's own settings name another server, check that the other one responds, and use that.

        Raises:
            FlowError: the server ended or took too long, with the last lines of its log; or the other one does not
                respond.
        """
        from prefect.settings import get_current_settings, temporary_settings

        if configured := get_current_settings().api.url:
            require_response(configured)
            yield
            return
        self._wait()
        own = {"PREFECT_API_URL": self.url, CLIENT_AUTH: self.auth, RETRIES: "2"}  # few retries: no process restarts it
        with _environment(own):
            apply_environment()
            # No service here checks heartbeats, and their thread takes up to a second to end.
            with temporary_settings(updates={"flows.heartbeat_frequency": None}):
                yield

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                # The socket already listens: the request waits until the server accepts it.
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
    """Create or migrate Prefect's tables in PostgreSQL, one server at a time.

    Prefect's migrations take no lock: if two servers find an empty database, one of them fails.
    """
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
                await database_interface().run_migrations_upgrade()
        finally:
            await engine.dispose()  # closing the connection releases the lock

    asyncio.run(migrate())


def _database_address() -> str:
    from prefect.settings import get_current_settings

    url = get_current_settings().server.database.connection_url
    return url.get_secret_value() if url else ""


def serve_temporarily(descriptor: int) -> None:
    """Serve on a listening socket. Return at once if Prefect's own settings name another server."""
    from prefect.settings import get_current_settings

    if get_current_settings().api.url:
        return
    _make_private_home(get_current_settings().home)
    make_tables()
    import uvicorn

    app = guard(create_server(temporary=True), "127.0.0.1")
    config = uvicorn.Config(app, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


def serve(host: str, port: int, allowed_hosts: str = "") -> None:
    """Run the server as `prefect server start` does, but without its banner and the import of its command line.

    Args:
        allowed_hosts: further names of this machine that browsers and clients may use, separated by commas.
    """
    root = main_repository()
    for name, value in {**settings(root), **SERVER_SETTINGS}.items():
        os.environ.setdefault(name, value)
    os.environ[SERVER_AUTH] = os.environ.get(SERVER_AUTH) or auth_string(root)
    import uvicorn
    from prefect.settings import get_current_settings

    _make_private_home(get_current_settings().home)
    make_tables()
    app = guard(create_server(), host, allowed_hosts)
    logs.configure("prefect", "prefect.server", "uvicorn")
    uvicorn.run(app, host=host, port=port, log_config=None, access_log=False, lifespan="on")


def _make_private_home(home: Path) -> None:
    """Make Prefect's database, and every file that this process creates, accessible to the owner only."""
    os.umask(0o077)
    home.mkdir(parents=True, exist_ok=True)
    make_private(*home.glob("prefect.db*"), *([home] if home == prefect_home(main_repository()) else []))


if __name__ == "__main__":
    bypass_proxy()
    if len(sys.argv) == 2:
        collect_rarely()
        serve_temporarily(int(sys.argv[1]))
    else:
        serve(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
