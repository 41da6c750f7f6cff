"""The loop: what a server answers is logged, drift shows in it, and labels that come later become a batch.

With the commands of docs/serving.md and docs/monitoring.md.
"""

import json
import urllib.request

import numpy as np
import pytest

from pipeline.data import table, tiny
from pipeline.data.traffic import FEEDBACK, TRAFFIC, read_labels
from pipeline.rooms import find_rooms
from tests.conftest import Project
from tests.documentation import read_blocks
from tests.e2e.servers import serve

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("serving")]
EXAMPLE = "00000000-0000-4000-8000-000000000000"  # the request id on the page
COUNT = 80


@pytest.fixture(scope="module")
def project(template: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = template.copy_to(tmp_path_factory.mktemp("loop") / "project")
    project.set_params(**{"serve.keep_images": True})
    return project


@pytest.fixture(scope="module")
def requests(project: Project) -> list[str]:
    """The ids of two requests that a server answered and logged: usual images, and darker ones. It got one label."""
    images, _ = tiny.generate(2 * COUNT, 301)
    images[COUNT:] = (images[COUNT:] * 0.6).astype(np.uint8)
    with serve(project, "pipeline", "serve", log=project.path / "serve.log", health="/health/ready") as address:
        ids = [ask(address, images[:COUNT]), ask(address, images[COUNT:])]
        (feedback, *_) = read_blocks("docs/serving.md", "Traffic log and labels")
        assert EXAMPLE in feedback
        answer = run(project, feedback.replace(EXAMPLE, ids[1]).replace("http://127.0.0.1:5002", address))
        assert json.loads(answer)["request_id"] == ids[1]
    return ids


def ask(address: str, images: np.ndarray) -> str:
    body = json.dumps({"images": images.tolist()}).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}/v1/predict", body, headers), timeout=60) as response:
        return str(json.load(response)["request_id"])


def run(project: Project, command: str) -> str:
    return project.run("bash", "-ec", command).stdout


@pytest.mark.skipif("monitoring" not in find_rooms(), reason="a project with a server may lack this room")
def test_drift_shows_in_the_traffic(project: Project, requests: list[str]) -> None:
    (block,) = read_blocks("docs/monitoring.md")
    assert f"({2 * COUNT} images) has drifted from the training data" in run(project, block)
    found = json.loads(run(project, "pipeline monitor --traffic --json"))
    (window,) = found["windows"]
    assert window["images"] == 2 * COUNT
    assert "mean" in window["drifted"]
    assert found["accuracy"][-1]["labelled"] == 1
    assert 0 < found["accuracy"][-1]["estimated"] <= 1


@pytest.mark.skipif("batches" not in find_rooms(), reason="a project with a server may lack this room")
def test_labels_that_come_later_become_a_batch(project: Project, requests: list[str]) -> None:
    dataset = table.read_dataset(project.path / "data/dataset/train.parquet")
    images, labels = tiny.generate(2 * COUNT, 301)
    lines = [f"{requests[0]},{index},{dataset.classes[labels[index]]}\n" for index in range(COUNT)]
    (project.path / "outcomes.csv").write_text("request_id,index,label\n" + "".join(lines))
    _, block = read_blocks("docs/serving.md", "Traffic log and labels")
    assert block.splitlines()[1].endswith("--labels outcomes.csv")
    assert f": {COUNT + 1} images in data/incoming/traffic-" in run(project, block.splitlines()[1])
    assert "in an earlier batch" in run(project, block.splitlines()[0])
    (batch,) = (project.path / "data/incoming").glob("traffic-*.npz")
    with np.load(batch) as content:
        added = {image.tobytes(): int(label) for image, label in zip(content["images"], content["labels"], strict=True)}
    assert {
        image.tobytes(): int(label) for image, label in zip(images[:COUNT], labels, strict=False)
    }.items() <= added.items()
    assert len(read_labels(project.path / FEEDBACK)) == COUNT + 1
    assert [path.suffix for path in (project.path / TRAFFIC).iterdir()] == [".parquet"]
