"""The parts of `pipeline up`: servers of MLflow, Prefect and rooms, and the runner. Checks before they start."""

import errno
import ipaddress
import os
import shlex
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from pipeline.errors import FlowError
from pipeline.rooms import find_servers
from pipeline.server_addresses import CLIENT_AUTH, SERVER_AUTH, Server, Stack, is_same_server
from pipeline.servers.mlflow_server import PROTECTION

PREFECT_PROTECTION = SERVER_AUTH
SHORTEST_PASSWORD = 12  # characters


@dataclass(frozen=True)
class Listening:
    """Host, ports and allowed host names of the servers."""

    host: str = "127.0.0.1"
    mlflow_port: int = 5000
    prefect_port: int = 4200
    allowed_hosts: str = ""  # this machine's names for other machines, separated by commas
    others: Mapping[str, int] = field(default_factory=dict)  # ports of the servers of rooms to start, by name

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
        return self.address(self.mlflow_port)

    @property
    def prefect(self) -> str:
        """The address of Prefect's API for the processes of this machine."""
        return f"{self.address(self.prefect_port)}/api"

    def address(self, port: int) -> str:
        """Return the address of a server on this port for the processes of this machine."""
        own = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{own}]:{port}" if ":" in own else f"http://{own}:{port}"


@dataclass(frozen=True)
class Part:
    """One process of the stack: `python -m MODULE ARGUMENTS`."""

    name: str  # "mlflow", "prefect", "runner", or the name of a room's server
    module: str
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    address: str | None = None  # for clients; None if the part is no server
    port: int | None = None
    health: str = "/health"  # path of the health check, after the address
    needs: Server | None = None  # the server that must respond before this part starts


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
        address, port = listening.mlflow, listening.mlflow_port
        parts.append(Part("mlflow", "pipeline.servers.mlflow_server", where, environment, address, port))
        if is_own_mlflow:
            own["MLFLOW_TRACKING_URI"] = listening.mlflow
    prefect = os.environ.get("PREFECT_API_URL") or listening.prefect
    if only != "mlflow" and is_same_server(prefect, listening.prefect):
        at = (host, str(listening.prefect_port), listening.allowed_hosts)
        address, port = listening.prefect, listening.prefect_port
        parts.append(Part("prefect", "pipeline.flows.prefect_server", at, dict(os.environ), address, port))
        own["PREFECT_API_URL"] = listening.prefect
        if password := os.environ.get(PREFECT_PROTECTION):
            own[CLIENT_AUTH] = password  # replaces the environment's, which may be for another server
    of_clients = client_credentials(os.environ) | os.environ | own
    for name, port in listening.others.items():
        server = find_servers()[name]
        options = ("--host", host, "--port", str(port), "--allowed-hosts", listening.allowed_hosts)
        arguments, address = (*server.arguments, *options), listening.address(port)
        parts.append(Part(name, server.module, arguments, of_clients, address, port, server.health, needs="mlflow"))
    if only is None:
        parts.append(Part("runner", "pipeline.servers.runner", environment=of_clients, needs="prefect"))
    return parts


def describe(parts: Sequence[Part]) -> Stack:
    """Describe the servers of this process for the commands that use them."""
    addresses = {part.name: part.address for part in parts if part.address}
    mlflow, prefect = addresses.pop("mlflow", None), addresses.pop("prefect", None)
    has_password = any(part.name == "prefect" and part.environment.get(PREFECT_PROTECTION) for part in parts)
    return Stack(os.getpid(), mlflow, prefect, prefect is not None and not has_password, addresses)


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
