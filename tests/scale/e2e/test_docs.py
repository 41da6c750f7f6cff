"""The commands of docs/scale.md and compose.dask.yaml, on one machine: a cluster, a worker that joins, an import."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.conftest import REPOSITORY, Project
from tests.documentation import read_blocks
from tests.integration.test_distribution import free_ports
from tests.processes import wait_until, wait_until_idle

pytestmark = pytest.mark.faults
COMPOSE = REPOSITORY / "compose.dask.yaml"


def commands_of_the_page(port: int) -> list[list[str]]:
    """The commands of the page's shell blocks, with this machine and a free port."""
    lines = [line for block in read_blocks("docs/scale.md") for line in block.splitlines()]
    here = [line.replace("10.0.0.5", "127.0.0.1").replace(":8786", f":{port}") for line in lines]
    return [shlex.split(line, comments=True) for line in here]


def test_the_commands_of_the_page_start_a_cluster_that_imports_pictures(project: Project) -> None:
    rng, (port,) = np.random.default_rng(0), free_ports(1)
    for number in range(60):
        folder = project.path / "pictures" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(folder / f"{number}.png")
    _, up, worker, export, status, imported = commands_of_the_page(port)
    environment = dict(variable.split("=") for variable in export[1:])
    assert environment == {"PIPELINE_DASK": f"tls://127.0.0.1:{port}"}
    cluster = project.start(*up, "--workers", "1", "--port", str(port))
    assert cluster.stdout
    assert f"at {environment['PIPELINE_DASK']}" in cluster.stdout.readline()
    joined = project.start(*worker, "--workers", "1")
    wait_until(lambda: project.run(*status, **environment).stdout.count("ready") == 2)
    assert "60 pictures" in project.run(*imported, **environment).stdout
    cluster.terminate()
    joined.communicate(timeout=60)
    assert joined.returncode == 0
    cluster.communicate(timeout=60)
    wait_until_idle(project)


def test_the_services_of_compose_are_a_cluster(project: Project) -> None:
    services, (port,) = yaml.safe_load(COMPOSE.read_text())["services"], free_ports(1)

    def adapt(command: str) -> list[str]:
        return command.replace("scheduler:8786", f"127.0.0.1:{port}").replace("8786", str(port)).split()

    variable = {"PIPELINE_DASK": f"tls://127.0.0.1:{port}"}
    assert services["scheduler"]["environment"]["PIPELINE_DASK"] == "tls://scheduler:8786"
    health = services["scheduler"]["healthcheck"]["test"]
    scheduler = project.start(*adapt(services["scheduler"]["command"]))
    assert scheduler.stdout
    assert "0 workers" in scheduler.stdout.readline()
    assert "no workers" in project.run(*health[1:], **variable).stdout
    workers = project.start(*adapt(services["workers"]["command"]))
    wait_until(lambda: "ready" in project.run(*health[1:], **variable).stdout)
    scheduler.terminate()
    workers.communicate(timeout=60)
    scheduler.communicate(timeout=60)
    wait_until_idle(project)


def test_images_have_the_tools_and_the_lock_of_the_project() -> None:
    uv = re.search(r"^UV_VERSION := (\S+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert uv
    text = COMPOSE.read_text()
    assert f"uv=={uv[1]}" in text
    assert Path(REPOSITORY / "requirements-extras.lock").is_file()
    assert "requirements-extras.lock" in text
    assert "ports:" not in text
    assert sys.version_info[:2] >= (3, 11)
