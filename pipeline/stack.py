"""The servers of `pipeline up`: where they answer, and where they keep their data.

`pipeline up` writes both down in the main repository, so that every command finds its servers without being told. They
work on what the embedded ones work on: MLflow's database and files, and Prefect's home. A command whose server does not
answer therefore goes on without it, on the same records.

Prefect's server asks everybody who they are, because whoever may use it can have its runner run commands. What it asks
for is made once for each main repository, and used by every command without being told.
"""

import os
import secrets
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pipeline.allowed_hosts import LOOPBACK
from pipeline.errors import WorkspaceError
from pipeline.files import PRIVATE, atomic_file, make_private, read_json, write_json
from pipeline.proxies import bypass_proxy
from pipeline.workspace import STATE, is_held, lock, make_state

Server = Literal["mlflow", "prefect"]

LOCK = "the stack"  # which `pipeline up` holds
STACK_FILE = STATE / "stack.json"  # while `pipeline up` serves
SETTINGS_FILE = STATE / "settings.json"  # what stays when it has ended: where the data is
AUTH_FILE = STATE / "prefect-auth"  # user and password of Prefect's server
SERVER_AUTH, CLIENT_AUTH = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"  # Prefect's own names
ANSWER_SECONDS = 5
TOLD_VARIABLE = "PIPELINE_STACK_MISSED"  # for the processes that a command starts: it has said so already


@dataclass(frozen=True)
class Stack:
    """A `pipeline up` whose servers answered once."""

    pid: int  # of the process that holds LOCK
    mlflow: str | None = None  # address of the server; None: not served
    prefect: str | None = None  # address of the server's API; None: not served
    auth_from_file: bool = False  # Prefect's server uses the password in AUTH_FILE, not one of its environment


def read_stack(root: Path) -> Stack | None:
    """The servers that were started in a main repository. Whether they still answer is another question."""
    try:
        return Stack(**read_json(root / STACK_FILE))
    except (OSError, ValueError, TypeError):
        return None


def write_stack(root: Path, stack: Stack) -> None:
    """Let every command of a main repository know the servers."""
    write_json(
        root / STACK_FILE, {name: value for name, value in asdict(stack).items() if value is not None}, mode=PRIVATE
    )


def remove_stack(root: Path) -> None:
    """Let every command of a main repository work without servers."""
    (root / STACK_FILE).unlink(missing_ok=True)


def find_server(root: Path, server: Server) -> str | None:
    """The address of a server that `pipeline up` started in a main repository and that answers now.

    Once that was killed, another project's server may answer at the same address: nobody is asked there. Where a server
    should answer and does not, this is said once, whatever the number of servers and processes.
    """
    stack = read_stack(root)
    address = stack and getattr(stack, server)
    if not stack or not address:
        return None
    is_up = is_held(LOCK, stack.pid, root=root)
    if is_up and answers(f"{address}/health"):
        bypass_proxy(urlsplit(address).hostname or "")
        return str(address)
    if os.environ.get(TOLD_VARIABLE) != str(stack.pid):
        os.environ[TOLD_VARIABLE] = str(stack.pid)
        missed = f"{address}, started by `pipeline up`, does not answer"
        if not is_up:
            missed = f"`pipeline up`, process {stack.pid}, ended without a word"
        print(f"{missed}: going on without it, on the same records", file=sys.stderr, flush=True)
    return None


def answers(address: str, seconds: float = ANSWER_SECONDS) -> bool:
    """Whether a server says that it is well, at an address of its own for this question."""
    import http.client  # here, so that a stage without servers does not pay for it

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
    """Compare two addresses of HTTP servers. All names of the loopback interface are equal."""
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
    """User and password of a main repository's Prefect server, as `user:password`. The first call makes them.

    Only the owner can read the file, from its first moment on. Of several processes that make it, one wins.
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
    is not known: then PREFECT_API_AUTH_STRING of the environment counts.
    """
    stack = read_stack(root)
    if not stack or not stack.prefect or not is_same_server(url, stack.prefect):
        return {}
    if not is_held(LOCK, stack.pid, root=root):  # somebody else may listen there
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
    """Where MLflow keeps its database and its files: the main repository, unless `pipeline up --data` moved them.

    Raises:
        WorkspaceError: the file that says so is damaged.
    """
    return Path(_settings(root).get("data", root))


def prefect_home(root: Path, data: Path | None = None) -> Path | None:
    """Where Prefect keeps its database, if `pipeline up --data` moved it; None leaves that to Prefect.

    Args:
        data: the directory to which it would be moved; None: as it is.
    """
    directory = data or data_directory(root)
    return None if directory == root else directory / "prefect"


def move_data(root: Path, directory: Path) -> None:
    """Have the servers, and every command without them, keep their data in a directory from now on."""
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
    # Without it, an empty store would be opened beside the one that was moved.
    raise WorkspaceError(
        f"{path} is damaged",
        expected='where `pipeline up --data` moved the data, such as {"data": "/srv/fashion-mnist"}',
        found=str(found),
        remedy=f"rm {shlex.quote(str(path))}; if the data was moved, then: pipeline up --data DIRECTORY",
    )
