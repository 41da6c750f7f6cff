"""`compose.yaml` and `.env.example` against each other and the rest of the project; no container engine is here."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.flows.prefect_server import SERVER_SETTINGS, SETTINGS
from pipeline.rooms import find_servers

REPOSITORY = Path(__file__).resolve().parents[3]
COMPOSE = REPOSITORY / "compose.yaml"
EXAMPLE = REPOSITORY / ".env.example"
SERVERS = ("postgres", "s3", "mlflow", "prefect")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return content["services"]


def test_every_image_has_a_version(services: dict[str, Any]) -> None:
    images = [service["image"] for service in services.values()]
    bases = re.findall(r"^\s*FROM (\S+)", COMPOSE.read_text(), re.MULTILINE)
    assert bases
    for image in [*images, *bases]:
        assert re.search(r":[\w.-]*\d+[.-]\d+[\w.-]*$", image), image


def test_what_others_wait_for_says_when_it_is_well(services: dict[str, Any]) -> None:
    assert {name for name, service in services.items() if "healthcheck" in service} == set(SERVERS)
    for name, service in services.items():
        for awaited, how in service.get("depends_on", {}).items():
            expected = "service_healthy" if awaited in SERVERS else "service_completed_successfully"
            assert how == {"condition": expected}, (name, awaited)


def test_every_variable_is_explained_in_the_example_and_has_no_value_there() -> None:
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE.read_text()))
    lines = re.findall(r"^#?([A-Z][A-Z0-9_]+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE)
    assert used <= {name for name, _ in lines}
    secret = [(name, value) for name, value in lines if re.search("PASSWORD|SECRET|KEY|AUTH_STRING", name)]
    assert secret
    assert [name for name, value in secret if value not in ("", "admin:PASSWORD")] == []


def test_servers_of_rooms_listen_on_the_port_of_their_room(services: dict[str, Any]) -> None:
    for name, server in find_servers().items():
        assert services[name]["ports"] == [f"127.0.0.1:{server.port}:{server.port}"]
        assert (REPOSITORY / services[name]["build"]["dockerfile"]).is_file()


def test_secrets_have_no_default(services: dict[str, Any]) -> None:
    defaults = re.findall(r"\$\{(\w+):-([^}]+)\}", COMPOSE.read_text())
    assert set(defaults) == {("PIPELINE_USER", "1000:1000")}


def test_ports_are_open_on_this_machine_alone(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == len(SERVERS) + len(services.keys() & find_servers().keys())
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_image_has_the_tools_of_the_makefile(services: dict[str, Any]) -> None:
    version = re.search(r"^UV_VERSION := (\S+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert version
    assert f"uv=={version[1]}" in COMPOSE.read_text()
    modules = re.findall(r"python -m (pipeline[\w.]+)", COMPOSE.read_text())
    assert modules
    for module in modules:
        assert (REPOSITORY / module.replace(".", "/")).with_suffix(".py").is_file(), module


def test_the_servers_are_those_of_pipeline_up(services: dict[str, Any]) -> None:
    """With the settings that a bare `prefect server start` lacks: its pages would ask 0.0.0.0 for their data."""
    for service, module in [("mlflow", "pipeline.servers.mlflow_server"), ("prefect", "pipeline.flows.prefect_server")]:
        port = services[service]["ports"][0].rpartition(":")[2]
        command = ["python", "-m", module, "0.0.0.0", port, service]  # by its name the worker knows it
        assert services[service]["command"].split()[:6] == command
    assert not services["prefect"]["environment"].keys() & (SETTINGS | SERVER_SETTINGS).keys()
    assert services["worker"]["hostname"]  # part of what `tracking/processes.py` knows a run's process by


def test_the_example_loads_in_a_shell_and_what_is_filled_in_stays_out_of_git(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(re.sub(r"^#([A-Z])", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE))
    script = "set -eua; . ./.env; set +a; env"
    loaded = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "MLFLOW_DEFAULT_ARTIFACT_ROOT=s3://runs/mlflow" in loaded.splitlines()
    assert "PIPELINE_NOTIFY_URLS=mailto://USER:PASSWORD@example.com slack://TOKEN/TOKEN/TOKEN" in loaded.splitlines()
    ignored = subprocess.run(["git", "check-ignore", ".env"], cwd=REPOSITORY, capture_output=True, check=False)
    assert ignored.returncode == 0
