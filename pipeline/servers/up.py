"""`pipeline up`: check the settings, lock the project, and keep the servers and the runner running."""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.allowed_hosts import ANY_ADDRESS, own_names
from pipeline.errors import FlowError, WorkspaceError
from pipeline.proxies import bypass_proxy
from pipeline.server_addresses import (
    AUTH_FILE,
    LOCK,
    Server,
    auth_string,
    data_directory,
    move_data,
    prefect_home,
    remove_stack,
)
from pipeline.servers.mlflow_server import require_login_packages
from pipeline.servers.parts import PREFECT_PROTECTION, Listening, plan, require_free_port, require_protection
from pipeline.servers.supervisor import run
from pipeline.workspace import lock, main_repository

LOCK_SECONDS = 1.0  # to wait for the lock: a command that checks for a `pipeline up` holds it briefly

_LOGGER = logging.getLogger(__name__)


def run_parts(workspace: Path, listening: Listening, *, only: Server | None = None, data: Path | None = None) -> None:
    """Start the parts, and keep them running until a signal.

    Args:
        only: the one server to start, without the runner; None starts all parts.
        data: the new data directory of the servers and of commands that run without them; None keeps the present one.

    Raises:
        WorkspaceError: another `pipeline up` runs in this project, another project's uses the same Prefect home, or
            the login of MLflow's server needs a package that is not installed.
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
            found="MLFLOW_TRACKING_URI or PREFECT_API_URL contains the address of a server elsewhere",
            remedy="unset it, or use that server",
        )
    ports = [listening.mlflow_port, listening.prefect_port, *listening.others.values()]
    if len(set(ports)) < len(ports):
        raise FlowError(
            "two servers cannot share a port", found=", ".join(map(str, ports)), remedy="pipeline up --mlflow-port 5001"
        )
    if any(part.name == "mlflow" for part in parts):
        require_login_packages()
    if listening.is_open:
        require_protection(parts)
    remedy = "use its servers; or end it, with Ctrl-C there or by ending that process"
    with ExitStack() as held:
        held.enter_context(lock(LOCK, wait=LOCK_SECONDS, remedy=remedy, root=root))
        remove_stack(root)  # left by a killed `pipeline up`
        for part in parts:
            if part.port:
                require_free_port(listening.host, part.port, f"--{part.name}-port")
            if part.name == "prefect":
                held.enter_context(_lock_prefect_home(prefect_home(root, data)))
        if data:
            former = data_directory(root)
            data.mkdir(parents=True, exist_ok=True)
            move_data(root, data)
            if data != former:
                _LOGGER.info("data is stored in %s from now on; earlier records stay in %s", data, former)
        secrets: list[str] = []
        if any(part.name == "prefect" for part in parts) and not os.environ.get(PREFECT_PROTECTION):
            secrets.append(auth_string(root))
            _LOGGER.info("Prefect's pages ask for a password once: paste the line in %s", root / AUTH_FILE)
        if listening.host in ANY_ADDRESS and not listening.allowed_hosts.strip(", "):
            _LOGGER.warning(
                "requests from other machines are refused: no name of this machine is listed. List the names in use: "
                "pipeline up --host %s --allowed-hosts gpu-box.lan,192.168.1.20",
                listening.host,
            )
        run(root, parts, secrets)


@contextmanager
def _lock_prefect_home(home: Path | None) -> Iterator[None]:
    """Lock Prefect's home for this project: the deployments and schedules in it do not name their project."""
    home = Path(os.environ.get("PREFECT_HOME") or home or "~/.prefect").expanduser()
    with ExitStack() as held:
        try:
            held.enter_context(lock(LOCK, wait=LOCK_SECONDS, remedy="", root=home))
        except WorkspaceError as other:
            raise WorkspaceError(
                f"another project's `pipeline up` uses Prefect's home {home}",
                expected="one project at a time: its schedules are stored there, and either project would run them",
                found=other.found,
                remedy="end that process; or give this project its own data directory and Prefect home: "
                "pipeline up --data DIRECTORY, with PREFECT_HOME unset",
            ) from None
        yield
