"""The image that serves: the steps of its Dockerfile in a clean environment, and predictions from it."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from pipeline.data import table
from pipeline.models.contract import read_contract
from pipeline.models.interpreter import load
from pipeline.tracking.stage_outputs import Outputs
from tests.conftest import REPOSITORY, Project
from tests.e2e.servers import find_free_port, serve
from tests.processes import wait_until
from tests.serving.e2e.dockerfile import Image, build, read_steps

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("image")]

DOCKERFILE = REPOSITORY / "docker/serving.Dockerfile"
KEY = "a-key-of-the-test-0123456789"


@pytest.fixture(scope="module")
def project(template: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return template.copy_to(tmp_path_factory.mktemp("image") / "project")


@pytest.fixture(scope="module")
def image(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Image:
    return build(DOCKERFILE, project.path, tmp_path_factory.mktemp("root"))


@contextmanager
def running(image: Image, log: Path, **environment: str) -> Iterator[str]:
    """A container of the image, on a free port, that is ready to answer."""
    port = str(find_free_port())
    command = [port if text == "5002" else text for text in [*image.entrypoint, *image.arguments]]
    command[0] = str(image.root / "venv/bin" / command[0])
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=image.directory, env=image.environment | environment, stdout=output, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(f"{address}/health/ready", trust_env=False).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    try:
        wait_until(is_ready, explain=log.read_text)
        yield address
    finally:
        process.terminate()
        process.wait(60)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def check_answers(project: Project, address: str) -> None:
    """The container answers those who have the key, as the evaluation did."""
    images, _ = table.read_images(Outputs(project.path).split("test"))
    body = {"images": images[:3].tolist()}
    with httpx.Client(base_url=address, trust_env=False) as client:
        assert client.get("/").status_code == httpx.codes.OK
        assert client.post("/v1/predict", json=body).status_code == httpx.codes.UNAUTHORIZED
        client.headers["Authorization"] = f"Bearer {KEY}"
        answered = client.post("/v1/predict", json=body).json()
    exported = load(project.path / "models/model.tflite", read_contract(project.path / "models/contract.json"))
    expected = exported.predict(images[:3])
    got = [list(prediction["probabilities"].values()) for prediction in answered["predictions"]]
    np.testing.assert_allclose(got, expected, atol=2e-5)
    assert answered["version"] == "1"


def test_it_answers_with_the_champion_of_a_database(image: Image, project: Project, tmp_path: Path) -> None:
    store = f"sqlite:///{project.path / 'mlflow.db'}"
    with running(image, tmp_path / "log", MLFLOW_TRACKING_URI=store, PIPELINE_SERVE_API_KEY=KEY) as address:
        check_answers(project, address)


def test_it_answers_with_the_champion_of_a_server(image: Image, project: Project, tmp_path: Path) -> None:
    pytest.importorskip("pipeline.servers", reason="MLflow's server is of the room servers")
    command = ("python", "-m", "pipeline.cli", "ui")
    with (
        serve(project, *command, log=tmp_path / "server.log") as store,
        running(image, tmp_path / "log", MLFLOW_TRACKING_URI=store, PIPELINE_SERVE_API_KEY=KEY) as address,
    ):
        check_answers(project, address)


def test_it_has_no_training_in_it(image: Image) -> None:
    names = "tensorflow", "keras", "dvc", "prefect", "great_expectations", "scipy", "pandas", "uv"
    code = "import sys; from importlib.util import find_spec; print([n for n in sys.argv[1:] if find_spec(n)])"
    found = subprocess.run([image.python, "-c", code, *names], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_docs_state_its_size(image: Image) -> None:
    sites = [*image.root.glob("venv/lib/python3.*/site-packages")]
    files = [path for site in sites for path in site.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    (stated,) = re.findall(r"(\d+) MB of packages", (REPOSITORY / "docs/serving.md").read_text())
    assert int(stated) == pytest.approx(megabytes, rel=0.1)


def test_the_build_context_has_what_is_copied_and_nothing_else() -> None:
    ignored = (DOCKERFILE.parent / f"{DOCKERFILE.name}.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        source.rstrip("/") for word, rest in read_steps(DOCKERFILE) if word == "COPY" for source in rest.split()[:-1]
    }
    assert kept == copied


def test_it_is_installed_by_the_tool_of_the_makefile() -> None:
    (version,) = re.findall(r"^UV_VERSION := (\S+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert f"uv=={version} " in DOCKERFILE.read_text()


def test_its_health_check_asks_the_port_that_it_exposes() -> None:
    steps = dict(read_steps(DOCKERFILE))
    port = steps["EXPOSE"]
    assert f":{port}/health/live" in steps["HEALTHCHECK"]
    assert json.loads(steps["CMD"])[-2:] == ["--port", port]
