"""Allowed hosts and origins of our servers: an ASGI middleware around Prefect's and MLflow's applications.

A page of another site can send requests to this machine, and with DNS rebinding under its own host name. Both are
refused, with or without credentials. Clients that are not browsers send no origin.
"""

import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import Any

from pipeline.errors import FlowError

Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Callable[..., Awaitable[Any]], Callable[..., Awaitable[Any]]], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ANY_ADDRESS = ("0.0.0.0", "::")  # only to listen on; not the name of a machine
ADDRESS = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/?#@\[\]]+)(:[0-9]+)?")
SCHEME = re.compile(r"^https?://")
REFUSAL = (
    b"refused: unknown host or origin, or a closed path. Names of this machine: --allowed-hosts (docs/servers.md)\n"
)


def own_names(host: str, allowed: str) -> list[str]:
    """Return the names of this machine in the form that URLs use.

    Args:
        host: the address that a server listens on.
        allowed: more names, separated by commas.

    Raises:
        FlowError: one of them is not a host name, or has a port.
    """
    return list(dict.fromkeys([*map(_as_host, [*LOOPBACK, *({host} - {*ANY_ADDRESS})]), *_split(allowed)]))


def guard(
    application: Application,
    host: str,
    allowed: str = "",
    closed: str | None = None,
    *,
    refusal: tuple[bytes, bytes] = (b"text/plain", REFUSAL),
) -> Application:
    """Wrap an application to refuse every HTTP and websocket request with a foreign host or origin.

    An origin is allowed if it is the request's own host, or an allowed name without a port (a proxy with TLS).

    Args:
        closed: refuse every path that starts with this.
        refusal: content type and body of the response to a refused request.
    """
    hosts = set(own_names(host, allowed))
    origins = set(_split(allowed))

    def is_known(headers: Iterable[tuple[bytes, bytes]]) -> bool:
        values = [(name.lower(), value.decode("latin-1").lower()) for name, value in headers]
        asked = [value for name, value in values if name == b"host"]
        if not asked or any((match := ADDRESS.fullmatch(value)) is None or match[1] not in hosts for value in asked):
            return False
        known = {*origins, asked[0]}
        return all(SCHEME.sub("", value) in known for name, value in values if name == b"origin")

    async def guarded(
        scope: Scope, receive: Callable[..., Awaitable[Any]], send: Callable[..., Awaitable[Any]]
    ) -> None:
        is_request = scope["type"] in ("http", "websocket")
        is_closed = is_request and closed is not None and scope["path"].startswith(closed)
        if not is_request or (is_known(scope["headers"]) and not is_closed):
            await application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # not accepted yet: the server responds with 403
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", refusal[0])]})
            await send({"type": "http.response.body", "body": refusal[1]})

    return guarded


def _split(names: str) -> list[str]:
    return [_as_host(name.strip()) for name in names.split(",") if name.strip()]


def _as_host(name: str) -> str:
    """Return a host name or IP address as it is in URLs: in lower case, an IPv6 address in brackets."""
    host = name.lower()
    address = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    with suppress(ValueError):
        ipaddress.IPv6Address(address)
        return f"[{address}]"
    match = ADDRESS.fullmatch(host)
    if match and match[2] is None and not host.startswith("["):
        return host
    has_port = match is not None and match[2] is not None
    raise FlowError(
        f"cannot use {name} as a host name" + (": it has a port" if has_port else ""),
        expected="a name or an IP address without a port, such as gpu-box.lan, 192.168.1.20 or fd00::7",
        found=name,
        remedy=f"leave the port out: {match[1]}" if match and has_port else "--allowed-hosts gpu-box.lan",
    )
