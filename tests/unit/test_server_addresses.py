"""Which servers a command uses: what the user set, what `pipeline up` started if it answers, or none."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline.errors import WorkspaceError
from pipeline.flows import prefect_server
from pipeline.flows.prefect_server import SETTINGS, open_server
from pipeline.server_addresses import (
    AUTH_FILE,
    CLIENT_AUTH,
    LOCK,
    SERVER_AUTH,
    SETTINGS_FILE,
    WARNED_VARIABLE,
    Stack,
    answers,
    auth_string,
    data_directory,
    find_server,
    is_same_server,
    move_data,
    prefect_credentials,
    prefect_home,
    read_stack,
    remove_stack,
    write_stack,
)
from pipeline.tracking.store import locate
from pipeline.workspace import lock

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT", "DVC_ROOT", CLIENT_AUTH, SERVER_AUTH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(WARNED_VARIABLE, "")  # what a test sets goes with it


class Healthy(BaseHTTPRequestHandler):
    """Says that it is well where MLflow and Prefect do, and is not under any other address."""

    def do_GET(self) -> None:  # the name that the library calls
        self.send_response(200 if self.path in ("/health", "/api/health") else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Healthy) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@contextmanager
def serving(root: Path, *, auth_from_file: bool = True, **addresses: str) -> Iterator[None]:
    """What `pipeline up` holds and has written while it serves."""
    with lock(LOCK, wait=0, remedy="", root=root):
        write_stack(root, Stack(os.getpid(), **addresses, auth_from_file=auth_from_file))
        yield


def test_what_was_written_is_read_until_it_is_removed(tmp_path: Path) -> None:
    assert read_stack(tmp_path) is None
    stack = Stack(123, mlflow="http://127.0.0.1:5000")
    write_stack(tmp_path, stack)
    assert read_stack(tmp_path) == stack
    assert "prefect" not in (tmp_path / ".pipeline/stack.json").read_text()  # a server that is not served
    remove_stack(tmp_path)
    remove_stack(tmp_path)
    assert read_stack(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"mlflow": "http://127.0.0.1:5000"}', '{"pid": 1, "other": 2}'])
def test_a_file_that_is_not_ours_names_no_server(tmp_path: Path, content: str) -> None:
    (tmp_path / ".pipeline").mkdir()
    (tmp_path / ".pipeline/stack.json").write_text(content)
    assert read_stack(tmp_path) is None
    assert find_server(tmp_path, "mlflow") is None


def test_a_server_that_answers_is_used(tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path, mlflow=server, prefect=f"{server}/api"):
        assert find_server(tmp_path, "mlflow") == server
        assert find_server(tmp_path, "prefect") == f"{server}/api"
        store = locate(tmp_path)
    assert (store.uri, store.artifacts, store.database) == (server, None, None)  # the server decides where files are
    assert capsys.readouterr().err == ""


def test_who_answers_where_a_killed_stack_did_is_not_asked(
    tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path, mlflow=server, prefect=f"{server}/api"):
        kept = (tmp_path / ".pipeline/locks/the-stack.json").read_text()
    (tmp_path / ".pipeline/locks/the-stack.json").write_text(kept)  # as kill -9 leaves it
    assert find_server(tmp_path, "prefect") is None
    assert locate(tmp_path).uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert capsys.readouterr().err.splitlines() == [
        f"`pipeline up`, process {os.getpid()}, ended unexpectedly: continuing without it, on the same records"
    ]
    write_stack(tmp_path, Stack(os.getpid() + 1, mlflow=server))
    with lock(LOCK, wait=0, remedy="", root=tmp_path):  # as what restores a backup does
        assert find_server(tmp_path, "mlflow") is None


def test_a_server_that_is_not_well_does_not_answer(server: str) -> None:
    assert answers(f"{server}/health")
    assert not answers(f"{server}/elsewhere/health")


def test_one_line_says_that_nobody_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path, mlflow=NOBODY, prefect=f"{NOBODY}/api"):
        assert locate(tmp_path).uri == f"sqlite:///{tmp_path}/mlflow.db"
        assert find_server(tmp_path, "prefect") is None
        assert locate(tmp_path).database == tmp_path / "mlflow.db"
    assert capsys.readouterr().err.splitlines() == [
        f"{NOBODY}, started by `pipeline up`, does not respond: continuing without it, on the same records"
    ]


def test_what_is_not_served_is_not_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path, prefect=f"{NOBODY}/api"):
        assert find_server(tmp_path, "mlflow") is None
    assert capsys.readouterr().err == ""


def test_what_the_user_set_is_used_whether_it_answers_or_not(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    with serving(tmp_path, mlflow=server):
        assert locate(tmp_path).uri == NOBODY


def test_a_temporary_copy_uses_the_servers_of_its_repository(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    with serving(tmp_path / "main", mlflow=server):
        assert locate(tmp_path / "copy").uri == server


def test_moved_data_is_found_without_a_server(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "project", tmp_path / "data"
    assert (data_directory(root), prefect_home(root)) == (root, None)
    assert prefect_home(root, elsewhere) == elsewhere / "prefect"
    move_data(root, elsewhere)
    assert prefect_home(root, root) is None
    assert (data_directory(root), prefect_home(root)) == (elsewhere, elsewhere / "prefect")
    store = locate(root)
    assert (store.database, store.artifacts) == (elsewhere / "mlflow.db", f"file://{elsewhere}/mlruns")
    move_data(root, root)
    assert (data_directory(root), prefect_home(root)) == (root, None)


@pytest.mark.parametrize("content", ["", '{"data": "/sr', "[]", '{"data": 5}'])
def test_settings_that_were_cut_off_are_refused_in_words(tmp_path: Path, content: str) -> None:
    move_data(tmp_path, tmp_path / "elsewhere")
    (tmp_path / SETTINGS_FILE).write_text(content)
    with pytest.raises(WorkspaceError, match=r"settings\.json is damaged(?s:.)*pipeline up --data DIRECTORY"):
        locate(tmp_path)  # another store, an empty one, would be the wrong answer


def test_the_password_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    file = tmp_path / AUTH_FILE
    former = os.umask(0)
    try:
        with ThreadPoolExecutor(8) as pool:
            made = set(pool.map(auth_string, [tmp_path] * 8))
    finally:
        os.umask(former)
    assert len(made) == 1
    user, _, password = made.pop().partition(":")
    assert (user, len(password)) == ("pipeline", 43)
    assert file.read_text() == f"{user}:{password}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    assert auth_string(tmp_path) == f"{user}:{password}"
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("")  # what a power cut may leave
    assert len(auth_string(tmp_path)) > 43
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in file.parent.iterdir()) == ["locks", file.name]


def test_the_password_is_for_the_server_of_this_repository_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = f"{NOBODY}/api"
    assert prefect_credentials(tmp_path, ours) == {}
    made = auth_string(tmp_path)
    with serving(tmp_path, prefect=ours):
        assert prefect_credentials(tmp_path, f"{ours}/") == {"PREFECT_API_URL": ours, CLIENT_AUTH: made}
        assert prefect_credentials(tmp_path, "http://127.0.0.1:4200/api") == {}
        write_stack(tmp_path, Stack(os.getpid() + 1, prefect=ours, auth_from_file=True))  # of one that was killed
        assert prefect_credentials(tmp_path, ours) == {}


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "[::1]"])
def test_the_password_is_sent_to_the_address_that_the_server_listens_on(tmp_path: Path, host: str) -> None:
    made = auth_string(tmp_path)
    with serving(tmp_path, prefect=f"{NOBODY}/api"):
        found = prefect_credentials(tmp_path, f"http://{host}:9/api")
    assert found == {"PREFECT_API_URL": f"{NOBODY}/api", CLIENT_AUTH: made}


@pytest.mark.parametrize("known", [{}, {SERVER_AUTH: "admin:other"}])
def test_the_file_replaces_the_password_of_another_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: dict[str, str]
) -> None:
    made = auth_string(tmp_path)
    for name, value in {CLIENT_AUTH: "team:secret", **known}.items():
        monkeypatch.setenv(name, value)
    with serving(tmp_path, prefect=f"{NOBODY}/api"):
        assert prefect_credentials(tmp_path, f"{NOBODY}/api")[CLIENT_AUTH] == made
        assert prefect_credentials(tmp_path, "https://prefect.example.com/api") == {}


def test_a_run_sends_no_password_of_another_server_to_this_one(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = auth_string(tmp_path)
    there = {"PREFECT_API_URL": f"{server.replace('127.0.0.1', 'localhost')}/api", CLIENT_AUTH: "team:secret"}
    for name, value in {**there, **SETTINGS}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(prefect_server, "main_repository", lambda _: tmp_path)
    with serving(tmp_path, prefect=f"{server}/api"), open_server(tmp_path):
        assert [os.environ[name] for name in there] == [f"{server}/api", made]
    assert {name: os.environ[name] for name in there} == there


def test_a_password_of_the_environment_replaces_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = f"{NOBODY}/api"
    auth_string(tmp_path)  # of a former start
    monkeypatch.setenv(CLIENT_AUTH, "admin:set for the clients")
    with serving(tmp_path, prefect=ours, auth_from_file=False):
        assert prefect_credentials(tmp_path, ours) == {}  # the client's own counts
        monkeypatch.setenv(SERVER_AUTH, "admin:set for the server")
        assert prefect_credentials(tmp_path, ours)[CLIENT_AUTH] == "admin:set for the server"
        monkeypatch.delenv(CLIENT_AUTH)
        assert prefect_credentials(tmp_path, ours)[CLIENT_AUTH] == "admin:set for the server"


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        ("http://localhost:4200/api", True),
        ("http://[::1]:4200/api/", True),
        ("http://127.0.0.1:4201/api", False),
        ("http://127.0.0.1:4200", False),
        ("https://127.0.0.1:4200/api", False),
        ("http://127.0.0.2:4200/api", False),
        ("http://localhost.example.com:4200/api", False),
        ("http://127.0.0.1:port/api", False),
        ("http://[::1:4200/api", False),
        ("", False),
    ],
)
def test_only_the_names_of_the_loopback_interface_are_equal(other: str, is_same: bool) -> None:
    assert is_same_server(other, "http://127.0.0.1:4200/api") == is_same


def test_asking_imports_no_tool() -> None:
    program = (
        "import sys, pipeline.server_addresses; print({'mlflow', 'prefect', 'http.client', 'numpy'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
