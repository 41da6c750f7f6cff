"""`pipeline add-data`, `status` and `sync` in a project, from wherever the reader stands."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.batches import inspection
from pipeline.batches.add import AddedBatch, add_batch
from pipeline.data import table, tiny
from pipeline.data.catalog import load_entry
from pipeline.data.thresholds import resolve_thresholds
from pipeline.errors import DataError, FlowError
from pipeline.files import write_json
from pipeline.params import load_params
from pipeline.stages import ingest, split
from tests.conftest import REPOSITORY, STAGES, Project
from tests.stand_ins import TABLES

Add = Callable[..., AddedBatch]
PIPELINE = ("python", "-m", "pipeline.cli")


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    """Twenty images, two of each class."""
    images, labels = tiny.generate(20, seed=7)
    path = tmp_path / "march.npz"
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture
def add(stand_ins: Project, monkeypatch: pytest.MonkeyPatch) -> Add:
    """Adds a batch to the project, in this process."""
    monkeypatch.chdir(stand_ins.path)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(stand_ins.home / "dvc"))
    entry = load_entry("tiny")
    thresholds = resolve_thresholds(load_params().validate, entry)
    return lambda path, name=None: add_batch(path, name, entry.dataset, thresholds)


def incoming(project: Project) -> set[str]:
    return {path.name for path in (project.path / "data/incoming").glob("*")}


def test_a_batch_is_copied_versioned_and_ready_to_commit(stand_ins: Project, batch: Path) -> None:
    elsewhere = stand_ins.path / "data" / "local"
    command = (
        "sh",
        "-c",
        f'cd {elsewhere} && exec "$@"',
        "sh",
        *PIPELINE,
        "add-data",
        str(batch),
        "--name",
        "april 2026",
    )
    output = stand_ins.run(*command).stdout
    assert "20 images in data/incoming/april 2026.npz" in output
    assert incoming(stand_ins) == {".gitignore", "april 2026.npz", "april 2026.npz.dvc"}
    commit = next(line.split(":", 1)[1] for line in output.splitlines() if line.startswith("keep it:"))
    stand_ins.run("sh", "-c", commit)
    assert stand_ins.run("git", "status", "--porcelain").stdout == ""
    assert stand_ins.run("dvc", "status", "data/incoming/april 2026.npz.dvc").stdout.startswith(
        "Data and pipelines are up"
    )


def test_a_batch_that_lies_there_already_only_gets_its_pointer(stand_ins: Project, batch: Path, add: Add) -> None:
    placed = stand_ins.path / "data/incoming" / batch.name
    placed.parent.mkdir()
    batch.rename(placed)
    assert add(placed).counts["Bag"] == 2
    assert incoming(stand_ins) == {".gitignore", "march.npz", "march.npz.dvc"}


def write_folders(path: Path) -> Path:
    """A batch of twenty pictures in a folder for each class, with what a Mac leaves there."""
    for number, (pixels, label) in enumerate(zip(*tiny.generate(20, seed=7), strict=True)):
        (path / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path / str(label) / f"{number}.png")
    (path / ".DS_Store").write_bytes(b"?")
    (path / "0/.thumbs").mkdir()
    (path / "0/.thumbs/a.png").write_bytes(b"?")
    return path


def cached(project: Project) -> bytes:
    """All that DVC would push."""
    return b"".join(path.read_bytes() for path in (project.path / ".dvc/cache").rglob("*") if path.is_file())


def test_hidden_files_are_left_out_and_links_refused(stand_ins: Project, tmp_path: Path, add: Add) -> None:
    shutil.copy(REPOSITORY / ".dvcignore", stand_ins.path)
    march = write_folders(tmp_path / "march")
    output = stand_ins.run(*PIPELINE, "add-data", str(march)).stdout
    assert "skipped hidden files: .DS_Store, 0/.thumbs" in output
    placed = stand_ins.path / "data/incoming/march"
    assert len([path for path in placed.rglob("*") if path.is_file()]) == 20

    april = write_folders(stand_ins.path / "data/incoming/april")  # in its place already
    for picture in april.rglob("[0-9]*.png"):
        Image.fromarray(np.asarray(Image.open(picture)) // 2).save(picture)
    assert add(april).left_out == (".DS_Store", "0/.thumbs")
    (april / "0/.DS_Store").write_bytes(b"another")
    assert "up to date" in stand_ins.run("dvc", "status", "data/incoming/april.dvc").stdout
    assert b"thumbs" not in cached(stand_ins)

    (tmp_path / "private").write_text("a password")
    before, kept = incoming(stand_ins), cached(stand_ins)
    for batch in (march, april):
        (batch / "0/.meta").symlink_to(tmp_path / "private")
        with pytest.raises(DataError, match=rf"batch {batch.name} is refused: .*0/\.meta is a link"):
            add(batch, "may" if batch == march else None)
        (batch / "0/.meta").unlink()
    (stand_ins.path / "data/incoming/june").symlink_to(march)
    with pytest.raises(DataError, match=r"batch june is refused: data/incoming/june is a link"):
        add(march, "june")
    (stand_ins.path / "data/incoming/june").unlink()
    assert (incoming(stand_ins), cached(stand_ins)) == (before, kept)


def test_what_is_added_is_what_was_checked(
    stand_ins: Project, batch: Path, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its files change between the check and the copy, or DVC's reading."""
    checked, spoiled = batch.read_bytes(), stand_ins.path / "data/incoming/april.npz"
    check = inspection.inspect_batch

    def spoil_once_checked(path: Path, *rest: Any) -> Any:
        result = check(path, *rest)
        (spoiled if path.name == spoiled.name else batch).write_bytes(b"not checked")
        return result

    monkeypatch.setattr(inspection, "inspect_batch", spoil_once_checked)
    add(batch)
    assert (stand_ins.path / "data/incoming/march.npz").read_bytes() == checked
    before = incoming(stand_ins)
    images, labels = tiny.generate(20, seed=8)
    np.savez(spoiled, images=images, labels=labels)
    with pytest.raises(DataError, match=r"april\.npz changed while it was checked"):
        add(spoiled)
    assert incoming(stand_ins) == {*before, "april.npz"}
    assert "april.npz.dvc" not in stand_ins.run("git", "status", "--porcelain").stdout


def test_a_batch_that_was_edited_may_repeat_what_it_had(stand_ins: Project, batch: Path, add: Add) -> None:
    trained_on = np.load(batch)
    local = replace(load_entry("tiny").dataset, name="tiny-local-0123abcd")
    with table.writer(stand_ins.path / "data/dataset/train.parquet", local) as rows:
        texts = (table.strings([text] * len(trained_on["labels"])) for text in ("id", batch.name))
        rows.write(trained_on["images"], trained_on["labels"], *texts)
    with pytest.raises(DataError, match="fail the checks") as refused:
        add(batch, "another")
    assert "already_there" in refused.value.found
    images, labels = tiny.generate(5, seed=8)
    edited = {"images": [*trained_on["images"], *images], "labels": [*trained_on["labels"], *labels]}
    placed = stand_ins.path / "data/incoming" / batch.name
    placed.parent.mkdir()
    np.savez(placed, **edited)
    assert sum(add(placed).counts.values()) == 25


def test_a_name_is_not_taken_twice(stand_ins: Project, batch: Path, add: Add) -> None:
    add(batch)
    with pytest.raises(DataError, match=r"batch march.npz exists already"):
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


def blank(images: np.ndarray, labels: np.ndarray) -> None:
    images[3] = 0


def repeated(images: np.ndarray, labels: np.ndarray) -> None:
    images[1], labels[1] = images[0], labels[0]


def contradictory(images: np.ndarray, labels: np.ndarray) -> None:
    images[1], labels[1], labels[0] = images[0], 1, 0


def leaked(images: np.ndarray, labels: np.ndarray) -> None:
    images[5], labels[5] = (values[1] for values in tiny.generate(*TABLES["test"]))


def known_already(images: np.ndarray, labels: np.ndarray) -> None:
    images[6], labels[6] = (values[2] for values in tiny.generate(*TABLES["train"]))


@pytest.mark.parametrize(
    ("spoil", "expectation"),
    [
        (blank, "blank_images"),
        (repeated, "duplicates_within_splits"),
        (contradictory, "conflicting_labels"),
        (leaked, "duplicates_across_splits"),
        (known_already, "already_there"),
    ],
)
def test_a_batch_that_would_stop_validation_is_refused(
    stand_ins: Project, batch: Path, add: Add, spoil: Callable[..., None], expectation: str
) -> None:
    images, labels = (np.load(batch)[name] for name in ("images", "labels"))
    spoil(images, labels)
    np.savez(batch, images=images, labels=labels)
    with pytest.raises(DataError, match=r"batch march.npz is refused") as refused:
        add(batch)
    assert expectation in refused.value.found
    assert incoming(stand_ins) == set()


def draw_hats(path: Path, count: int, seed: int = 0) -> Path:
    """Pictures of a class that `tiny` does not have, and two pictures of one that it has."""
    for name, images in (
        ("Hat", np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8)),
        ("Bag", tiny.generate(20, seed=seed + 50)[0][:2]),
    ):
        (path / name).mkdir(parents=True)
        for number, pixels in enumerate(images):
            Image.fromarray(pixels).save(path / name / f"{number}.png")
    return path


def test_a_batch_brings_a_new_class(stand_ins: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through `ingest` and `split`; a second batch moves no image."""
    catalog = stand_ins.path / "data/catalog/tiny.yaml"
    original, folder = catalog.read_text(), draw_hats(tmp_path / "hats", 200)
    add = (*PIPELINE, "add-data", str(folder))
    refused = stand_ins.run(*add, check=False).stdout
    assert "hats/Hat does not have the name of a class" in refused
    assert "--new-class NAME" in refused
    (tmp_path / "bags").mkdir()
    shutil.copytree(folder / "Bag", tmp_path / "bags/Bag")
    without = stand_ins.run(*add[:-1], str(tmp_path / "bags"), "--new-class", "Hat=모자", check=False).stdout
    assert "has no images of the new class Hat" in without
    (stand_ins.path / ".git/index.lock").touch()
    assert "git cannot add" in stand_ins.run(*add, "--new-class", "Hat=모자", check=False).stdout
    (stand_ins.path / ".git/index.lock").unlink()
    assert (catalog.read_text(), incoming(stand_ins)) == (original, set())

    output = stand_ins.run(*add, "--new-class", "Hat=모자", "--test-fraction", "0.2").stdout
    assert "Hat joins the classes in data/catalog/tiny.yaml; 20% of the images are test images" in output
    commit = next(line.split(":", 1)[1] for line in output.splitlines() if line.startswith("keep it:"))
    stand_ins.run("sh", "-c", commit)
    assert stand_ins.run("git", "status", "--porcelain").stdout == ""
    assert catalog.read_text() == original + "  - {en: Hat, ko: 모자, test_fraction: 0.2}\n"

    monkeypatch.chdir(stand_ins.path)
    shutil.copy(REPOSITORY / "data/corrections.csv", "data")
    before = run_stages()
    assert all(before.values())
    assert "202 images" in stand_ins.run(*add[:-1], "data/incoming/hats").stdout  # it may repeat its own test images
    shutil.copytree(tmp_path / "hats/Hat", tmp_path / "copies/Hat")
    repeated = stand_ins.run(*add[:-1], str(tmp_path / "copies"), check=False).stdout
    assert "already_there" in repeated
    assert "duplicates_across_splits" not in repeated
    draw_hats(tmp_path / "more", 100, seed=1)
    for number in range(30):  # copies of pictures on each side: `validate` has no say in this test
        shutil.copy(folder / f"Hat/{number}.png", tmp_path / f"more/Hat/copy-{number}.png")
    shutil.copytree(tmp_path / "more", "data/incoming/more")
    Path("data/incoming/more.dvc").write_text("outs: []")
    after = run_stages()
    assert all(before[split] <= after[split] for split in before)
    assert sum(map(len, after.values())) == sum(map(len, before.values())) + 100


def run_stages() -> dict[str, set[str]]:
    """Run `ingest` and `split`. Returns the pixel digests of the hats in each split."""
    params = load_params()
    ingest.run(params)
    write_json(split.VALIDATION_REPORT, {"passed": True})
    split.run(params)
    return {
        name: {
            id_[: table.SHA1_DIGITS]
            for rows in table.stream(split.SPLITS / f"{name}.parquet")
            for id_, label in zip(rows.ids.to_pylist(), rows.labels, strict=True)
            if label == 10
        }
        for name in ("train", "validation", "test")
    }


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
