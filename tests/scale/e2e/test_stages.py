"""Stages and imports with local workers write the same bytes as without, also if a worker is killed."""

import shutil
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.files import file_digest
from tests.conftest import Project
from tests.processes import wait_until, wait_until_idle

pytestmark = pytest.mark.faults
IMPORT = (sys.executable, "-m", "pipeline.cli", "data", "import")


def draw_pictures(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    for number in range(count):
        directory = folder / ("cat", "dog")[number % 2]
        directory.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (40, 40), np.uint8)
        Image.fromarray(noise).resize((60 + number % 2, 60)).save(directory / f"{number:05}.png")
    return folder


def digests(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): file_digest(path) for path in directory.rglob("*") if path.is_file()}


def workers_of(project: Project) -> list[psutil.Process]:
    """The Dask workers that work in a project."""
    found = psutil.process_iter(["cmdline", "cwd"])
    return [
        process
        for process in found
        if process.info["cwd"] == str(project.path) and "spawn_main" in " ".join(process.info["cmdline"] or ())
    ]


def test_stages_write_the_same_bytes(project: Project) -> None:
    rng = np.random.default_rng(0)
    for number in range(300):
        folder = project.path / "data/incoming/more" / str(number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(folder / f"{number:03}.png")
    project.run("dvc", "add", "--quiet", "data/incoming/more")

    def run_stages() -> dict[str, str]:
        for stage in ("ingest", "validate"):
            project.run(sys.executable, "-m", f"pipeline.stages.{stage}")
        report = file_digest(project.path / "reports/validation.json")
        return digests(project.path / "data/dataset") | {"report": report} | train_folds()

    def train_folds() -> dict[str, str]:
        review = project.path / ".pipeline/review/labels"
        shutil.rmtree(review, ignore_errors=True)
        project.run("pipeline", "review", "labels", "--folds", "2")
        return digests(review / "folds")

    project.set_params(**{"validate.max_mean_shift": 1.0})  # the noise is brighter than the dataset
    alone = run_stages()
    project.set_params(**{"scale.workers": 2})
    assert run_stages() == alone
    wait_until_idle(project)


def test_an_import_has_the_same_bytes_if_a_worker_is_killed(project: Project, tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path / "pictures", 4000)
    alone = project.copy_to(tmp_path / "alone")
    alone.run(*IMPORT, str(pictures), "--name", "parts", "--licence", "CC0")
    project.set_params(**{"scale.workers": 2})
    command = project.start(*IMPORT, str(pictures), "--name", "parts", "--licence", "CC0")
    decoded = project.path / "data/own/.parts.partial/grey.pixels"
    wait_until(lambda: decoded.exists() and decoded.stat().st_size)
    victim = workers_of(project)[0]
    victim.kill()
    shown, _ = command.communicate()
    assert command.returncode == 0, shown
    assert "Dask" not in shown
    assert digests(project.path / "data/own") == digests(alone.path / "data/own")
    wait_until_idle(project)


def test_workers_end_with_a_killed_command(project: Project, tmp_path: Path) -> None:
    project.set_params(**{"scale.workers": 2})
    pictures = draw_pictures(tmp_path / "pictures", 2000)
    command = project.start(*IMPORT, str(pictures), "--name", "parts", "--licence", "CC0")
    wait_until(lambda: len(workers_of(project)) >= 2)
    command.kill()
    command.wait()
    wait_until_idle(project)
