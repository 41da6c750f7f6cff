"""Batches that a team adds: they become training data, are versioned, and are never silently left out."""

import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.conftest import STAGES, Project, read_idx, stages_that_ran
from tests.e2e.test_repro import aliases_of, lock_of, runs_of, say_so_in_train


@pytest.fixture
def batch(trained: Project, tmp_path: Path) -> Path:
    """Forty new labelled images, four of each class: the project's own, a little brighter."""
    images = read_idx(trained.path / "data/raw/train-images-idx3-ubyte")
    labels = read_idx(trained.path / "data/raw/train-labels-idx1-ubyte")
    chosen = np.concatenate([np.flatnonzero(labels == label)[:4] for label in range(10)])
    brighter = np.where(images[chosen] > 0, np.minimum(images[chosen].astype(int) + 9, 255), 0).astype(np.uint8)
    path = tmp_path / "week-48.npz"
    np.savez(path, images=brighter, labels=labels[chosen])
    return path


def sources(project: Project) -> dict[str, int]:
    """Number of images by source, over the train and validation splits."""
    counts: dict[str, int] = {}
    for split in ("train", "validation"):
        column = pq.read_table(project.path / f"data/splits/{split}.parquet", columns=["source"]).column("source")
        for entry in pc.value_counts(column).to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    return counts


def test_a_batch_becomes_training_data_and_never_test_data(trained: Project, batch: Path) -> None:
    before = sources(trained)
    test_split = lock_of(trained)["split"]["data/splits/test.parquet"]
    placed = {}
    for split in ("train", "validation"):
        for id_ in (
            pq.read_table(trained.path / f"data/splits/{split}.parquet", columns=["id"]).column("id").to_pylist()
        ):
            placed[id_] = split

    added = trained.run("pipeline", "add-data", str(batch)).stdout
    assert "40" in added
    assert (trained.path / "data/incoming/week-48.npz.dvc").is_file()
    assert stages_that_ran(trained.repro("split").stdout) == ["ingest", "validate", "split"]

    after = sources(trained)
    assert after.pop("week-48.npz") == 40
    assert after == before
    assert lock_of(trained)["split"]["data/splits/test.parquet"] == test_split
    for split in ("train", "validation"):
        ids = pq.read_table(trained.path / f"data/splits/{split}.parquet", columns=["id"]).column("id").to_pylist()
        assert all(placed.get(id_, split) == split for id_ in ids)  # no earlier image has moved


def test_a_bad_batch_is_refused_by_name_and_leaves_nothing(trained: Project, tmp_path: Path) -> None:
    path = tmp_path / "broken.npz"
    np.savez(path, images=np.zeros((3, 28, 28), np.uint8), labels=np.array([1, 2, 10]))
    before = sorted(trained.path.glob("data/incoming/*"))
    result = trained.run("pipeline", "add-data", str(path), check=False)
    assert result.returncode == 1
    assert "broken" in result.stdout
    assert "10" in result.stdout
    assert sorted(trained.path.glob("data/incoming/*")) == before
    assert trained.run("git", "status", "--porcelain").stdout == ""
    assert stages_that_ran(trained.repro().stdout) == []


def test_a_batch_without_a_pointer_is_an_error(trained: Project, batch: Path) -> None:
    before = lock_of(trained)
    (trained.path / "data/incoming" / batch.name).write_bytes(batch.read_bytes())
    result = trained.repro(check=False)
    assert result.returncode != 0
    assert "pipeline add-data" in result.stdout
    assert lock_of(trained) == before
    assert aliases_of(trained) == {("tiny", "champion"): "1"}


def test_a_temporary_workspace_has_the_committed_batches_and_code_and_the_same_store(
    trained: Project, batch: Path
) -> None:
    say_so_in_train(trained)
    trained.run("pipeline", "add-data", str(batch))
    trained.commit("a batch, and a change that shows")
    params = (trained.path / "params.yaml").read_text()
    output = trained.run("dvc", "exp", "run", "--temp", "-S", "train.epochs=1").stdout
    assert stages_that_ran(output) == list(STAGES)
    assert "the code of this checkout" in output
    assert (trained.path / "params.yaml").read_text() == params
    assert len(runs_of(trained)) == 2
    assert not list(Path(trained.path / ".dvc/tmp/exps").rglob("mlflow.db"))
    name = trained.run("dvc", "exp", "list", "--name-only").stdout.split()[0]
    trained.run("dvc", "exp", "apply", name)
    assert sum(sources(trained).values()) == json_count(trained) == 2040


def json_count(project: Project) -> int:
    """Training images, validation images included, as the split's report counts them."""
    splits = json.loads((project.path / "reports/split.json").read_text())["splits"]
    return sum(splits[split]["images"] for split in ("train", "validation"))


def test_a_batch_that_a_temporary_workspace_would_miss_is_an_error(trained: Project, batch: Path) -> None:
    trained.run("pipeline", "add-data", str(batch))
    trained.run("git", "reset", "--quiet")  # its pointer is no longer known to git
    result = trained.run("dvc", "exp", "run", "--temp", "-S", "train.epochs=1", check=False)
    assert result.returncode != 0
    assert "train failed: this workspace does not have batch week-48" in result.stdout
    assert len(runs_of(trained)) == 1


def test_an_edited_batch_reaches_a_temporary_workspace_as_it_is_now(trained: Project, batch: Path) -> None:
    trained.run("pipeline", "add-data", str(batch))
    trained.commit("a batch")
    trained.repro("ingest")
    content = trained.path / "data/incoming" / batch.name
    content.unlink()  # DVC may have made it read-only
    with np.load(batch) as arrays:
        np.savez(content, images=arrays["images"] // 2, labels=arrays["labels"])
    assert stages_that_ran(trained.run("dvc", "exp", "run", "--temp", "ingest").stdout) == ["ingest"]
    trained.run("dvc", "exp", "apply", trained.run("dvc", "exp", "list", "--name-only").stdout.split()[0])
    rows = pq.read_table(trained.path / "data/dataset/train.parquet", filters=[("source", "=", batch.name)])
    assert len(rows) == 40
    assert max(max(image) for image in rows.column("image").to_pylist()) <= 127
