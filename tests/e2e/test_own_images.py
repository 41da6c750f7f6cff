"""The commands of `docs/own-images.md`: a folder in colour becomes a champion, and a colleague's clone repeats it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from tests.conftest import Project, stages_that_ran
from tests.documentation import read_blocks

HUES = {"red": (200, 60, 60), "green": (20, 160, 20), "파랑": (85, 85, 235)}


def draw(folder: Path, hues: dict[str, tuple[int, int, int]], count: int = 40) -> None:
    """Squares in some hues on black, 16 x 20 pixels: without colour, nothing tells the classes apart."""
    rng = np.random.default_rng(0)
    for name, hue in hues.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 20, (16, 20, 3))
            top, left = rng.integers(1, 8, 2)
            pixels[top : top + 7, left : left + 9] += np.array(hue)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_own_pictures_become_a_champion_here_and_on_a_colleagues_machine(project: Project, tmp_path: Path) -> None:
    first, commit, colleague, new_class = read_blocks("docs/own-images.md")
    draw(tmp_path / "parts", HUES)
    command = f"{sys.executable} -m pipeline.cli "
    first = first.replace("~/pictures/parts", str(tmp_path / "parts")).replace("pipeline ", command)
    assert first.count("\n") == 2
    project.run("bash", "-euc", first)
    metrics = json.loads((project.path / "reports/evaluation/metrics.json").read_text())
    assert metrics["accuracy"] >= 0.9
    client = MlflowClient(f"sqlite:///{project.path}/mlflow.db")
    assert str(client.get_model_version_by_alias("parts", "champion").version) == "1"

    project.run("dvc", "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    project.run("git", "add", ".dvc/config")
    project.run("bash", "-euc", commit)
    project.run("git", "clone", "--quiet", str(project.path), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone", tmp_path / "clone-home")
    (tmp_path / "parts").rename(tmp_path / "moved")
    clone.run("bash", "-euc", colleague)
    for name in ("data/dataset/train.parquet", "models/model.tflite", "reports/evaluation/metrics.json"):
        assert (clone.path / name).read_bytes() == (project.path / name).read_bytes()
    forced = clone.repro("--force", "--single-item", "ingest").stdout
    assert stages_that_ran(forced) == ["ingest"]

    draw(tmp_path / "more", {"yellow": (170, 140, 10), "red": (200, 61, 61)}, 60)
    new_class = new_class.replace("~/pictures/more", str(tmp_path / "more")).replace("pipeline ", command)
    output = project.run("bash", "-euc", new_class).stdout
    assert "yellow joins the classes in data/catalog/parts.yaml; 15% of the images are test images" in output
    assert "Only the images of the 3 classes that both know were compared; left out: yellow" in output
    splits = json.loads((project.path / "reports/split.json").read_text())["splits"]
    assert all(facts["classes"]["yellow"] > 0 for facts in splits.values())
    assert sum(facts["classes"]["yellow"] for facts in splits.values()) == 60
    assert sum(facts["classes"]["red"] for facts in splits.values()) == 100
    metrics = json.loads((project.path / "reports/evaluation/metrics.json").read_text())
    assert metrics["accuracy"] >= 0.9
