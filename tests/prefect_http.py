"""Prefect's API for tests, asked as Prefect's own client asks it: again, while its SQLite database is busy (503)."""

import time
from functools import partial
from http import HTTPStatus
from typing import Any

import httpx

BUSY_SECONDS = 60


def request(method: str, url: str, json: Any = None, auth: str | None = None) -> httpx.Response:
    """The answer to a request, once the server is not busy any more.

    Args:
        auth: what a server asks for, as `user:password`.
    """
    known = httpx.BasicAuth(*auth.split(":", 1)) if auth else None
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        answer = httpx.request(method, url, json=json, auth=known, timeout=BUSY_SECONDS)
        if answer.status_code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
            return answer
        time.sleep(0.5)


get, post, patch, delete = (partial(request, method) for method in ("GET", "POST", "PATCH", "DELETE"))
