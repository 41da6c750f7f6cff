"""The outermost layer of the application: hosts, origins, the API key, metrics and the access log of every request."""

import hmac
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from pipeline.allowed_hosts import LOOPBACK, Application, Scope, guard
from pipeline.redaction import without_password
from pipeline.serving.errors import NotAvailable, RequestError, create_error_response
from pipeline.serving.metrics import Metrics
from pipeline.serving.settings import ServeSettings

ALWAYS_OPEN = ("/health/", "/v1/refresh")  # paths that need no key; the second one, a signature
OPEN_FILES = ("/", "/favicon.ico")  # of the page, which holds no data; GET only, as below /static/
ALWAYS_CLOSED = ("/v1/feedback",)  # paths that need the key on this machine, too
MOST_IN_FLIGHT = 128  # requests; further ones are refused before their bodies are read
LONGEST = 200  # characters of a path in the log
REFUSAL = json.dumps(
    {"error": "unknown host or origin", "expected": "a name of this machine", "remedy": "--allowed-hosts NAME"}
).encode()

Receive = Callable[..., Awaitable[Any]]
Send = Callable[..., Awaitable[Any]]
ACCESS = logging.getLogger("pipeline.serving.access_log")  # its records are JSON already


def protect(application: Application, settings: ServeSettings, metrics: Metrics) -> Application:
    """Wrap an application: refuse foreign hosts and origins, check the API key, count and log every request.

    Handlers add facts to the log by `scope["facts"]`; the id of the request is in `scope["request_id"]`.
    """
    needs_key, in_flight = settings.host not in LOOPBACK, 0
    key = (settings.key or "").encode()

    async def check_key(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope, needs_key) or _has_key(scope, key):
            await application(scope, receive, send)
            return
        error = RequestError(
            "this request needs the API key",
            status=401,
            expected="the header `Authorization: Bearer KEY`",
            remedy="the key is in .pipeline/serving.key on the server",
        )
        await create_error_response(error, {"www-authenticate": "Bearer"})(scope, receive, send)

    guarded = guard(
        check_key, settings.host, settings.allowed_hosts, refusal=(b"application/json", REFUSAL)
    )  # fmt: skip

    async def observe(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await guarded(scope, receive, send)
            return
        nonlocal in_flight
        start, status = time.perf_counter(), 500
        scope["request_id"], scope["facts"] = str(uuid.uuid4()), {}

        async def send_and_note(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        in_flight += 1
        try:
            if in_flight > MOST_IN_FLIGHT and scope["method"] == "POST":
                await create_error_response(_refuse(in_flight))(scope, receive, send_and_note)
            else:
                await guarded(scope, receive, send_and_note)
        finally:
            in_flight -= 1
            seconds = time.perf_counter() - start
            route = scope.get("route")
            path = route.path if route is not None else "other"
            metrics.requests.labels(path, str(status)).inc()
            metrics.seconds.labels(path).observe(seconds)
            if ACCESS.isEnabledFor(logging.INFO):
                ACCESS.info(_format(scope, status, seconds))

    return observe


def _refuse(in_flight: int) -> NotAvailable:
    return NotAvailable(
        "the server has more requests than it can answer",
        expected=f"at most {MOST_IN_FLIGHT} requests at once in each process",
        found=str(in_flight),
        remedy="send the request again later",
    )


def _is_open(scope: Scope, needs_key: bool) -> bool:
    path = scope["path"]
    if path.startswith(ALWAYS_CLOSED):
        return False
    is_file = scope["method"] in ("GET", "HEAD") and (path in OPEN_FILES or path.startswith("/static/"))
    return not needs_key or path.startswith(ALWAYS_OPEN) or is_file


def _has_key(scope: Scope, key: bytes) -> bool:
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, secret = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    return bool(key) and scheme.lower() == b"bearer" and hmac.compare_digest(secret.strip(), key)


def _format(scope: Scope, status: int, seconds: float) -> str:
    path = scope["path"]
    if query := scope.get("query_string"):
        path += "?" + without_password(query.decode("latin-1"))
    return json.dumps(
        {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": scope["request_id"],
            "client": (scope.get("client") or ("",))[0],
            "method": scope["method"],
            "path": path[:LONGEST],
            "status": status,
            "ms": round(seconds * 1000, 2),
            **scope["facts"],
        }
    )
