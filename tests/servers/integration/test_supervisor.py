"""The loop of `pipeline up` over small servers: restarts, health checks, and the order and the limits of the end."""

import json
import os
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.errors import FlowError
from pipeline.redaction import without_password
from pipeline.servers import supervisor
from pipeline.servers.parts import Part
from pipeline.servers.supervisor import SupervisedPart, _stop
from tests.e2e.servers import find_free_port

SERVER = """
import os, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if os.path.exists("hangs"):
            time.sleep(3600)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass

server = HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
server.socket.set_inheritable(True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], close_fds=False)
print("child", child.pid)
server.serve_forever()
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready")
time.sleep(3600)
"""
STARTER = """
import logging, sys
from pathlib import Path
from pipeline import logs
from pipeline.servers import parts, supervisor
logs.configure("up")
root = Path.cwd()
address = f"http://127.0.0.1:{sys.argv[1]}"
server = parts.Part("mlflow", "server", (sys.argv[1],), address=address)
room = f"http://127.0.0.1:{sys.argv[2]}"
more = parts.Part("answers", "server", (sys.argv[2],), address=room, health="/health/live", needs="mlflow")
supervisor.run(root, [server, more, parts.Part("runner", "stubborn", needs="mlflow")])
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the modules that the parts execute."""
    for name, code in {"server": SERVER, "stubborn": STUBBORN, "starter": STARTER}.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(supervisor, "CHECK_SECONDS", 0.1)
    return tmp_path


@pytest.fixture
def server(directory: Path) -> Iterator[SupervisedPart]:
    """A server with a child process that keeps its port."""
    port = find_free_port()
    part = Part("mlflow", "server", (str(port),), dict(os.environ), f"http://127.0.0.1:{port}")
    supervised = SupervisedPart(part, directory)
    yield supervised
    supervised.kill()


def supervise_until(condition: Callable[[], object], *parts: SupervisedPart, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, [list(part.last_lines) for part in parts]
        for part in parts:
            part.supervise()
        time.sleep(0.05)


def pid_of(part: SupervisedPart) -> int | None:
    return part.process.pid if part.process else None


def child_of(part: SupervisedPart) -> int:
    return int(part.last_lines[-1].removeprefix("child "))


def test_a_killed_server_is_restarted_on_its_port_without_the_rest_of_its_group(
    server: SupervisedPart, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    supervise_until(lambda: server.responds, server)
    first, child = pid_of(server), child_of(server)
    assert first
    os.kill(first, signal.SIGKILL)
    supervise_until(lambda: server.responds and pid_of(server) != first, server)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    own = [record.getMessage() for record in caplog.records if record.name == supervisor.__name__]
    assert [message.partition(":")[0] for message in own[::2]] == ["mlflow responds", "mlflow responds again"]
    assert own[1] == f"mlflow (process {first}) ended with exit code -9; restarting it"


def test_a_server_that_stops_responding_is_killed_and_restarted(
    server: SupervisedPart, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    supervise_until(lambda: server.responds, server)
    first = pid_of(server)
    monkeypatch.setattr(supervisor, "UNRESPONSIVE_SECONDS", 2)
    (directory / "hangs").touch()
    supervise_until(lambda: pid_of(server) != first, server)
    (directory / "hangs").unlink()
    monkeypatch.setattr(supervisor, "UNRESPONSIVE_SECONDS", 60)
    supervise_until(lambda: server.responds, server)
    assert f"mlflow (process {first}) did not respond for 2 s: killing it" in caplog.text


def test_a_part_waits_for_the_server_that_it_needs(server: SupervisedPart, directory: Path) -> None:
    dependent = SupervisedPart(Part("runner", "stubborn", (), dict(os.environ)), directory, needs=server)
    dependent.supervise()
    assert dependent.process is None
    supervise_until(lambda: "ready" in dependent.last_lines, server, dependent)
    dependent.kill()


def test_a_server_that_never_responds_did_not_start(
    directory: Path, server: SupervisedPart, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "hangs").touch()
    monkeypatch.setattr(supervisor, "UNRESPONSIVE_SECONDS", 2)
    with pytest.raises(FlowError, match="mlflow did not start") as error:
        supervise_until(lambda: False, server)
    assert "child " in error.value.found


def test_a_part_that_ignores_sigterm_is_killed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = SupervisedPart(Part("runner", "stubborn", (), dict(os.environ)), directory)
    supervise_until(lambda: "ready" in stubborn.last_lines, stubborn)
    monkeypatch.setattr(supervisor, "STOP_SECONDS", 1)
    _stop([stubborn])
    assert stubborn.process
    assert stubborn.process.returncode == -signal.SIGKILL


def test_the_secret_of_prefects_server_is_masked_in_its_lines(directory: Path) -> None:
    login = "pipeline:made-by-up"
    part = SupervisedPart(Part("prefect", "x"), directory, secrets=[login])
    part.take_line(f"{login} made-by-up {b64encode(login.encode()).decode()} of pipeline")
    assert list(part.last_lines) == ["*** *** *** of pipeline"]
    assert without_password(login) == login  # the environment does not contain it


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_the_runner_before_the_servers(directory: Path, number: signal.Signals) -> None:
    (directory / "stubborn.py").write_text(STUBBORN.replace("signal.SIG_IGN", "lambda *_: exit(0)"))
    (directory / ".pipeline").mkdir()
    running = subprocess.Popen(
        [sys.executable, "starter.py", str(find_free_port()), str(find_free_port())],
        cwd=directory,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout
    lines: list[str] = []
    awaited = {"ready", "answers responds"}
    for line in running.stdout:
        lines.append(line.partition(" | ")[2].strip())
        awaited -= {lines[-1], lines[-1].removeprefix("INFO").strip().partition(":")[0]}
        if not awaited:
            awaited = {"sent"}
            stack = json.loads((directory / ".pipeline/stack.json").read_text())
            assert stack["others"].keys() == {"answers"}
            running.send_signal(number)
    assert running.wait() == 0
    shown = "\n".join(lines)
    assert shown.index("mlflow responds") < shown.index("use these servers") < shown.index("answers responds")
    assert lines[-2:] == ["INFO    stopping", "INFO    all parts have ended"]
    assert not (directory / ".pipeline/stack.json").exists()
    assert not [process for process in psutil.process_iter() if str(directory) in _directory_of(process)]


def _directory_of(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except psutil.Error:
        return ""
