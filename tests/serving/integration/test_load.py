"""A loaded server: it switches versions without a failed request, and refuses what is too much."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any

import numpy as np
import pytest

from tests.integration.recorded import empty_store
from tests.processes import wait_until
from tests.serving.models import EXAMPLE, SHAPE, ServingWorkspace, model_files, serving_workspace
from tests.serving.running import serving

__all__ = ["empty_store", "model_files", "serving_workspace"]  # fixtures

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("serving-load")]
ONE = {"images": EXAMPLE[:1].tolist()}
SECONDS = 90  # for what takes three


@dataclass
class Load:
    """Clients that ask again and again, each on one connection."""

    answers: list[tuple[float, int, Any]] = field(default_factory=list)  # start, status, content


@contextmanager
def asking(port: int, clients: int, content: Any) -> Iterator[Load]:
    """Ask in the block."""
    load, ended, body = Load(), threading.Event(), json.dumps(content).encode()

    def work() -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        while not ended.is_set():
            start = time.monotonic()
            try:
                connection.request("POST", "/v1/predict", body, {"content-type": "application/json"})
                response = connection.getresponse()
                load.answers.append((start, response.status, json.loads(response.read())))
            except (OSError, HTTPException) as error:
                load.answers.append((start, 0, repr(error)))

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_no_request_fails_while_versions_are_switched(serving_workspace: ServingWorkspace) -> None:
    root = serving_workspace.root
    with serving(root, root / "serve.log") as (server, _), asking(server.port, 16, ONE) as load:
        seen = []
        for version in 4 * ("2", "3"):
            serving_workspace.promote(version)
            wait_until(
                lambda: server.ask("GET", "/health/ready").json["version"] == version,  # noqa: B023
                SECONDS,
            )
            seen.append((time.monotonic(), version))
        wait_until(lambda: load.answers[-1][0] > seen[-1][0], SECONDS)
    assert Counter(status for _, status, _ in load.answers) == {200: len(load.answers)}
    assert {content["version"] for start, _, content in load.answers if start > seen[-1][0]} == {"3"}


def test_an_overloaded_server_refuses_and_recovers(serving_workspace: ServingWorkspace) -> None:
    root = serving_workspace.root
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("max_waiting: 1024", "max_waiting: 8"))
    many = {"images": np.zeros((8, *SHAPE), np.uint8).tolist()}
    with serving(root, root / "overload.log") as (server, process):
        with asking(server.port, 64, many) as load:
            wait_until(lambda: {status for _, status, _ in load.answers} >= {200, 503}, SECONDS)
            wait_until(lambda: len(load.answers) > 3000, SECONDS)
        counts = Counter(status for _, status, _ in load.answers)
        assert counts.keys() == {200, 503}
        (refusal,) = {content["error"] for _, status, content in load.answers if status == 503}
        assert refusal == "the server has more requests than it can answer"
        assert server.predict(ONE).status == 200
        assert process.poll() is None
        assert "restarting" not in (root / "overload.log").read_text()
