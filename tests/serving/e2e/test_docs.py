"""`pipeline serve` and MLflow's own server, started and asked with the commands of docs/serving.md."""

import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.data import table
from pipeline.tracking.stage_outputs import Outputs
from tests.conftest import REPOSITORY, Project
from tests.documentation import read_blocks
from tests.e2e.servers import serve

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("serving")]


@dataclass(frozen=True)
class Served:
    """A project whose champion is served."""

    project: Project
    address: str

    def curl(self, body: str) -> tuple[int, Any]:
        """Status and answer."""
        request = self.project.path / "request.json"
        request.write_text(body)
        command = ["curl", "--silent", "--show-error", "--write-out", "\n%{http_code}", f"{self.address}/invocations"]
        command += ["--header", "Content-Type: application/json", "--data", f"@{request}"]
        answer, _, status = self.project.run(*command).stdout.rpartition("\n")
        return int(status), json.loads(answer)


@pytest.fixture(scope="module")
def project(template: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return template.copy_to(tmp_path_factory.mktemp("serving") / "project")


@pytest.fixture(scope="module")
def served(project: Project) -> Iterator[Served]:
    """The champion, served by MLflow."""
    command = read_blocks("docs/serving.md", "MLflow's server")[0].replace("fashion-mnist", "tiny").split()
    assert command[-2] == "--port"
    with serve(project, *command[:-2], log=project.path / "mlflow.log") as address:
        yield Served(project, address)


@pytest.fixture(scope="module")
def own_server(project: Project) -> Iterator[Served]:
    """The champion, served by the first command of the page."""
    (command,) = read_blocks("docs/serving.md", "Serve the model")
    with serve(project, *command.split(), log=project.path / "serve.log", health="/health/ready") as address:
        yield Served(project, address)


def test_the_commands_of_the_page_work(own_server: Served) -> None:
    project, address = own_server.project, own_server.address
    images, _ = table.read_images(Outputs(project.path).split("test"))
    Image.fromarray(images[0]).save(project.path / "shirt.png")

    def run(script: str) -> str:
        script = script.replace("http://127.0.0.1:5002", address)
        return project.run("bash", "-euo", "pipefail", "-c", script).stdout

    picture, refused = read_blocks("docs/serving.md", "Ask for predictions")
    answer, error = json.loads(run(picture)), json.loads(run(refused))
    shown, shown_error = map(json.loads, read_blocks("docs/serving.md", "Ask for predictions", "json"))
    assert answer.keys() == shown.keys()
    (prediction,), (shown_prediction,) = answer["predictions"], shown["predictions"]
    assert prediction.keys() == shown_prediction.keys()
    expected = pq.read_table(Outputs(project.path).evaluation / "predictions.parquet").column("probabilities")[0]
    np.testing.assert_allclose(list(prediction["probabilities"].values()), expected.as_py(), atol=1e-5)
    assert error == shown_error
    (health,) = read_blocks("docs/serving.md", "Health and metrics")
    printed = run(health)
    metrics = re.findall(r"^\| `(serve_\w+)", (REPOSITORY / "docs/serving.md").read_text(), re.MULTILINE)
    assert len(metrics) == 10
    assert [name for name in metrics if name not in printed] == []


def test_a_fixed_version_is_served_beside_it(own_server: Served) -> None:
    (command,) = read_blocks("docs/serving.md", "Which version answers")
    *words, option, _ = command.split()
    assert option == "--port"
    log = own_server.project.path / "fixed.log"
    with (
        serve(own_server.project, *words, log=log, health="/health/ready") as address,
        urllib.request.urlopen(f"{address}/health/ready") as answer,
    ):
        assert json.load(answer)["version"] == "1"


def test_it_answers_what_the_evaluation_found(served: Served) -> None:
    outputs = Outputs(served.project.path)
    images, _ = table.read_images(outputs.split("test"))
    status, answer = served.curl(json.dumps({"inputs": images[:100].tolist()}))
    assert status == 200
    expected = pq.read_table(outputs.evaluation / "predictions.parquet").column("probabilities").to_pylist()[:100]
    np.testing.assert_allclose(answer["predictions"], expected, atol=1e-5)  # the last bits depend on the batch


def test_the_example_of_the_page_is_answered(served: Served) -> None:
    script = (
        read_blocks("docs/serving.md", "MLflow's server")[1]
        .replace("fashion-mnist", "tiny")
        .replace("http://127.0.0.1:5001", served.address)
    )
    printed = served.project.run("bash", "-euo", "pipefail", "-c", script).stdout
    (probabilities,) = json.loads(printed.strip().splitlines()[-1])["predictions"]
    assert len(probabilities) == 10
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert (served.project.path / "example/serving_input_example.json").is_file()


@pytest.mark.parametrize("value", [256, -1, None, "black"])
def test_what_is_no_grey_value_is_refused(served: Served, value: object) -> None:
    image = [[0] * 28 for _ in range(28)]
    status, answer = served.curl(json.dumps({"inputs": [[[value, *image[0][1:]], *image[1:]]]}))
    assert status == 400, answer


def test_a_fraction_is_cut_as_the_page_warns(served: Served) -> None:
    dark, fraction = ([[[value] * 28 for _ in range(28)]] for value in (0, 0.9))
    assert served.curl(json.dumps({"inputs": fraction})) == served.curl(json.dumps({"inputs": dark}))


@pytest.mark.parametrize(("height", "width"), [(28, 27), (1, 784)])
def test_an_image_of_another_shape_is_refused(served: Served, height: int, width: int) -> None:
    status, answer = served.curl(json.dumps({"inputs": [[[0] * width] * height]}))
    assert status == 400
    assert "shape" in json.dumps(answer)


def test_a_body_that_is_no_json_is_refused(served: Served) -> None:
    assert served.curl("{")[0] == 400
