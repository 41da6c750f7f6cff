"""Behind an HTTP proxy, requests to this machine go directly, by every library that our tools use."""

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
import requests

from pipeline.proxies import VARIABLES, bypass_proxy
from tests.conftest import CLOSED_PROXY

CLOSED = CLOSED_PROXY["http_proxy"]


@pytest.fixture(autouse=True)
def proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # what a test sets goes with it
    for name, value in CLOSED_PROXY.items():
        monkeypatch.setenv(name, value)
    urllib.request.install_opener(None)  # type: ignore[arg-type]  # one that was made without the proxy


class Hello(BaseHTTPRequestHandler):
    """Answers every question."""

    def do_GET(self) -> None:  # the name that the library calls
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Hello) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_port
        running.shutdown()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_every_library_reaches_this_machine_without_the_proxy(server: int, host: str) -> None:
    address = f"http://{host}:{server}/health"
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address)
    bypass_proxy()
    assert urllib.request.urlopen(address).status == 200
    assert httpx.get(address).status_code == 200
    assert requests.get(address).status_code == 200


def test_other_machines_are_reached_through_the_proxy() -> None:
    bypass_proxy("gpu-box.lan")
    assert urllib.request.getproxies()["http"] == CLOSED
    for host, direct in [("mlflow.example.com", False), ("10.0.0.7", False), ("gpu-box.lan", True)]:
        assert bool(urllib.request.proxy_bypass(host)) == direct
        assert requests.utils.should_bypass_proxies(f"http://{host}/", no_proxy=None) == direct
    httpx.Client().close()  # it refuses what it does not understand


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        ("", "", "127.0.0.1,localhost,::1"),
        (".example.com, localhost", "", ".example.com,localhost,127.0.0.1,::1"),
        ("", "10.0.0.0/8", "10.0.0.0/8,127.0.0.1,localhost,::1"),
        ("a.lan", "b.lan", "a.lan,b.lan,127.0.0.1,localhost,::1"),
    ],
)
def test_what_stands_there_is_kept(monkeypatch: pytest.MonkeyPatch, lower: str, upper: str, expected: str) -> None:
    for name, value in zip(VARIABLES, (lower, upper), strict=True):
        monkeypatch.setenv(name, value)
    for _ in range(2):  # a process and one that it starts
        bypass_proxy()
        assert [os.environ[name] for name in VARIABLES] == [expected, expected]


def test_no_proxy_for_any_machine_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    bypass_proxy()
    assert (os.environ["no_proxy"], os.environ["NO_PROXY"]) == ("*", "")
