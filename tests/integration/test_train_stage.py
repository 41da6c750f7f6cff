"""`python -m pipeline.stages.train` in processes of its own: the same bytes from every run, loaded, killed or not."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Project, create_project

pytestmark = pytest.mark.faults  # kills and a loaded machine, for two minutes

SHORT: dict[str, dict[str, Any]] = {  # each preset as it is, but for its size
    "mlp": {"train.epochs": 30},
    "cnn": {"train.epochs": 10, "train.widths": [4, 8], "train.erase": 6, "train.weight_average": 0.9},
    "cnn-large": {"train.epochs": 10, "train.widths": [8, 12]},
}


@pytest.fixture(scope="module")
def base(shared: Callable[[str, Callable[[Path], Any]], Path]) -> Project:
    """A project on `tiny` in which the stages up to `train` have run, with the mlp. Not to be changed: copy it."""

    def build(path: Path) -> None:
        project = create_project(path / "project", path / "home")
        project.set_params(**{"dataset.name": "tiny"} | SHORT["mlp"])
        for stage in ("ingest", "validate", "split", "train"):
            project.run(sys.executable, "-m", f"pipeline.stages.{stage}")

    path = shared("train-stage", build)
    return Project(path / "project", path / "home")


def copy(base: Project, path: Path, preset: str) -> Project:
    project = base.copy_to(path)
    project.set_params(**{"train.preset": preset} | SHORT[preset])
    return project


def train(project: Project) -> str:
    return project.run(sys.executable, "-m", "pipeline.stages.train").stdout


def digests(project: Project) -> dict[str, str]:
    """Content of everything that `train` writes."""
    files = [project.path / "models/model.keras", *(project.path / "reports/training").iterdir()]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def checkpoints(project: Project) -> list[Path]:
    return list((project.path / ".pipeline/checkpoints").iterdir())


@contextmanager
def busy_machine() -> Iterator[None]:
    """Every core at work on something else."""
    command = [sys.executable, "-c", "while True: sum(range(10**6))"]
    others = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def kill_after_two_epochs(project: Project) -> None:
    """Start a training as DVC does, without former outputs, and `kill -9` it."""
    shutil.rmtree(project.path / "models")
    shutil.rmtree(project.path / "reports/training")
    running = project.start(sys.executable, "-m", "pipeline.stages.train")
    assert running.stdout
    assert any(re.match(r"epoch +2/", line) for line in running.stdout)
    running.kill()
    running.wait()
    assert checkpoints(project)


@pytest.mark.parametrize("preset", SHORT)
def test_every_training_gives_the_same_bytes(preset: str, base: Project, tmp_path: Path) -> None:
    alone = base
    if preset != "mlp":
        alone = copy(base, tmp_path / "alone", preset)
        train(alone)
    expected = digests(alone)
    assert expected.keys() == {"model.keras", "curves.png", "history.csv", "settings.json"}

    crowded = copy(base, tmp_path / "crowded", preset)
    with busy_machine():
        train(crowded)
    assert digests(crowded) == expected

    killed = copy(base, tmp_path / "killed", preset)
    kill_after_two_epochs(killed)
    assert "from checkpoint" in train(killed)
    assert digests(killed) == expected
    assert not any(map(checkpoints, (alone, crowded, killed)))
