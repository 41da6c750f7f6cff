"""A light HTTP client for `serving.py`: it sends one body again and again, and prints what came back as JSON.

    python benchmarks/http_load.py 5002 /v1/predict body.json application/json --clients 32 --seconds 10

It is a process of its own, with raw sockets in one event loop (uvloop), about 0.05 ms of work for each request. Without
`--rate`, each client sends its next request after the answer to the last one. With it, requests start at that rate,
whether or not the earlier ones were answered.
"""

import argparse
import asyncio
import json
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

VERSION = re.compile(rb'"version": "(\d+)"')
TIMEOUT_SECONDS = 30
MOST_CONNECTIONS = 1000  # with a rate; requests beyond it are counted as not sent


@dataclass
class Found:
    """The answers so far."""

    ends: list[float] = field(default_factory=list)  # Unix times
    seconds: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)  # 0: no answer
    versions: list[int] = field(default_factory=list)  # 0: none in the answer
    not_sent: int = 0
    is_stopped: bool = False  # by SIGINT


class Client:
    """One connection, which is opened again after an error."""

    def __init__(self, port: int, request: bytes, found: Found) -> None:
        self._port, self._request, self._found = port, request, found
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> None:
        """Send the request once and note the answer."""
        start, status, version = time.perf_counter(), 0, 0
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                status, version = await self._exchange()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            self._close()
        found = self._found
        found.seconds.append(time.perf_counter() - start)
        found.ends.append(time.time())
        found.statuses.append(status)
        found.versions.append(version)

    async def _exchange(self) -> tuple[int, int]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        lower = head.lower()
        length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        if b"connection: close" in lower:
            self._close()
        version = VERSION.search(body, 0, 200)
        return int(head[9:12]), int(version[1]) if version else 0

    def _close(self) -> None:
        if self._streams:
            self._streams[1].close()
            self._streams = None


async def send_in_turn(clients: list[Client], found: Found, deadline: float, most: int) -> None:
    """Let each client send request after request."""
    left = most

    async def work(client: Client) -> None:
        nonlocal left
        while time.perf_counter() < deadline and left > 0 and not found.is_stopped:
            left -= 1
            await client.ask()

    await asyncio.gather(*map(work, clients))


async def send_at_rate(port: int, request: bytes, found: Found, rate: float, deadline: float) -> None:
    """Start requests at a rate."""
    idle: list[Client] = []
    tasks: set[asyncio.Task[None]] = set()

    async def work(client: Client) -> None:
        await client.ask()
        idle.append(client)

    start, sent = time.perf_counter(), 0
    while (now := time.perf_counter()) < deadline:
        due = int((now - start) * rate) - sent
        for _ in range(due):
            sent += 1
            if len(tasks) >= MOST_CONNECTIONS:
                found.not_sent += 1
                continue
            task = asyncio.create_task(work(idle.pop() if idle else Client(port, request, found)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.sleep(0.002)
    await asyncio.gather(*tasks)


def summarize(found: Found, seconds: float) -> dict[str, Any]:
    """Describe the answers: counts by status, quantiles of the time to answer in ms, and answers a second."""
    statuses, taken = np.array(found.statuses), np.array(found.seconds)
    good = taken[statuses == 200] * 1000
    quantiles = {f"p{q}": round(float(np.percentile(good, q)), 3) for q in (50, 90, 99)} if len(good) else {}
    counts = {str(status): int((statuses == status).sum()) for status in np.unique(statuses)}
    return {"statuses": counts, "rate": round(len(good) / seconds, 1), "not_sent": found.not_sent, **quantiles}


async def main() -> None:
    """Send, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("body", type=Path)
    parser.add_argument("kind")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--requests", type=int, default=10**9)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--answers", type=Path, help="write time, duration, status and version of each answer there")
    arguments = parser.parse_args()
    body, found = arguments.body.read_bytes(), Found()
    head = f"POST {arguments.path} HTTP/1.1\r\nhost: 127.0.0.1:{arguments.port}\r\ncontent-type: {arguments.kind}\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    start = time.perf_counter()
    deadline = start + arguments.seconds
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, setattr, found, "is_stopped", True)
    if arguments.rate:
        await send_at_rate(arguments.port, request, found, arguments.rate, deadline)
    else:
        clients = [Client(arguments.port, request, found) for _ in range(arguments.clients)]
        await send_in_turn(clients, found, deadline, arguments.requests)
    print(json.dumps(summarize(found, time.perf_counter() - start)))
    if arguments.answers:
        np.save(arguments.answers, np.array([found.ends, found.seconds, found.statuses, found.versions]))


if __name__ == "__main__":
    uvloop.run(main())
