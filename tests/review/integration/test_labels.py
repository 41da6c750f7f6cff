"""Wrong labels and duplicates, found in data to which they were added."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli.__main__ import app
from pipeline.data import table, tiny
from pipeline.data.catalog import load_entry
from pipeline.data.removed_images import REMOVED, Removed, write_removed
from pipeline.errors import WorkspaceError
from pipeline.review import folds
from pipeline.review.images import TABLES, read_images
from pipeline.review.items import ITEMS, read_items, review_directory
from pipeline.review.labels import Review, find_wrong_labels
from pipeline.review.ranking import rank
from pipeline.tracking.store import locate, open_store
from tests.conftest import REPOSITORY
from tests.integration.recorded import empty_store
from tests.review.tables import flip_labels, write_tables

__all__ = ["empty_store"]  # a fixture

FLIPPED = 60


@dataclass(frozen=True)
class Checkout:
    """A checkout with wrong labels and duplicates, and the review of it."""

    root: Path
    flipped: np.ndarray  # rows of training images with a wrong label
    flipped_test: np.ndarray  # rows of test images
    ids: dict[str, list[str]]
    found: Review
    output: str


def make_checkout(root: Path, store: Path, dataset: str, epochs: int) -> None:
    """Make a directory in which a review can run, except its tables."""
    root.mkdir(exist_ok=True)
    (root / "dvc.yaml").touch()
    shutil.copy(store, root)
    shutil.copytree(REPOSITORY / "data/catalog", root / "data/catalog")
    shutil.copy(REPOSITORY / "pins.txt", root)
    text = (REPOSITORY / "params.yaml").read_text().replace("  name: fashion-mnist ", f"  name: {dataset} ")
    (root / "params.yaml").write_text(text.replace("  epochs: null", f"  epochs: {epochs}"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Checkout]:
    """Of 1,500 images, 60 have a wrong label. The last ones are duplicates."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("review") / "project"
        make_checkout(root, empty_store, "tiny", epochs=8)
        patch.chdir(root)
        images, labels = tiny.generate(1500, 3)
        labels, flipped = flip_labels(labels, FLIPPED, 10, seed=4)
        test_images, test_labels = tiny.generate(200, 5)
        test_labels, flipped_test = flip_labels(test_labels, 8, 10, seed=8)
        test = test_images, test_labels
        right = np.setdiff1d(np.arange(1500), flipped)[:4]
        noise = np.random.default_rng(6).integers(0, 2, images.shape[1:], np.uint8)
        copies = np.stack([images[right[0]], images[right[1]] ^ noise, test[0][0] ^ noise])
        given = [(labels[right[0]] + 1) % 10, labels[right[1]], test[1][0]]
        images, labels = np.concatenate([images, copies]), np.concatenate([labels, given]).astype(np.uint8)
        sources = [table.OFFICIAL] * 1500 + ["spring"] * 3
        ids = write_tables(root, load_entry("tiny").dataset, (images, labels), test, sources)
        result = CliRunner().invoke(app, ["review", "labels", "--folds", "3", "--first", "4"])
        assert result.exit_code == 0, result.output
        found = find_wrong_labels("labels", 3, lambda progress: None)
        yield Checkout(root, flipped, flipped_test, ids, found, result.output)


def list_rows(found: Review) -> list[int]:
    """Official rows of the suspects, in order."""
    return [item.official_row for item in found.suspects if item.official_row is not None]


def test_flipped_labels_are_found_first(checkout: Checkout) -> None:
    rows = list_rows(checkout.found)
    assert np.isin(checkout.flipped, rows[: 2 * FLIPPED]).mean() >= 0.8
    first = checkout.found.suspects[0]
    assert first.suggested != first.given
    assert first.score < 0.05
    assert first.reason.startswith(f"predicted {checkout.found.classes[first.suggested]}: ")
    assert checkout.ids["train"][rows[0]] == first.id


def test_duplicates_come_first_and_those_with_two_labels_before_all(checkout: Checkout) -> None:
    """An exact copy with another label; a near copy with the same one; a near copy of a test image."""
    copy, near, of_test = checkout.ids["train"][-3:]
    pairs = [(pair.first.id, pair.second.id) for pair in checkout.found.duplicates]
    first = checkout.found.duplicates[0]
    assert first.second.id == copy
    assert first.difference == 0
    assert first.first.label != first.second.label
    assert (of_test, checkout.ids["test"][0]) in pairs
    assert near in {second for _, second in pairs}
    items = checkout.found.items
    assert {item.id for item in items[:2]} == {first.first.id, copy}
    assert items[1].official_row is None
    assert "exact copy of row" in next(item.reason for item in items if item.id == copy)
    assert "of the test images" in next(item.reason for item in items if item.id == of_test)
    assert all(item.twins for item in items[: len(items) - len(checkout.found.suspects)])
    assert len({item.id for item in items}) == len(items)
    assert {item.split for item in items} == {"train"}


def test_the_list_is_the_file_of_the_review_and_an_artifact_of_its_run(checkout: Checkout) -> None:
    assert tuple(read_items(review_directory("labels") / ITEMS)) == checkout.found.items
    client = open_store(locate(checkout.root))
    experiment = client.get_experiment_by_name("tiny")
    (run,) = client.search_runs([experiment.experiment_id])  # the second call found the same data and settings
    assert run.info.status == "FINISHED"
    assert run.info.run_id == checkout.found.run_id
    assert run.data.metrics["out_of_fold_accuracy"] == pytest.approx(checkout.found.accuracy)
    assert run.data.params["folds"] == "3"
    assert [entry.path for entry in client.list_artifacts(run.info.run_id, "review")] == ["review/items.json"]


def test_the_terminal_shows_what_to_look_at(checkout: Checkout) -> None:
    first = checkout.found.suspects[0]
    line = next(line for line in checkout.output.splitlines() if line.strip().startswith(f"{first.official_row} "))
    assert checkout.found.classes[first.given] in line
    assert "fold 3 of 3: accuracy" in checkout.output
    assert f"{len(checkout.found.duplicates)} pairs of duplicates" in checkout.output
    assert "confused classes" in checkout.output


def test_a_finished_fold_is_kept_and_other_data_makes_new_ones(checkout: Checkout) -> None:
    directory = review_directory("labels") / "folds"
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert len(before) == 3
    lost = sorted(before)[1]
    lost.unlink()  # as if the process had been killed in the second fold
    result = CliRunner().invoke(app, ["review", "labels", "--folds", "3", "--json"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["run_id"] == checkout.found.run_id
    items = content["items"]
    assert [item["official_row"] for item in items] == [item.official_row for item in checkout.found.items]
    assert items[0]["given"] in checkout.found.classes
    after = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert after.keys() == before.keys()
    assert {path for path in before if after[path] != before[path]} == {lost}


def test_the_test_images_are_reviewed_on_request(checkout: Checkout) -> None:
    found = find_wrong_labels("both", 2, lambda progress: None, include_test=True)
    rows = [item.official_row for item in found.suspects if item.split == "test"]
    assert np.isin(checkout.flipped_test, rows[:16]).mean() >= 0.75
    assert (
        np.isin(checkout.flipped, [item.official_row for item in found.suspects if item.split == "train"]).mean() > 0.8
    )
    assert {item.split for item in found.items} == {"train", "test"}
    assert found.images == 1703


def test_images_that_do_not_fit_into_memory_are_streamed(checkout: Checkout) -> None:
    dataset = table.read_dataset(TABLES["train"])
    chosen = np.arange(1503) % 3 > 0
    held, streamed = (folds._open(dataset, chosen, memory) for memory in (10**9, 0))
    assert held.shape == streamed.shape == (1002, 28, 28)
    for one, other in zip(held.blocks(), streamed.blocks(), strict=True):
        assert (one.images == other.images).all()
        assert (one.labels == other.labels).all()


def test_positions_are_those_before_corrections(checkout: Checkout) -> None:
    images = read_images("train", windowed=False)
    assert images.official_rows.tolist() == [*range(1500), -1, -1, -1]
    removed = [Removed("train", "a-0", 0, table.OFFICIAL, "", row) for row in (0, 7)]
    try:
        write_removed(TABLES["train"].parent, [*removed, Removed("train", "b-0", 0, "spring", "", 1)])
        assert read_images("train", windowed=False).official_rows.tolist()[:6] == [1, 2, 3, 4, 5, 6]
        assert read_images("train", windowed=False).official_row(6) == 8
    finally:
        (TABLES["train"].parent / REMOVED).unlink()
    assert read_images("train", windowed=True).official_row(0) is None


def test_twins_and_groups_share_a_fold() -> None:
    labels = np.tile(np.arange(4), 50)
    groups = np.repeat(np.arange(50), 4)
    divided = folds.divide(labels, groups, 5, seed=1)
    assert all(len(set(divided.fold[groups == group])) == 1 for group in range(50))
    alone = folds.divide(labels, np.arange(200), 5, seed=1)
    counts = np.array([np.bincount(labels[alone.fold == fold], minlength=4) for fold in range(5)])
    assert (counts == 10).all()
    assert (alone.fold == folds.divide(labels, np.arange(200), 5, seed=1).fold).all()
    assert 10 <= alone.chooses_epoch.sum() <= 30


def test_classes_without_images_are_no_obstacle() -> None:
    labels = np.repeat([0, 2], 50)
    probabilities = np.full((100, 4), 0.1)
    probabilities[np.arange(100), labels] = 0.7
    probabilities[3] = [0.02, 0.02, 0.94, 0.02]
    ranking = rank(labels, probabilities)
    assert ranking.flagged.tolist() == [3]
    assert ranking.suggested[3] == 2


def test_a_review_cannot_be_outside_its_directory() -> None:
    for name in ("../other", "", ".hidden", "a/b"):
        with pytest.raises(WorkspaceError, match="cannot be the name of a review"):
            review_directory(name)


def test_without_cleanlab_one_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)  # Python's way to block an import
    with pytest.raises(WorkspaceError, match=r"needs cleanlab\n.*\n.*make extras"):
        find_wrong_labels("labels", 3, lambda progress: None)
