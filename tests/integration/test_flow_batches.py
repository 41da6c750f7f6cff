"""`pipeline add-data`, `status` and `sync` in a project, from wherever the reader stands."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.catalog import load_entry
from pipeline.errors import DataError, FlowError
from pipeline.flows.batches import AddedBatch, add_batch
from tests.conftest import STAGES, Project

Add = Callable[..., AddedBatch]
PIPELINE = ("python", "-m", "pipeline.cli")


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    """Twenty images, two of each class."""
    path = tmp_path / "march.npz"
    np.savez(path, images=np.full((20, 28, 28), 7, np.uint8), labels=np.arange(20) % 10)
    return path


@pytest.fixture
def add(stand_ins: Project, monkeypatch: pytest.MonkeyPatch) -> Add:
    """Adds a batch to the project, in this process."""
    monkeypatch.chdir(stand_ins.path)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(stand_ins.home / "dvc"))
    dataset = load_entry("tiny").dataset
    return lambda path, name=None: add_batch(path, name, dataset)


def incoming(project: Project) -> set[str]:
    return {path.name for path in (project.path / "data/incoming").glob("*")}


def test_a_batch_is_copied_versioned_and_ready_to_commit(stand_ins: Project, batch: Path) -> None:
    elsewhere = stand_ins.path / "data" / "local"
    command = ("sh", "-c", f'cd {elsewhere} && exec "$@"', "sh", *PIPELINE, "add-data", str(batch), "--name", "april")
    output = stand_ins.run(*command).stdout
    assert "20 images in data/incoming/april.npz" in output
    assert incoming(stand_ins) == {".gitignore", "april.npz", "april.npz.dvc"}
    commit = next(line.split(":", 1)[1] for line in output.splitlines() if line.startswith("keep it:"))
    stand_ins.run("sh", "-c", commit)
    assert stand_ins.run("git", "status", "--porcelain").stdout == ""
    assert stand_ins.run("dvc", "status", "data/incoming/april.npz.dvc").stdout.startswith("Data and pipelines are up")


def test_a_batch_that_lies_there_already_only_gets_its_pointer(stand_ins: Project, batch: Path, add: Add) -> None:
    placed = stand_ins.path / "data/incoming" / batch.name
    placed.parent.mkdir()
    batch.rename(placed)
    assert add(placed).counts["Bag"] == 2
    assert incoming(stand_ins) == {".gitignore", "march.npz", "march.npz.dvc"}


def test_a_name_is_not_taken_twice(stand_ins: Project, batch: Path, add: Add) -> None:
    add(batch)
    with pytest.raises(DataError, match=r"there is a batch march.npz already"):
        add(batch)


@pytest.mark.parametrize("name", ["a/b", ".hidden", ".."])
def test_a_name_that_ingest_would_overlook_is_refused(stand_ins: Project, batch: Path, name: str, add: Add) -> None:
    with pytest.raises(DataError, match="cannot be the name of a batch"):
        add(batch, name)
    assert incoming(stand_ins) == set()


def test_a_bad_batch_leaves_nothing_behind(stand_ins: Project, tmp_path: Path, add: Add) -> None:
    bad = tmp_path / "bad.npz"
    np.savez(bad, images=np.zeros((3, 28, 28), np.uint8), labels=np.array([1, 2, 10]))
    with pytest.raises(DataError, match=r"batch bad.npz is refused"):
        add(bad)
    assert incoming(stand_ins) == set()


def test_a_batch_that_dvc_cannot_add_leaves_nothing_behind(stand_ins: Project, batch: Path, add: Add) -> None:
    (stand_ins.path / "dvc.yaml").write_text("stages: [")
    with pytest.raises(FlowError, match="DVC cannot add data/incoming/march.npz"):
        add(batch)
    assert not {"march.npz", "march.npz.dvc"} & incoming(stand_ins)


def test_a_batch_that_git_cannot_add_leaves_nothing_behind(stand_ins: Project, batch: Path, add: Add) -> None:
    (stand_ins.path / ".git/index.lock").touch()
    with pytest.raises(FlowError, match="git cannot add data/incoming/march.npz.dvc"):
        add(batch)
    assert incoming(stand_ins) == set()


def test_status_says_what_would_run_and_why(stand_ins: Project) -> None:
    assert "skip it" in stand_ins.run(*PIPELINE, "status").stdout
    stand_ins.set_params(**{"train.seed": 9})
    output = stand_ins.run(*PIPELINE, "status").stdout
    lines = {line.split()[0]: line for line in output.splitlines() if line.split()[:1] and line.split()[0] in STAGES}
    assert "skip it" in lines["split"]
    assert "run or restore it" in lines["train"]
    assert "params.yaml:train.seed" in lines["train"]
    assert "train may change" in lines["evaluate"]
    assert "50.00% (40.00% to 60.00%)" in output


def test_sync_without_a_model_says_what_to_do(stand_ins: Project) -> None:
    assert "pipeline run" in stand_ins.run(*PIPELINE, "sync").stdout
