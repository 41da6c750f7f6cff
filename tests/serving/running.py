"""The application behind a real port of this machine, in a thread of the test process."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from pipeline.serving.params import ServeParams
from pipeline.serving.protocol import BoundedProtocol
from pipeline.serving.settings import ServeSettings
from tests.processes import wait_until

KEY = "a-key-of-the-tests-only"


@dataclass(frozen=True)
class Answer:
    """A response."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    port: int
    app: FastAPI | None = None

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Send a request; `_` in the name of a header stands for `-`."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return Answer(
                response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}
            )
        finally:
            connection.close()

    def predict(self, content: Any, **headers: str) -> Answer:
        """Send JSON to /v1/predict."""
        return self.ask(
            "POST", "/v1/predict", json.dumps(content).encode(), **{"content_type": "application/json", **headers}
        )

    def send_raw(self, request: bytes, *, close: bool = True) -> bytes:
        """Send bytes as they are, end the sending side, and return all that comes back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(request)
            if close:
                connection.shutdown(socket.SHUT_WR)
            received = b""
            while part := connection.recv(65536):
                received += part
            return received


def make_settings(root: Path, *, host: str = "127.0.0.1", key: str | None = KEY, **params: Any) -> ServeSettings:
    """Settings for a test, with small limits."""
    limits: dict[str, Any] = {
        "max_images": 64, "max_body_mb": 1.0, "body_seconds": 1.0, "max_batch": 16, "max_waiting": 64,
        "shadow": "none", "log_share": 1.0, "keep_days": 1, "log_limit_mb": 10,
        "keep_images": False,
    }  # fmt: skip
    return ServeSettings(
        root=root, workspace=root, params=ServeParams(**{**limits, **params}), host=host, key=key, threads=1
    )


@contextmanager
def running(app: FastAPI) -> Iterator[Running]:
    """Serve an application in the block."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, http=BoundedProtocol, ws="none", log_config=None, access_log=False, lifespan="on")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        yield Running(listening.getsockname()[1], app)
    finally:
        server.should_exit = True
        thread.join()
