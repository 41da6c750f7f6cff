"""Bad input: a clear error, a non-zero exit, nothing registered, nothing lost."""

import gzip
import os
import re
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Project, read_idx, stages_that_ran, write_idx
from tests.e2e.test_repro import aliases_of, lock_of, runs_of

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
Arrays = dict[str, np.ndarray]


def local_data(project: Project, change: Callable[[Arrays], None]) -> None:
    """Put a changed copy of the project's data into `data/local`."""
    arrays = {name: read_idx(project.path / "data/raw" / name).copy() for name in FILES}
    change(arrays)
    for name, array in arrays.items():
        write_idx(project.path / "data/local" / name, array)


def nothing_lost(project: Project, before: dict[str, dict[str, str]]) -> None:
    """The former outputs come back as the error says, and the registry is as it was."""
    assert lock_of(project) == before
    assert aliases_of(project) == {("tiny", "champion"): "1"}
    assert len(runs_of(project)) == 1
    project.run("dvc", "checkout")
    assert (project.path / "models/model.keras").is_file()
    assert (project.path / "data/dataset/train.parquet").is_file()


def blank_images(arrays: Arrays) -> None:
    arrays[FILES[0]][::20] = 0


def labels_out_of_range(arrays: Arrays) -> None:
    arrays[FILES[1]][7] = 10


@pytest.mark.parametrize(
    ("change", "stage", "words"),
    [
        (blank_images, "validate", [r"blank_images +FAILED", "blank_images .*: 100 "]),
        (labels_out_of_range, "ingest", ["train-labels-idx1-ubyte has labels", "found: +10 at position 7"]),
    ],
)
def test_bad_data_stops_the_pipeline_and_registers_nothing(
    trained: Project, change: Callable[[Arrays], None], stage: str, words: list[str]
) -> None:
    before = lock_of(trained)
    local_data(trained, change)
    result = trained.repro(check=False)
    assert result.returncode != 0
    assert stages_that_ran(result.stdout)[-1] == stage
    assert f"{stage} failed:" in result.stdout
    assert "dvc checkout" in result.stdout
    assert "Traceback" not in result.stdout
    for pattern in words:
        assert re.search(pattern, result.stdout), pattern
    assert len(runs_of(trained)) == 1
    assert aliases_of(trained) == {("tiny", "champion"): "1"}
    for name in FILES:
        (trained.path / "data/local" / name).unlink()
    assert stages_that_ran(trained.repro().stdout) == []  # the former outputs come from the cache
    assert lock_of(trained) == before


def test_a_damaged_file_is_named(trained: Project) -> None:
    before = lock_of(trained)
    local_data(trained, lambda arrays: None)
    plain = trained.path / "data/local" / FILES[0]
    plain.with_name(plain.name + ".gz").write_bytes(gzip.compress(plain.read_bytes())[:-2000])
    plain.unlink()
    result = trained.repro(check=False)
    assert result.returncode != 0
    assert f"{FILES[0]}.gz" in result.stdout
    assert "damaged gzip file" in result.stdout
    nothing_lost(trained, before)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.loss", "binary_crossentropy", "dataset.positive_classes is empty"),
        ("dataset.name", "fashion-minst", "did you mean fashion-mnist?"),
    ],
)
def test_bad_parameters_stop_before_anything_runs(trained: Project, key: str, value: object, message: str) -> None:
    before = lock_of(trained)
    trained.set_params(**{key: value})
    result = trained.run("pipeline", "run", check=False)
    assert result.returncode == 1
    assert message in " ".join(result.stdout.split())
    assert "Running stage" not in result.stdout
    assert (trained.path / "models/model.keras").is_file()
    nothing_lost(trained, before)


def test_an_unknown_positive_class_stops_before_anything_runs(trained: Project) -> None:
    trained.set_params(**{"train.loss": "binary_crossentropy", "dataset.positive_classes": ["Sandl"]})
    result = trained.run("pipeline", "run", check=False)
    assert result.returncode == 1
    assert "Sandl" in result.stdout
    assert "Running stage" not in result.stdout
    assert (trained.path / "models/model.keras").is_file()


def test_a_temporary_workspace_without_the_local_files_is_refused(trained: Project) -> None:
    local_data(trained, lambda arrays: None)
    result = trained.run("dvc", "exp", "run", "--temp", "-S", "train.epochs=1", check=False)
    assert result.returncode != 0
    assert "does not have the files of dataset.path" in result.stdout
    assert len(runs_of(trained)) == 1


def test_a_misspelt_key_stops_a_plain_repro_too(trained: Project) -> None:
    before = lock_of(trained)
    trained.set_params(**{"train.epochz": 3})
    result = trained.repro(check=False)
    assert result.returncode != 0
    assert "did you mean epochs?" in result.stdout
    nothing_lost(trained, before)


def test_a_corrupt_lock_file_is_named(trained: Project) -> None:
    (trained.path / "dvc.lock").write_text("schema: '2.0'\nstages:\n  ingest: [")
    for command in (("dvc", "repro"), ("pipeline", "run")):
        result = trained.run(*command, check=False)
        assert result.returncode != 0
        assert "dvc.lock" in result.stdout
        assert "Running stage" not in result.stdout
    assert "git checkout" in result.stdout
    assert (trained.path / "models/model.keras").is_file()
    assert len(runs_of(trained)) == 1


@pytest.mark.faults
def test_a_read_only_folder_is_named(trained: Project) -> None:
    reports = trained.path / "reports"
    (reports / "split.json").unlink()
    reports.chmod(0o555)
    # For root, setpriv takes away the privilege to write where the permissions forbid it.
    command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    result = trained.run(*command, "python", "-m", "pipeline.stages.split", check=False)
    reports.chmod(0o755)
    assert result.returncode == 1, result.stdout
    assert "split failed: cannot read or write" in result.stdout
    assert "Permission denied" in result.stdout
    assert not (reports / "split.json").exists()


@pytest.mark.faults
@pytest.mark.parametrize("stage", ["ingest", "split", "train", "evaluate"])
def test_a_full_disk_is_told_and_leaves_nothing_half_written(trained: Project, stage: str) -> None:
    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    before = {path: path.read_bytes() for path in trained.path.glob("data/splits/*")}
    result = subprocess.run(
        ["python", "-m", f"pipeline.stages.{stage}"],
        cwd=trained.path,
        env=trained.environment,
        preexec_fn=no_room,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert f"{stage} failed:" in result.stderr
    assert "File too large" in result.stderr
    assert {path: path.read_bytes() for path in before} == before
    assert not [path for path in Path(trained.path).rglob("*.partial") if ".dvc" not in path.parts]
