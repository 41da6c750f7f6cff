"""`python -m pipeline.stages.train` in processes of its own: the same bytes alone, and killed on a busy machine.

Also with the images streamed from disk, and with two workers that share each batch.
"""

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

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.data import table, tiny
from tests.conftest import REPOSITORY, Project, create_project
from tests.integration.test_distribution import clusters

pytestmark = pytest.mark.faults  # kills and a loaded machine, for two minutes

MODEL_FILES = {"model.keras", "model.tflite", "contract.json", "NOTE.txt"}
PRESETS = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["presets"]
SHORT = {  # each preset as it is, but for its length; one of them with every augmentation
    "mlp": {"train.epochs": 30},
    "cnn": {"train.epochs": 5, "train.flip": True, "train.erase": 6, "train.weight_average": 0.9},
    "cnn-large": {"train.epochs": 3},
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


def copy(base: Project, path: Path, preset: str, **params: Any) -> Project:
    project = base.copy_to(path)
    project.set_params(**{"train.preset": preset} | SHORT[preset] | params)
    return project


def train(project: Project) -> str:
    return project.run(sys.executable, "-m", "pipeline.stages.train").stdout


def digests(project: Project) -> dict[str, str]:
    """Content of everything that `train` writes."""
    paths = [*(project.path / "models").rglob("*"), *(project.path / "reports/training").iterdir()]
    files = [path for path in paths if path.is_file()]
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


def test_every_preset_is_among_them() -> None:
    assert SHORT.keys() == PRESETS.keys()


@pytest.mark.parametrize("preset", SHORT)
def test_every_training_gives_the_same_bytes(preset: str, base: Project, tmp_path: Path) -> None:
    alone = base
    if preset != "mlp":
        alone = copy(base, tmp_path / "alone", preset)
        train(alone)
    expected = digests(alone)
    assert expected.keys() == MODEL_FILES | {"curves.png", "history.csv", "metrics.json", "settings.json"}

    killed = copy(base, tmp_path / "killed", preset)
    with busy_machine():
        kill_after_two_epochs(killed)
        assert "from checkpoint" in train(killed)
    assert digests(killed) == expected
    assert not any(map(checkpoints, (alone, killed)))


@pytest.fixture(scope="module")
def large(base: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose splits have several row groups each, and no room in memory for their images."""
    project = base.copy_to(tmp_path_factory.mktemp("large") / "project")
    project.set_params(**{"train.memory_limit_mb": 16, "train.epochs": 4, "train.widths": [16]})
    for split, count, seed in (("train", 40_000, 1), ("validation", 9_000, 2)):
        file = project.path / f"data/splits/{split}.parquet"
        dataset = table.read_dataset(file)
        images, labels = (
            np.tile(array, (count // 1000, *[1] * (array.ndim - 1))) for array in tiny.generate(1000, seed)
        )
        with table.writer(file, dataset) as rows:
            rows.write(images, labels, *(table.strings([name] * count) for name in ("id", "official")))
        assert pq.ParquetFile(file).num_row_groups == -(-count // table.ROW_GROUP) > 1
    return project


def test_a_streamed_training_gives_the_same_bytes_killed_or_not(large: Project, tmp_path: Path) -> None:
    train(large)
    killed = large.copy_to(tmp_path / "killed")
    kill_after_two_epochs(killed)
    assert "from checkpoint" in train(killed)
    assert digests(killed) == digests(large)
    history = (large.path / "reports/training/history.csv").read_text().splitlines()
    assert float(history[-1].split(",")[4]) > 0.8  # the validation accuracy, of a streamed validation


def test_two_workers_train_one_model_and_the_chief_alone_writes(base: Project, tmp_path: Path) -> None:
    small = {"train.widths": [32], "train.xla": "never", "train.epochs": 6}
    alone = copy(base, tmp_path / "alone", "mlp", **small)
    train(alone)
    pair = copy(base, tmp_path / "pair", "mlp", **small, **{"train.data_parallel": "multi_worker"})
    runs = count_runs(pair)

    def start_both() -> list[subprocess.Popen[str]]:
        command = (sys.executable, "-m", "pipeline.stages.train")
        return [pair.start(*command, TF_CONFIG=config) for config in clusters(2)]

    chief, worker = start_both()
    (chief_says, _), (worker_says, _) = chief.communicate(timeout=300), worker.communicate(timeout=300)
    assert (chief.returncode, worker.returncode) == (0, 0), chief_says + worker_says
    assert "2 replicas" in worker_says
    assert losses(chief_says) == losses(worker_says)
    assert len(losses(chief_says)) == 6
    assert "best on validation" not in worker_says
    assert count_runs(pair) == runs + 1
    assert not checkpoints(pair)
    assert accuracy(pair) == pytest.approx(accuracy(alone), abs=0.03)

    expected = digests(pair)
    for output in ("models", "reports/training"):
        shutil.rmtree(pair.path / output)
    chief, worker = start_both()
    assert chief.stdout
    assert any(re.match(r"epoch +2/", line) for line in chief.stdout)
    for process in (chief, worker):
        process.kill()
        process.communicate()
    chief, worker = start_both()
    says = [process.communicate(timeout=300)[0] for process in (chief, worker)]
    assert all("from checkpoint" in text for text in says), says
    assert digests(pair) == expected


def test_workers_that_train_something_else_are_refused(base: Project, tmp_path: Path) -> None:
    projects = [
        copy(base, tmp_path / str(width), "mlp", **{"train.widths": [width], "train.data_parallel": "multi_worker"})
        for width in (16, 32)
    ]
    workers = [
        project.start(sys.executable, "-m", "pipeline.stages.train", TF_CONFIG=config)
        for project, config in zip(projects, clusters(2), strict=True)
    ]
    says = [worker.communicate(timeout=300)[0] for worker in workers]
    assert all("the workers have different trainings" in text for text in says), says
    assert all(worker.returncode == 1 for worker in workers)
    assert not any(map(checkpoints, projects))


def losses(output: str) -> list[str]:
    """What the lines about the epochs say of loss and accuracy."""
    return re.findall(r"^epoch .*(loss [\d.]+ +validation accuracy [\d.]+)", output, re.MULTILINE)


def accuracy(project: Project) -> float:
    """The validation accuracy of the last epoch."""
    return float((project.path / "reports/training/history.csv").read_text().splitlines()[-1].split(",")[4])


def count_runs(project: Project) -> int:
    client = mlflow.MlflowClient(f"sqlite:///{project.path / 'mlflow.db'}")
    return len(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))
