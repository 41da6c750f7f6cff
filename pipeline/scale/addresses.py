"""The addresses of the workers of a training, and which of them are this machine's."""

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from pipeline.errors import WorkspaceError

EXAMPLE = "HOST:PORT,HOST:PORT with a free port for each worker, such as 127.0.0.1:9001,127.0.0.1:9002"


@dataclass(frozen=True)
class Address:
    """Where a worker listens."""

    host: str
    port: int
    is_local: bool  # it is one of this machine

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_addresses(text: str) -> list[Address]:
    """Parse the option `--workers`.

    Raises:
        WorkspaceError: an address cannot be parsed or resolved, is repeated, or there is only one.
    """
    names = [name.strip() for name in text.split(",")]
    own = _own_addresses()
    addresses = [_parse(name, own) for name in names]
    if len(names) < 2 or len(set(names)) < len(names):
        raise WorkspaceError(
            "a training on several workers needs several addresses", expected=EXAMPLE, found=text, remedy="pipeline run"
        )
    return addresses


def require_trusted_network(addresses: Sequence[Address], trusted: bool) -> None:
    """Refuse to open TensorFlow's ports unless the user says that the network is private.

    TensorFlow listens on all addresses of a machine, whichever ones it is given.

    Raises:
        WorkspaceError: `trusted` is False.
    """
    if not trusted:
        ports = ", ".join(str(address.port) for address in addresses if address.is_local)
        raise WorkspaceError(
            f"TensorFlow listens on ports {ports} of all networks of this machine, and executes what it is sent",
            expected="a network that only you and people that you trust can use, or a firewall that closes these ports",
            remedy="if it is so, add --trusted-network",
        )


def _parse(name: str, own: set[str]) -> Address:
    host, separator, port = name.rpartition(":")
    if not separator or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise WorkspaceError(f"{name!r} is not the address of a worker", expected=EXAMPLE)
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)}
    except OSError as error:
        raise WorkspaceError(f"cannot find the host {host}", found=error.strerror or str(error)) from error
    return Address(host, int(port), any(one in own or ipaddress.ip_address(one).is_loopback for one in found))


def _own_addresses() -> set[str]:
    return {one.address.partition("%")[0] for found in psutil.net_if_addrs().values() for one in found}
