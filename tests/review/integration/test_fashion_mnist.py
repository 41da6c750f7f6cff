"""The published wrong labels of Fashion-MNIST, and labels that were made wrong."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import idx
from pipeline.data.catalog import load_entry
from pipeline.data.dataset_files import fetch
from pipeline.review.labels import Review, find_wrong_labels
from tests.integration.recorded import empty_store
from tests.review.integration.test_labels import list_rows, make_checkout
from tests.review.tables import Labelled, confuse_labels, flip_labels, write_tables

__all__ = ["empty_store"]  # a fixture
pytestmark = pytest.mark.faults

PUBLISHED = (16691, 33982, 40513, 42018, 28264, 45592)  # rows whose label several authors call wrong
NEAR_DUPLICATES = ((10205, 23412), (11932, 51488))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[tuple[Labelled, Labelled]]:
    """The training and test images, in a checkout that is the current directory."""
    root = tmp_path_factory.mktemp("fashion") / "project"
    make_checkout(root, empty_store, "fashion-mnist", epochs=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name in ("local", "raw"):
            Path("data", name).mkdir()
        entry = load_entry("fashion-mnist")
        fetched = fetch(entry, Path("data/local"), root / "data/raw")
        train, test = (
            tuple(np.concatenate(column) for column in zip(*idx.stream_pair(*files, entry.dataset), strict=True))
            for files in (fetched.train, fetched.test)
        )
        yield train, test  # type: ignore[misc]


def review(data: tuple[Labelled, Labelled], labels: np.ndarray, name: str, folds: int = 3) -> Review:
    (images, _), test = data
    write_tables(Path(), load_entry("fashion-mnist").dataset, (images, labels), test)
    return find_wrong_labels(name, folds, lambda progress: None)


def test_the_published_wrong_labels_and_near_duplicates_are_found(data: tuple[Labelled, Labelled]) -> None:
    found = review(data, data[0][1], "published", folds=5)
    rows = list_rows(found)
    assert set(PUBLISHED) <= set(rows)
    assert len(set(PUBLISHED) & set(rows[:250])) >= 4
    pairs = [(pair.first.official_row, pair.second.official_row) for pair in found.duplicates]
    assert set(NEAR_DUPLICATES) <= set(pairs[:15])
    assert found.duplicates[0].difference <= found.duplicates[-1].difference


def test_300_flipped_labels_are_among_the_first_600(data: tuple[Labelled, Labelled]) -> None:
    labels, flipped = flip_labels(data[0][1], 300, 10, seed=7)
    rows = list_rows(review(data, labels, "flipped"))
    assert np.isin(flipped, rows[:600]).mean() >= 0.8


def test_of_confused_pairs_fewer_are_among_the_first_600(data: tuple[Labelled, Labelled]) -> None:
    """3 % of the shirts labelled T-shirt/top: benchmarks/review.md has the measured shares."""
    labels, confused = confuse_labels(data[0][1], given=0, actual=6, share=0.03, seed=7)
    rows = list_rows(review(data, labels, "confused"))
    assert np.isin(confused, rows[:600]).mean() >= 0.3
    assert np.isin(confused, rows).mean() >= 0.6
