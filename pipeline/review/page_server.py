"""The server of a review's page: on this machine only, for the one reader who has its address.

The address contains a secret. A request without it, for another host or from a page of another site is refused. The
server reads a few fixed files and appends to the verdicts; nothing that it receives is executed or used as a path.
"""

import json
import re
import secrets
import sys
import threading
import webbrowser
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import PRIVATE, atomic_file
from pipeline.review.page import STATIC, Page
from pipeline.review.verdicts import UNDO, Verdict, append_verdicts, check_verdict, today

ADDRESS = "127.0.0.1"
MOST_BYTES = 4096  # of a verdict
IDLE_SECONDS = 60  # after which a connection without a request is closed
FILES = {"": ("review.html", "text/html"), "review.css": ("review.css", "text/css")}
FILES |= {"review.js": ("review.js", "text/javascript")}
PICTURE = re.compile(r"pictures/([0-9]{1,9})\.png")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # the address is a secret
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
KEYS = frozenset({"id", "verdict", "given", "label", "decides"})


class PageServer(ThreadingHTTPServer):
    """Serves one page to one reader. `serve_forever` runs it, `shutdown` in another thread ends it."""

    daemon_threads = True

    def __init__(self, page: Page, who: str, port: int = 0) -> None:
        """Listen on a port.

        Args:
            who: the reader, whose name every verdict gets.
            port: 0 for a free one.

        Raises:
            OSError: the port is in use.
        """
        super().__init__((ADDRESS, port), _Handler)
        self.page, self.who = page, who
        self.items = {item.key: item for item in page.items}
        self.secret = secrets.token_urlsafe(24)
        self.appending = threading.Lock()
        self.picture = lru_cache(maxsize=512)(page.encode)

    @property
    def address(self) -> str:
        """The address of the page, with its secret."""
        return f"http://{ADDRESS}:{self.server_port}/{self.secret}/"

    @property
    def hosts(self) -> set[str]:
        """The hosts that a request may name: a name of another site, which resolves to this machine, is none."""
        return {f"{name}:{self.server_port}" for name in (ADDRESS, "localhost")}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a traceback, but not for a browser that closed its connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def record(self, received: Any) -> None:
        """Append a verdict of the reader.

        Raises:
            DataError: it is not a verdict about an image of the page.
        """
        where, remedy = "the verdict", "reload the page"
        if not isinstance(received, dict) or received.keys() - KEYS or not isinstance(received.get("id"), str):
            raise DataError("the verdict is malformed", expected=", ".join(sorted(KEYS)), remedy=remedy)
        item = self.items.get(received["id"])
        kind = received.get("verdict")
        if kind == UNDO and item is not None:
            verdict = Verdict(item.key, UNDO, item.given, self.who, today())
        else:
            check_verdict(received, item, len(self.page.review.dataset.classes), where, remedy)
            decides = received.get("decides") is True
            verdict = Verdict(
                received["id"], str(kind), received["given"], self.who, today(), received.get("label"), decides
            )
        with self.appending:
            append_verdicts(self.page.review.verdicts, [verdict])


def open_in_browser(address: str, directory: Path) -> None:
    """Open the page in the browser of this desktop.

    The browser gets the path of a private file, because other users of the machine can see the arguments of a process.
    """
    file = directory / "open.html"
    with atomic_file(file, mode=PRIVATE) as partial:
        partial.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={address}">', encoding="utf-8")
    # In a thread: some browsers return when they are closed.
    threading.Thread(target=webbrowser.open, args=[file.resolve().as_uri()], daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    """Responds to one connection."""

    server: PageServer
    protocol_version = "HTTP/1.1"  # one connection for many pictures
    server_version, sys_version = "review", ""
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True  # else the body of a response waits 40 ms for the receipt of its header

    def do_GET(self) -> None:
        path = self._admit()
        if path is None:
            return
        if path in FILES:
            name, kind = FILES[path]
            self._respond((STATIC / name).read_bytes(), f"{kind}; charset=utf-8", {"Cache-Control": "no-store"})
        elif path == "data.json":
            data = self.server.page.describe(self.server.who, served=True)
            body = json.dumps(data, ensure_ascii=False).encode()
            self._respond(body, "application/json", {"Cache-Control": "no-store"})
        elif (match := PICTURE.fullmatch(path)) and int(match[1]) < len(self.server.page.keys):
            body = self.server.picture(int(match[1]))
            self._respond(body, "image/png", {"Cache-Control": "private, max-age=86400, immutable"})
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        path = self._admit()
        if path is None:
            return
        length = self.headers.get("Content-Length", "")
        # A page of another site can send text without asking first, but not JSON.
        if path != "verdicts" or self.headers.get("Content-Type") != "application/json":
            return self._refuse(HTTPStatus.NOT_FOUND)
        if not re.fullmatch(r"[0-9]{1,9}", length) or int(length) > MOST_BYTES:
            return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        try:
            self.server.record(json.loads(self.rfile.read(int(length))))
        except (DataError, ValueError, RecursionError) as error:
            return self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except OSError as error:
            return self._refuse(HTTPStatus.INSUFFICIENT_STORAGE, f"the verdict was not saved: {error.strerror}")
        return self._respond(b"{}", "application/json", {})

    def _admit(self) -> str | None:
        """Return the path after the secret. A request that has not the secret, our host and our origin is refused."""
        hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
        is_ours = len(hosts) == 1 and hosts[0].lower() in self.server.hosts
        if not is_ours or any(origin != f"http://{hosts[0].lower()}" for origin in origins):
            self._refuse(HTTPStatus.FORBIDDEN)
            return None
        before, _, path = self.path[1:].partition("/")
        is_secret = secrets.compare_digest(before.encode("latin-1", "replace"), self.server.secret.encode())
        if not is_secret or not self.path.startswith(f"/{before}/"):
            self._refuse(HTTPStatus.NOT_FOUND)
            return None
        return path

    def _refuse(self, status: HTTPStatus, reason: str = "") -> None:
        self.close_connection = True  # the body of the request may be unread
        self._respond(f"{reason or status.phrase}\n".encode(), "text/plain; charset=utf-8", {}, status)

    def _respond(self, body: bytes, kind: str, headers: dict[str, str], status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        closing = {"Connection": "close"} if self.close_connection else {}
        for name, value in (HEADERS | headers | closing).items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: the address of a request contains the secret."""
