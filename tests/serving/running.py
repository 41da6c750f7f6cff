"""Servers for tests: the application in a thread of the test process, or `pipeline serve` as a process."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import uvicorn
from fastapi import FastAPI

from pipeline.serving.params import ServeParams
from pipeline.serving.protocol import BoundedProtocol
from pipeline.serving.settings import ServeSettings
from tests.e2e.servers import find_free_port
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


@contextmanager
def serving(root: Path, log: Path, *options: str) -> Iterator[tuple[Running, subprocess.Popen[bytes]]]:
    """Run `pipeline serve` in a workspace, and wait until it is ready. It has to end by itself at a signal."""
    port = find_free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "serve", "--port", str(port), *options],
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        server = Running(port)

        def is_ready() -> bool:
            assert process.poll() is None, log.read_text()
            return is_listening(port) and server.ask("GET", "/health/ready").status == 200

        wait_until(is_ready, 120, log.read_text)
        yield server, process
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def list_children(process: subprocess.Popen[bytes]) -> dict[str, list[psutil.Process]]:
    """The processes of a server: `worker` and `resolver`."""
    found: dict[str, list[psutil.Process]] = {"worker": [], "resolver": []}
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.Error, IndexError, KeyError):  # it has just started or ended
            found[child.cmdline()[-1].rpartition(".")[2]].append(child)
    return found
