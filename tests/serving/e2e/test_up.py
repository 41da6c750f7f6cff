"""The server as a part of `pipeline up`: started, restarted and ended with it."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pipeline.server_addresses import answers, read_stack
from tests.conftest import Project
from tests.documentation import read_blocks
from tests.e2e.servers import find_free_port
from tests.processes import wait_until, wait_until_idle

pytest.importorskip("pipeline.servers", reason="`pipeline up` is a command of the room servers")
pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("serving-page")]

_, PAGE_COMMAND = read_blocks("docs/serving.md", "With the other servers")[0].splitlines()
UP = (*PAGE_COMMAND.replace("pipeline", "python -m pipeline.cli").split()[:-2], "--only", "mlflow")


@dataclass(frozen=True)
class Up:
    """A `pipeline up` with MLflow's server and ours."""

    project: Project
    process: psutil.Popen
    address: str
    log: Path

    def server(self) -> psutil.Process:
        """The main process of our server."""
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                if "pipeline.cli" in child.cmdline():
                    return child
        raise AssertionError(self.log.read_text())

    def is_ready(self) -> bool:
        return answers(f"{self.address}/health/ready")


@pytest.fixture
def up(trained: Project, tmp_path: Path) -> Iterator[Up]:
    ports, log = (str(find_free_port()), str(find_free_port())), tmp_path / "up.log"
    with log.open("w") as output:
        process = psutil.Popen(
            [*UP, "--mlflow-port", ports[0], "--serve-port", ports[1]], cwd=trained.path, env=trained.environment,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    started = Up(trained, process, f"http://127.0.0.1:{ports[1]}", log)
    try:
        wait_until(lambda: started.is_ready() or not process.is_running(), explain=log.read_text)
        yield started
    finally:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
        process.wait(60)


def test_it_is_restarted_and_nothing_is_left_after_a_kill(up: Up) -> None:
    stack = read_stack(up.project.path)
    assert stack
    assert stack.others == {"serve": up.address}
    shown = up.project.run("python", "-m", "pipeline.cli", "status").stdout
    assert f"version 1, {up.address}" in " ".join(shown.split())
    first = up.server()
    children = first.children(recursive=True)
    assert len(children) == 2  # one answers, one asks the registry
    first.kill()
    wait_until(lambda: "serve responds again" in up.log.read_text(), explain=up.log.read_text)
    assert f"serve (process {first.pid}) ended with exit code -9; restarting it" in up.log.read_text()
    wait_until(up.is_ready, explain=up.log.read_text)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    os.kill(up.process.pid, signal.SIGKILL)
    wait_until_idle(up.project)


def test_a_port_in_use_is_refused_with_its_owner(trained: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        refused = trained.run(*UP, "--serve-port", str(port), check=False)
    assert refused.returncode == 1
    assert f"port {port} is in use" in refused.stdout
    assert f"process {os.getpid()}" in refused.stdout
    assert f"pipeline up --serve-port {port + 1}" in refused.stdout
