"""`pipeline data import` with DVC and real files: nothing is half imported, and equal pictures give equal bytes."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from pipeline.data.catalog import load_catalog
from pipeline.params import load_params
from tests.conftest import Project

COMMAND = (sys.executable, "-m", "pipeline.cli", "data", "import")
HUES = {"red": (200, 40, 40), "볼트": (40, 200, 40)}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder in colour: two classes of 30 pictures of 12 x 16 pixels, a stray file, and a copy."""
    rng, folder = np.random.default_rng(0), tmp_path / "pictures"
    for name, hue in HUES.items():
        (folder / name).mkdir(parents=True)
        for number in range(30):
            noise = rng.integers(-40, 40, (12, 16, 3))
            Image.fromarray((noise + hue).clip(0, 255).astype(np.uint8)).save(folder / name / f"{number:02}.png")
    (folder / "red/copy.png").write_bytes((folder / "red/00.png").read_bytes())
    (folder / "Thumbs.db").touch()
    return folder


def own_files(project: Project) -> dict[str, str]:
    """Digests of what an import writes."""
    paths = [project.path / "params.yaml", *(project.path / "data").rglob("*")]
    return {
        str(path.relative_to(project.path)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file()
    }


def test_a_folder_becomes_the_dataset_of_the_next_run(project: Project, pictures: Path) -> None:
    comments = [line.partition("#")[2] for line in (project.path / "params.yaml").read_text().splitlines()]
    shown = project.run(*COMMAND, str(pictures), "--name", "parts", "--licence", "CC0", "--flip").stdout
    assert "61 pictures, 2 classes" in shown
    assert "1 hidden files" in shown
    assert "12 x 16 pixels" in shown
    assert "1 left out; 0 copies" in shown
    (command,) = [line.strip() for line in shown.splitlines() if line.strip().startswith("git add ")]
    project.run("sh", "-c", command)
    assert project.run("git", "status", "--porcelain").stdout == ""

    entry = load_catalog(project.path / "data/catalog")["parts"]
    assert (entry.height, entry.width, entry.channels, entry.resizing, entry.licence) == (12, 16, 3, "fit", "CC0")
    assert ([name.en for name in entry.classes], entry.flip) == (["red", "볼트"], True)
    assert (entry.train, entry.test) == (52, 8)
    params = load_params(project.path / "params.yaml")
    assert (params.dataset.name, params.dataset.path) == ("parts", "data/own/parts")
    assert [line.partition("#")[2] for line in (project.path / "params.yaml").read_text().splitlines()] == comments

    table = pq.read_table(project.path / "data/own/parts/train.parquet")
    row = table.to_pylist()[0]
    original = pictures / row["file"]
    assert row["file_sha256"] == hashlib.sha256(original.read_bytes()).hexdigest()
    assert row["image"] == np.asarray(Image.open(original)).tobytes()
    assert original.parent.name == ["red", "볼트"][row["label"]]
    assert project.run("dvc", "status", "data/own/parts.dvc").stdout.strip() == "Data and pipelines are up to date."


def test_equal_pictures_give_equal_bytes_whatever_their_order_and_names(project: Project, pictures: Path) -> None:
    project.run(*COMMAND, str(pictures), "--name", "parts")
    first = own_files(project)
    project.run(*COMMAND, str(pictures), "--name", "parts")
    assert own_files(project) == first
    for file in pictures.rglob("*.png"):
        file.rename(file.with_name(f"{hashlib.sha256(file.name.encode()).hexdigest()[:8]}.png"))
    project.run(*COMMAND, str(pictures), "--name", "parts", "--replace")
    pixels = pq.read_table(project.path / "data/own/parts/test.parquet", columns=["image", "label"])
    project.run(*COMMAND, str(pictures), "--name", "others")
    assert pixels.equals(pq.read_table(project.path / "data/own/others/test.parquet", columns=["image", "label"]))


def test_a_dry_run_and_refused_imports_write_nothing(project: Project, pictures: Path) -> None:
    before = own_files(project)
    project.run(*COMMAND, str(pictures), "--name", "parts", "--dry-run")
    assert own_files(project) == before
    assert not (project.path / "data/own").exists()
    (pictures / "red/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (pictures / "볼트/mistake.png").write_bytes((pictures / "red/01.png").read_bytes())
    for options, message in (
        (["--name", "parts"], "red/broken.png"),
        (["--name", "fashion-mnist"], "it is a dataset of the catalogue"),
        (["--name", "Parts/x"], "cannot be the name"),
        (["--name", "parts", "--size", "4"], "cannot use --size 4"),
        (["--name", "parts", "--group", "thing"], "cannot use the column 'thing' for groups"),
    ):
        refused = project.run(*COMMAND, str(pictures), *options, check=False)
        assert refused.returncode == 1
        assert message in refused.stdout
    assert own_files(project) == before
    (pictures / "red/broken.png").unlink()
    refused = project.run(*COMMAND, str(pictures), "--name", "parts", check=False)
    assert "red/01.png (red) = 볼트/mistake.png (볼트)" in refused.stdout
    shown = project.run(*COMMAND, str(pictures), "--name", "parts", "--skip-bad").stdout
    assert "mistake.png" in shown
    assert "red/01.png" not in str(pq.read_table(project.path / "data/own/parts/train.parquet")["file"].to_pylist())


def train_keys(project: Project, *names: str) -> list[Any]:
    train = yaml.safe_load((project.path / "params.yaml").read_text())["train"]
    return [train[name] for name in names]


def test_another_content_needs_another_name_or_a_request(project: Project, pictures: Path) -> None:
    project.run(*COMMAND, str(pictures), "--name", "parts")
    before = own_files(project)
    (pictures / "red/02.png").unlink()
    refused = project.run(*COMMAND, str(pictures), "--name", "parts", check=False)
    assert "exists already" in refused.stdout
    assert own_files(project) == before
    project.set_params(**{"train.widths": [8], "train.class_weights": "balanced", "train.epochs": 1})
    project.run(*COMMAND, str(pictures), "--name", "parts", "--replace", "--keep-training")
    assert train_keys(project, "widths", "class_weights", "epochs") == [[8], "balanced", 1]
    assert load_catalog(project.path / "data/catalog")["parts"].train == 51
    assert sum(entry.name == "parts" for entry in load_catalog(project.path / "data/catalog").values()) == 1
    project.run(*COMMAND, str(pictures), "--name", "parts")  # what an earlier import suggested goes
    assert train_keys(project, "widths", "class_weights", "epochs") == [None, "none", 60]


def test_a_killed_import_is_completed_by_the_same_command(project: Project, pictures: Path) -> None:
    """Killed after each of several delays: either all is there, or the dataset is not selected."""
    params = (project.path / "params.yaml").read_bytes()
    for delay in (0.3, 0.8, 1.2, 1.6, 2.2):
        process = subprocess.Popen(
            [*COMMAND, str(pictures), "--name", "parts"],
            cwd=project.path,
            env=project.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        entry = project.path / "data/catalog/parts.yaml"
        if (project.path / "params.yaml").read_bytes() != params:
            assert entry.exists()
        if entry.exists():
            assert (project.path / "data/own/parts.dvc").exists()
            assert (project.path / "data/own/parts/test.parquet").exists()
    project.run(*COMMAND, str(pictures), "--name", "parts")
    assert load_params(project.path / "params.yaml").dataset.name == "parts"
    assert [path.name for path in (project.path / "data/own").glob(".*.partial")] == []
    assert project.run("dvc", "status", "data/own/parts.dvc").stdout.strip() == "Data and pipelines are up to date."
