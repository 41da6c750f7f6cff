"""The servers of `pipeline up`: their addresses, credentials and data directories.

`pipeline up` writes the addresses and the data directory to the main repository, where every command reads them. The
servers use the same data as the embedded ones: MLflow's database and files, and Prefect's home. If a server does not
respond, a command therefore continues without it, on the same records.

Prefect's server requires a password, because a client that can use it can have its runner execute commands. The
password is generated once for each main repository, where every command reads it.
"""

import os
import secrets
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pipeline.allowed_hosts import LOOPBACK
from pipeline.errors import WorkspaceError
from pipeline.files import PRIVATE, atomic_file, make_private, read_json, write_json
from pipeline.proxies import bypass_proxy
from pipeline.workspace import STATE, is_held, lock, make_state

Server = Literal["mlflow", "prefect"]

LOCK = "the stack"  # held by `pipeline up`
STACK_FILE = STATE / "stack.json"  # written at the start of `pipeline up`
SETTINGS_FILE = STATE / "settings.json"  # the data directory; kept after `pipeline up` ends
AUTH_FILE = STATE / "prefect-auth"  # user and password of Prefect's server
SERVER_AUTH, CLIENT_AUTH = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"  # Prefect defines these names
ANSWER_SECONDS = 5
WARNED_VARIABLE = "PIPELINE_STACK_MISSED"  # inherited by child processes, so that the message is printed once


@dataclass(frozen=True)
class Stack:
    """A `pipeline up` process and the addresses of its servers."""

    pid: int  # of the process that holds LOCK
    mlflow: str | None = None  # address of the server; None: not served
    prefect: str | None = None  # address of the server's API; None: not served
    auth_from_file: bool = False  # Prefect's server uses the password in AUTH_FILE, not one from its environment
    others: Mapping[str, str] = field(default_factory=dict)  # addresses of the servers that rooms add, by name


def read_stack(root: Path) -> Stack | None:
    """Read the servers that were started for a main repository. They may have ended since."""
    try:
        return Stack(**read_json(root / STACK_FILE))
    except (OSError, ValueError, TypeError):
        return None


def write_stack(root: Path, stack: Stack) -> None:
    """Write the servers' addresses to a main repository, where every command reads them."""
    described = {name: value for name, value in asdict(stack).items() if value not in (None, {})}
    write_json(root / STACK_FILE, described, mode=PRIVATE)


def remove_stack(root: Path) -> None:
    """Delete the servers' addresses, so that every command of a main repository works without servers."""
    (root / STACK_FILE).unlink(missing_ok=True)


def find_server(root: Path, server: Server) -> str | None:
    """Return the address of a server that `pipeline up` started for a main repository, if it responds now.

    After `pipeline up` was killed, another project's server may use the same address, so no request is sent to it. If a
    server does not respond, a message is printed, but only once for all servers and processes.
    """
    stack = read_stack(root)
    address = stack and getattr(stack, server)
    if not stack or not address:
        return None
    is_up = is_held(LOCK, stack.pid, root=root)
    if is_up and answers(f"{address}/health"):
        bypass_proxy(urlsplit(address).hostname or "")
        return str(address)
    if os.environ.get(WARNED_VARIABLE) != str(stack.pid):
        os.environ[WARNED_VARIABLE] = str(stack.pid)
        reason = f"{address}, started by `pipeline up`, does not respond"
        if not is_up:
            reason = f"`pipeline up`, process {stack.pid}, ended unexpectedly"
        print(f"{reason}: continuing without it, on the same records", file=sys.stderr, flush=True)
    return None


def answers(address: str, seconds: float = ANSWER_SECONDS) -> bool:
    """Return True if a server's health check at this address responds with status 200."""
    import http.client  # here, because a stage without servers does not need it

    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def is_same_server(one: str, other: str) -> bool:
    """Compare two addresses of HTTP servers. All names of the loopback interface count as equal."""
    try:
        return _location(one) == _location(other)
    except ValueError:  # not an address
        return False


def _location(address: str) -> tuple[str, str, int, str]:
    parts = urlsplit(address)
    host = parts.hostname or ""
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    return parts.scheme, LOOPBACK[0] if host in LOOPBACK else host, port, parts.path.rstrip("/")


def auth_string(root: Path) -> str:
    """Return user and password of a main repository's Prefect server as `user:password`.

    The first call generates them. The file is created with access for its owner only, and under a lock, so that
    simultaneous calls return the same password.
    """
    path = root / AUTH_FILE
    if kept := _read_auth_string(path):
        return kept
    with lock(path.name, wait=ANSWER_SECONDS, remedy="run the same command again", root=root):
        if kept := _read_auth_string(path):
            return kept
        make_state(root)
        made = f"pipeline:{secrets.token_urlsafe(32)}"
        with atomic_file(path, mode=PRIVATE) as partial:
            partial.write_text(f"{made}\n", encoding="utf-8")
    return made


def prefect_credentials(root: Path, url: str) -> dict[str, str]:
    """Return the environment variables that Prefect's client needs to use the server of `pipeline up`.

    They replace a password that the environment has for another server. The address is the one that the server listens
    on: another name of this machine may lead to another user's server. Empty for any other server, and if the password
    is not known: Prefect then uses PREFECT_API_AUTH_STRING of the environment.
    """
    stack = read_stack(root)
    if not stack or not stack.prefect or not is_same_server(url, stack.prefect):
        return {}
    if not is_held(LOCK, stack.pid, root=root):  # another user's server may listen there
        return {}
    known = _read_auth_string(root / AUTH_FILE) if stack.auth_from_file else os.environ.get(SERVER_AUTH)
    return {"PREFECT_API_URL": stack.prefect, CLIENT_AUTH: known} if known else {}


def _read_auth_string(path: Path) -> str:
    make_private(path)
    try:
        return path.read_text("utf-8").strip()
    except FileNotFoundError:
        return ""


def data_directory(root: Path) -> Path:
    """Return the directory of MLflow's database and files: the main repository, or that of `pipeline up --data`.

    Raises:
        WorkspaceError: SETTINGS_FILE is damaged.
    """
    return Path(_settings(root).get("data", root))


def prefect_home(root: Path, data: Path | None = None) -> Path | None:
    """Return the directory of Prefect's database if `pipeline up --data` moved it; None means Prefect's default.

    Args:
        data: the new data directory; None means the current one.
    """
    directory = data or data_directory(root)
    return None if directory == root else directory / "prefect"


def move_data(root: Path, directory: Path) -> None:
    """Set the data directory of the servers, and of every command without them. Does not move existing data."""
    if directory == root:
        (root / SETTINGS_FILE).unlink(missing_ok=True)
    else:
        write_json(root / SETTINGS_FILE, {"data": str(directory)}, mode=PRIVATE)


def _settings(root: Path) -> dict[str, str]:
    path = root / SETTINGS_FILE
    if not path.exists():
        return {}
    try:
        found = read_json(path)
    except ValueError as error:
        found = str(error)
    if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
        return found
    # Without this error, a new empty store would be used instead of the one that was moved.
    raise WorkspaceError(
        f"{path} is damaged",
        expected='where `pipeline up --data` moved the data, such as {"data": "/srv/pipeline"}',
        found=str(found),
        remedy=f"rm {shlex.quote(str(path))}; if the data was moved, then: pipeline up --data DIRECTORY",
    )
