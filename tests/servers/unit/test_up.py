"""What `pipeline up` starts, and what it refuses before it starts anything."""

import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import FlowError, WorkspaceError
from pipeline.rooms import RoomServer
from pipeline.servers import parts as parts_module
from pipeline.servers import up
from pipeline.servers.parts import Listening, describe, find_owner, plan, require_free_port, require_protection
from pipeline.servers.up import run_parts

SECRETS = {
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "first-secret",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "second-secret",
    "PREFECT_SERVER_API_AUTH_STRING": "admin:third-secret",
}


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("MLFLOW_", "PREFECT_")):
            monkeypatch.delenv(name)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def test_a_port_in_use_is_refused_with_its_owner(taken: int) -> None:
    with pytest.raises(FlowError, match=f"port {taken} is in use") as refused:
        require_free_port("127.0.0.1", taken, "--mlflow-port")
    assert f"process {os.getpid()}: " in refused.value.found
    assert "python" in refused.value.found
    assert f"--mlflow-port {taken + 1}" in refused.value.remedy


def test_a_port_that_nobody_has_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    require_free_port("127.0.0.1", port, "--mlflow-port")
    assert find_owner(port) == "a process that this user cannot see"


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(FlowError, match="cannot listen on 192.0.2.1, port 5000"):
        require_free_port("192.0.2.1", 5000, "--mlflow-port")


@pytest.mark.parametrize(
    ("host", "is_open", "address"),
    [
        ("127.0.0.1", False, "http://127.0.0.1:5000"),
        ("localhost", False, "http://localhost:5000"),
        ("::1", False, "http://[::1]:5000"),
        ("0.0.0.0", True, "http://127.0.0.1:5000"),
        ("::", True, "http://[::1]:5000"),
        ("192.168.1.20", True, "http://192.168.1.20:5000"),
        ("gpu-box.lan", True, "http://gpu-box.lan:5000"),
    ],
)
def test_only_the_loopback_is_closed_to_other_machines(host: str, is_open: bool, address: str) -> None:
    listening = Listening(host)
    assert listening.is_open == is_open
    assert listening.mlflow == address


@pytest.mark.parametrize("missing", SECRETS)
def test_each_secret_is_needed_for_other_machines(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    parts = plan(Listening("0.0.0.0"))
    require_protection(parts)
    monkeypatch.delenv(missing)
    with pytest.raises(FlowError, match="without a password") as refused:
        require_protection(parts)
    assert refused.value.found == f"{missing} not set"
    assert not [value for value in SECRETS.values() if value in str(refused.value)]


@pytest.mark.parametrize("weak", SECRETS)
def test_a_weak_secret_is_refused_for_other_machines(monkeypatch: pytest.MonkeyPatch, weak: str) -> None:
    short = "11letters.."
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(weak, f"administrator:{short}" if weak == "PREFECT_SERVER_API_AUTH_STRING" else short)
    with pytest.raises(FlowError, match="12 characters or more") as refused:
        require_protection(plan(Listening("0.0.0.0")))
    assert refused.value.found == f"11 characters in {weak}"
    assert short not in str(refused.value)


def test_only_the_secrets_of_what_is_served_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "admin:third-secret")
    require_protection(plan(Listening("0.0.0.0"), "prefect"))


def test_secrets_and_addresses_with_passwords_are_no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SECRETS, "MLFLOW_TRACKING_URI": "postgresql://team:fourth-secret@host/mlflow"}.items():
        monkeypatch.setenv(name, value)
    parts = plan(Listening())
    assert [part.name for part in parts] == ["mlflow", "prefect", "runner"]
    assert not [argument for part in parts for argument in part.arguments if "secret" in argument]


def test_a_server_that_runs_elsewhere_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.com")
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example.com/api")
    (runner,) = plan(Listening())
    assert (runner.name, runner.environment["PREFECT_API_URL"]) == ("runner", "https://prefect.example.com/api")


def test_exporting_the_stacks_own_addresses_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    listening = Listening()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{listening.mlflow}/")
    monkeypatch.setenv("PREFECT_API_URL", listening.prefect)
    mlflow, prefect, runner = plan(listening)
    assert (mlflow.name, prefect.name, runner.name) == ("mlflow", "prefect", "runner")
    assert "MLFLOW_TRACKING_URI" not in mlflow.environment  # it would be its own client


@pytest.mark.parametrize("host", ["localhost", "[::1]"])
def test_another_name_of_this_machine_is_no_other_server(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{host}:5000/")
    monkeypatch.setenv("PREFECT_API_URL", f"http://{host}:4200/api/")
    mlflow, prefect, runner = plan(Listening())
    assert (mlflow.name, prefect.name, runner.name) == ("mlflow", "prefect", "runner")
    assert "MLFLOW_TRACKING_URI" not in mlflow.environment
    assert runner.environment["MLFLOW_TRACKING_URI"] == Listening().mlflow
    assert runner.environment["PREFECT_API_URL"] == Listening().prefect


def test_an_empty_address_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "")
    assert [part.name for part in plan(Listening())] == ["mlflow", "prefect", "runner"]


def test_the_runner_gets_the_password_of_the_server_that_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "team:secret")
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "admin:third-secret")
    assert plan(Listening())[-1].environment["PREFECT_API_AUTH_STRING"] == "admin:third-secret"
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example.com/api")
    assert plan(Listening())[-1].environment["PREFECT_API_AUTH_STRING"] == "team:secret"


def test_clients_learn_whether_the_file_has_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe(plan(Listening())).auth_from_file
    assert not describe(plan(Listening(), "mlflow")).auth_from_file
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "admin:third-secret")
    stack = describe(plan(Listening()))
    assert (stack.mlflow, stack.prefect, stack.pid) == (Listening().mlflow, Listening().prefect, os.getpid())
    assert not stack.auth_from_file


def start(monkeypatch: pytest.MonkeyPatch, root: Path, listening: Listening) -> None:
    """Do what `pipeline up` does before its loop."""
    for name, value in {**SECRETS, "PREFECT_HOME": str(root / "home")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(up, "main_repository", lambda _: root)
    monkeypatch.setattr(up, "require_free_port", lambda *_: None)
    monkeypatch.setattr(up, "run", lambda *_: None)
    run_parts(root, listening)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_server_for_other_machines_says_that_all_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    caplog.set_level("INFO")
    start(monkeypatch, tmp_path, Listening(host))
    (message,) = caplog.messages
    assert message.startswith("requests from other machines are refused")
    assert f"pipeline up --host {host} --allowed-hosts " in message
    start(monkeypatch, tmp_path, Listening(host, allowed_hosts="gpu-box.lan"))
    start(monkeypatch, tmp_path, Listening())
    assert len(caplog.messages) == 1


def test_an_allowed_host_with_a_port_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(FlowError, match="gpu-box.lan:8443 as a host name: it has a port"):
        start(monkeypatch, tmp_path, Listening(allowed_hosts="gpu-box.lan:8443"))
    assert list(tmp_path.iterdir()) == []


def test_a_login_without_its_package_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "flask_wtf", None)  # Python's way to block an import
    with pytest.raises(WorkspaceError, match="login of MLflow's server needs flask_wtf\n.*\n  remedy:   make extras"):
        run_parts(Path.cwd(), Listening())


def test_the_runner_knows_what_the_servers_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "robot")
    runner = plan(Listening())[-1].environment
    assert (runner["MLFLOW_TRACKING_USERNAME"], runner["MLFLOW_TRACKING_PASSWORD"]) == ("robot", "second-secret")
    assert (runner["PREFECT_API_AUTH_STRING"], runner["PREFECT_API_URL"]) == ("admin:third-secret", Listening().prefect)


@pytest.mark.parametrize("only", ["mlflow", "prefect"])
def test_one_server_comes_alone(only: str) -> None:
    assert [part.name for part in plan(Listening(), only)] == [only]  # type: ignore[arg-type]


@pytest.fixture
def room_server(monkeypatch: pytest.MonkeyPatch) -> Listening:
    """A room that adds a server, which is to start."""
    server = RoomServer("answering", ("now",), 5002, "/health/live")
    monkeypatch.setattr(parts_module, "find_servers", lambda: {"answers": server})
    return Listening("0.0.0.0", allowed_hosts="gpu-box.lan", others={"answers": 5003})


def test_the_server_of_a_room_is_a_part_that_uses_mlflow(
    monkeypatch: pytest.MonkeyPatch, room_server: Listening
) -> None:
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "second-secret")
    mlflow, prefect, answers, runner = plan(room_server)
    assert (mlflow.name, prefect.name, answers.name, runner.name) == ("mlflow", "prefect", "answers", "runner")
    assert [answers.module, *answers.arguments] == [
        *("answering", "now", "--host", "0.0.0.0", "--port", "5003", "--allowed-hosts", "gpu-box.lan"),
    ]
    assert (answers.needs, answers.address, answers.health) == ("mlflow", "http://127.0.0.1:5003", "/health/live")
    assert answers.environment["MLFLOW_TRACKING_PASSWORD"] == "second-secret"


def test_clients_find_the_server_of_a_room(room_server: Listening) -> None:
    assert describe(plan(room_server)).others == {"answers": "http://127.0.0.1:5003"}
    assert [part.name for part in plan(room_server, "mlflow")] == ["mlflow", "answers"]


def test_a_port_for_two_servers_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, room_server: Listening
) -> None:
    with pytest.raises(FlowError, match="two servers cannot share a port"):
        start(monkeypatch, tmp_path, replace(room_server, mlflow_port=5003))
