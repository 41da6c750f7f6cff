"""The generated dataset."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import idx, tiny
from pipeline.data.catalog import load_entry
from tests.conftest import REPOSITORY

ENTRY = load_entry("tiny", REPOSITORY / "data/catalog")

Split = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    tiny.write(directory, ENTRY.train, ENTRY.test)
    return directory


@pytest.fixture(scope="module")
def train(directory: Path) -> Split:
    ((images, labels),) = idx.stream_pair(directory / tiny.FILES[0], directory / tiny.FILES[1], ENTRY.dataset)
    return images, labels


@pytest.fixture(scope="module")
def test(directory: Path) -> Split:
    ((images, labels),) = idx.stream_pair(directory / tiny.FILES[2], directory / tiny.FILES[3], ENTRY.dataset)
    return images, labels


def digest(split: Split) -> str:
    return hashlib.sha256(b"".join(values.astype(np.uint8).tobytes() for values in split)).hexdigest()


def test_the_bytes_are_the_same_on_every_machine(train: Split, test: Split) -> None:
    assert digest(train) == "d9fcf55f151c446e4d1e94d7cbf764e3de23e1ba259af7945b74543c5f53363c"
    assert digest(test) == "1066bb5ea4b1fa0238273f8ddae41d57dd36df1560103f3be3ce002fb4645eea"


def test_the_classes_are_balanced_and_mixed(train: Split, test: Split) -> None:
    assert np.bincount(train[1]).tolist() == [200] * 10
    assert np.bincount(test[1]).tolist() == [50] * 10
    assert len(set(train[1][:50])) == 10


def test_no_image_or_mirror_image_occurs_twice(train: Split, test: Split) -> None:
    images = np.concatenate([train[0], test[0]])
    both = np.concatenate([images, images[:, :, ::-1]])
    assert len({image.tobytes() for image in both}) == len(both)


def test_the_catalogue_has_its_statistics(train: Split) -> None:
    assert train[0].shape == (ENTRY.train, ENTRY.height, ENTRY.width)
    assert (train[0].dtype, train[1].dtype) == (np.uint8, np.uint16)
    assert round(train[0].mean() / 255, 4) == ENTRY.mean
    assert round(train[0].std() / 255, 4) == ENTRY.std


def test_the_classes_can_be_told_apart_but_not_by_their_mean_image_alone(train: Split, test: Split) -> None:
    flat, unknown = (images.reshape(len(images), -1) / 255 for images in (train[0], test[0]))
    means = np.stack([flat[train[1] == label].mean(axis=0) for label in range(10)])
    nearest = ((unknown[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert 0.6 < (nearest == test[1]).mean() < 0.95
