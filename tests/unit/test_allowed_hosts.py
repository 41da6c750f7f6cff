"""Requests with a foreign host or origin reach neither Prefect's application nor MLflow's."""

import asyncio
from typing import Any

import pytest

from pipeline.allowed_hosts import guard, own_names
from pipeline.errors import FlowError

OWN = "127.0.0.1:4200"


def answer(kind: str, *headers: tuple[str, str], host: str = "127.0.0.1", allowed: str = "", path: str = "/api") -> str:
    """What comes of a request: `passed`, or what is sent instead of the application's answer."""
    told: list[str] = []

    async def application(*_: Any) -> None:
        told.append("passed")

    async def send(message: dict[str, Any]) -> None:
        if message["type"] != "http.response.body":
            told.append(f"{message['type']} {message.get('status', '')}".strip())

    scope = {"type": kind, "path": path, "headers": [(name.encode(), value.encode()) for name, value in headers]}
    asyncio.run(guard(application, host, allowed, "/closed")(scope, None, send))  # type: ignore[arg-type]
    return " ".join(told)


@pytest.mark.parametrize(
    "host",
    [OWN, "127.0.0.1", "localhost:4200", "LOCALHOST", "[::1]:4200", "gpu-box.lan:4200", "10.0.0.7", "[fd00::7]:1"],
)
def test_names_of_this_machine_are_answered(host: str) -> None:
    options = {"host": "10.0.0.7", "allowed": "GPU-box.lan, fd00::7"}
    assert answer("http", ("host", host), **options) == "passed"
    assert answer("http", ("host", host), ("origin", f"http://{host.lower()}"), **options) == "passed"
    assert answer("websocket", ("host", host), ("origin", f"https://{host}"), **options) == "passed"


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:4200", "localhost.evil.example", "10.evil.example", "192.168.evil.example:4200",
     "0.0.0.0:4200", "localhost:4200.evil.example", "evil.example@localhost", "localhost/evil.example", "127.0.0.1 x"],
)  # fmt: skip
def test_a_foreign_host_is_refused(host: str) -> None:
    assert answer("http", ("host", host), host="0.0.0.0") == "http.response.start 403"
    assert answer("websocket", ("host", host), host="0.0.0.0") == "websocket.close"


def test_every_host_header_counts_and_none_is_refused() -> None:
    assert answer("http") == "http.response.start 403"
    assert answer("http", ("host", OWN), ("Host", "evil.example")) == "http.response.start 403"


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "", "http://localhost:4200", "http://127.0.0.1:8000", "http://127.0.0.1",
     "http://127.0.0.1:4200.evil.example", "http://evil.example/http://127.0.0.1:4200", "http://gpu-box.lan:8000"],
)  # fmt: skip
def test_a_foreign_origin_is_refused_also_from_another_port_of_this_machine(origin: str) -> None:
    options = {"allowed": "gpu-box.lan"}
    assert answer("http", ("host", OWN), ("origin", origin), **options) == "http.response.start 403"
    assert answer("websocket", ("host", OWN), ("origin", origin), **options) == "websocket.close"


def test_a_proxy_with_tls_passes_an_allowed_name_as_the_origin() -> None:
    assert answer("http", ("host", OWN), ("origin", "https://gpu-box.lan"), allowed="gpu-box.lan") == "passed"


def test_a_closed_path_is_refused() -> None:
    assert answer("http", ("host", OWN), path="/closed/now") == "http.response.start 403"
    assert answer("http", ("host", OWN), path="/api/closed") == "passed"


def test_what_is_no_request_is_passed_on() -> None:
    assert answer("lifespan") == "passed"


def test_an_address_to_listen_on_is_no_name() -> None:
    assert own_names("0.0.0.0", "") == own_names("::", "") == ["localhost", "127.0.0.1", "[::1]"]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("gpu-box.lan:8443", "leave the port out: gpu-box.lan"),
        ("192.168.1.20:5000", "leave the port out: 192.168.1.20"),
        ("[fd00::7]:5000", "leave the port out: [fd00::7]"),
        ("https://gpu-box.lan", "--allowed-hosts gpu-box.lan"),
        ("fd00::7::1", "--allowed-hosts gpu-box.lan"),
        ("[gpu-box.lan]", "--allowed-hosts gpu-box.lan"),
    ],
)
def test_what_no_request_can_match_is_no_host_name(name: str, remedy: str) -> None:
    with pytest.raises(FlowError, match="as a host name") as refused:
        own_names("127.0.0.1", f"other.lan, {name}")
    assert (refused.value.found, refused.value.remedy) == (name, remedy)


def test_an_ipv6_address_may_have_brackets_already() -> None:
    assert own_names("127.0.0.1", "FD00::7,[fd00::8]")[-2:] == ["[fd00::7]", "[fd00::8]"]
