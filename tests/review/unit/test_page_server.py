"""The server of the page: its answers to a reader, and to everybody else."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.review.page import compose_page
from pipeline.review.page_server import PageServer
from pipeline.review.verdicts import collect_outcomes, read_verdicts
from tests.review.listed import make_checkout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    path = tmp_path_factory.mktemp("checkout")
    with PageServer(compose_page(path, make_checkout(path), 1000), "reader-1") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def verdicts(server: PageServer) -> Iterator[Path]:
    yield server.page.review.verdicts
    server.page.review.verdicts.unlink(missing_ok=True)


def ask(
    server: PageServer, path: str, body: bytes | None = None, method: str | None = None, **headers: str
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if body is None else "POST"), path, body, sent)
    response = connection.getresponse()
    answer = response.status, response.read(), response.headers
    connection.close()
    return answer


def post(server: PageServer, verdict: Any, **headers: str) -> int:
    sent = {"Content_Type": "application/json"} | headers
    return ask(server, f"/{server.secret}/verdicts", json.dumps(verdict).encode(), **sent)[0]


def test_a_reader_gets_the_page_its_data_and_its_pictures(server: PageServer) -> None:
    for name, kind in (("", "text/html"), ("review.css", "text/css"), ("review.js", "text/javascript")):
        status, _, headers = ask(server, f"/{server.secret}/{name}")
        assert (status, headers.get_content_type()) == (200, kind)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["Referrer-Policy"] == "no-referrer"
    data = json.loads(ask(server, f"/{server.secret}/data.json")[1])
    assert {item["id"] for item in data["items"]} == {item.id for item in server.page.items}
    assert ask(server, f"/{server.secret}/pictures/{data['items'][0]['picture']}.png")[1].startswith(b"\x89PNG")


OTHERS = ["/", "/data.json", "/wrong/", "/wrong/data.json", "/%2e%2e/", "{}", "{}x/data.json", "{}/nothing", "{}//"]
OTHERS += [f"{{}}/{path}" for path in ("../review.js", "static/review.js", "pictures/99999.png", "pictures/%31.png")]


@pytest.mark.parametrize("path", OTHERS)
def test_other_addresses_are_not_found(server: PageServer, path: str) -> None:
    status, body, _ = ask(server, path.format(f"/{server.secret}"))
    assert (status, body) == (404, b"Not Found\n")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example"},
        {"Host": "rebound.example:{port}"},
        {"Host": "127.0.0.1:1"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "null"},
    ],
    ids=lambda headers: " ".join(*headers.items()),
)
def test_foreign_hosts_and_origins_are_refused(server: PageServer, verdicts: Path, headers: dict[str, str]) -> None:
    sent = {name: value.format(port=server.server_port) for name, value in headers.items()}
    item = server.page.items[0]
    assert ask(server, f"/{server.secret}/data.json", **sent)[0] == 403
    assert post(server, {"id": item.id, "given": item.given, "verdict": "keep"}, **sent) == 403
    assert not verdicts.exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"id": "0" * 40 + "-0"},
        {"id": None},
        {"given": 99},
        {"verdict": "delete"},
        {"verdict": "relabel"},
        {"verdict": "relabel", "label": 10},
        {"label": 3},
        {"path": "/etc/passwd"},
    ],
    ids=str,
)
def test_a_wrong_verdict_is_refused(server: PageServer, verdicts: Path, changed: dict[str, Any]) -> None:
    item = server.page.items[0]
    assert post(server, {"id": item.id, "given": item.given, "verdict": "keep"} | changed) == 400
    assert not verdicts.exists()


def test_other_requests_are_refused(server: PageServer, verdicts: Path) -> None:
    item = server.page.items[0]
    good = {"id": item.id, "given": item.given, "verdict": "keep"}
    assert post(server, good, Content_Type="text/plain") == 404
    assert post(server, [good]) == 400
    assert post(server, good | {"id": "x" * 5000}) == 413
    as_json = {"Content_Type": "application/json"}
    assert ask(server, f"/{server.secret}/verdicts", b"{", **as_json)[0] == 400
    assert ask(server, f"/{server.secret}/data.json", b"{}", **as_json)[0] == 404
    assert ask(server, f"/{server.secret}/", method="DELETE")[0] == 501
    assert not verdicts.exists()


def test_a_verdict_is_on_the_disk_when_it_is_confirmed(server: PageServer, verdicts: Path) -> None:
    item, items = server.page.items[0], server.page.items
    sent = {"id": item.id, "given": item.given, "verdict": "relabel", "label": item.suggested}
    assert post(server, sent, Origin=f"http://127.0.0.1:{server.server_port}") == 200
    (outcome,) = collect_outcomes(items, read_verdicts(verdicts, items))
    assert [(each.who, each.target) for each in outcome.verdicts] == [("reader-1", item.suggested)]
    log = json.loads(ask(server, f"/{server.secret}/data.json")[1])["log"]
    assert log == [{"id": item.id, "verdict": "relabel", "label": item.suggested}]
    assert post(server, {"id": item.id, "verdict": "undo"}) == 200
    assert read_verdicts(verdicts, items) == []
