"""Per-image features against the plain way of computing them, and what is derived from several images."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import table
from pipeline.data.features import (
    WHITE,
    Features,
    by_source,
    class_separation,
    find_conflicts,
    find_mirrored,
    overall_mean,
    overall_std,
    read_features,
)
from pipeline.data.features import measure as measure_images
from pipeline.errors import DataError
from tests.own_data import draw_parts

HEIGHT, WIDTH, CLASSES = 6, 5, 4
DATASET = table.Dataset("shapes", HEIGHT, WIDTH, tuple("abcd"), tuple("가나다라"), flip=True)


def measure(path: Path, images: np.ndarray, labels: np.ndarray, sources: list[str] | None = None) -> Features:
    """The features of images, read back from a table of them."""
    with table.writer(path / "table.parquet", DATASET) as rows:
        ids = [f"{digest.hex()}-0" for digest in table.pixel_digests(images)]
        rows.write(images, labels, table.strings(ids), table.strings(sources or [table.OFFICIAL] * len(labels)))
    return read_features(path / "table.parquet")


def draw_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    images = generator.integers(0, 256, (count, HEIGHT, WIDTH), dtype=np.uint8)
    images[generator.random(images.shape) < 0.3] = 0
    return images, generator.integers(0, CLASSES, count).astype(np.uint8)


def first_64_bits(image: np.ndarray) -> int:
    return int.from_bytes(hashlib.sha1(image.tobytes()).digest()[:8], "big", signed=True)


def test_features_are_what_numpy_computes_image_by_image(tmp_path: Path) -> None:
    images, labels = draw_images(table.ROW_GROUP + 100)  # more than one row group
    features = measure(tmp_path, images, labels)
    assert len(features) == len(images)
    assert (features.label == labels).all()
    for row in (0, 1, table.ROW_GROUP - 1, table.ROW_GROUP, len(images) - 1):
        image, wide = images[row], images[row].astype(float)
        assert features.mean[row] == pytest.approx(wide.mean() / 255)
        assert features.std[row] == pytest.approx(wide.std() / 255)
        assert (features.darkest[row], features.brightest[row]) == (image.min(), image.max())
        assert (features.ink[row], features.white[row]) == ((image > 0).sum(), (image == 255).sum())
        centre = [float((wide * position).sum() / wide.sum()) for position in np.indices(image.shape)]
        assert [values[row] for values in features.centre] == pytest.approx(centre)
        assert features.digest[row] == first_64_bits(image)
        assert features.mirrored[row] == first_64_bits(image[:, ::-1])
    assert overall_mean(features) == pytest.approx(images.mean() / 255)
    assert overall_std(features) == pytest.approx(images.std() / 255)


def test_features_in_colour_are_what_numpy_computes_image_by_image() -> None:
    generator = np.random.default_rng(4)
    images = generator.integers(0, 256, (50, HEIGHT, WIDTH, 3), dtype=np.uint8)
    images[generator.random(images.shape[:3]) < 0.3] = 0
    images[generator.random(images.shape[:3]) < 0.1] = WHITE
    features = measure_images([(images, np.arange(50) % CLASSES, table.strings(["official"] * 50))])
    assert features
    for row in (0, 49):
        image, wide = images[row], images[row].astype(float)
        assert features.mean[row] == pytest.approx(wide.mean() / 255)
        assert features.std[row] == pytest.approx(wide.std() / 255)
        assert (features.darkest[row], features.brightest[row]) == (image.min(), image.max())
        assert features.ink[row] == (image.max(axis=2) > 0).sum()
        assert features.white[row] == (image.min(axis=2) == WHITE).sum()
        centre = [float((wide.sum(axis=2) * place).sum() / wide.sum()) for place in np.indices(image.shape[:2])]
        assert [values[row] for values in features.centre] == pytest.approx(centre)
        red, green, blue = wide.mean(axis=(0, 1)) / 255
        axes = {name: values[row] for name, values in features.opponents.items()}
        assert axes == {
            "red_green": pytest.approx(red - green),
            "yellow_blue": pytest.approx((red + green) / 2 - blue),
        }
        assert features.mirrored[row] == first_64_bits(np.ascontiguousarray(image[:, ::-1]))
    assert overall_mean(features) == pytest.approx(images.mean() / 255)
    assert overall_std(features) == pytest.approx(images.std() / 255)
    assert {name: len(part) for name, part in by_source(features).items()} == {"official": 50}


def test_sources_keep_one_number_across_row_groups(tmp_path: Path) -> None:
    images, labels = draw_images(table.ROW_GROUP + 3)
    sources = [table.OFFICIAL] * table.ROW_GROUP + ["spring", table.OFFICIAL, "spring"]
    features = measure(tmp_path, images, labels, sources)
    assert [features.sources[number] for number in features.source] == sources
    assert features.images_by_source == {table.OFFICIAL: table.ROW_GROUP + 1, "spring": 2}


def test_an_image_without_ink_has_no_centre(tmp_path: Path) -> None:
    features = measure(tmp_path, np.zeros((1, HEIGHT, WIDTH), np.uint8), np.zeros(1, np.uint8))
    assert np.isnan(features.centre).all()
    assert features.std == 0


def test_a_table_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no images"):
        measure(tmp_path, np.zeros((0, HEIGHT, WIDTH), np.uint8), np.zeros(0, np.uint8))


def test_conflicts_are_copies_with_another_label() -> None:
    digests = np.array([7, 7, -5, -5, 9], np.int64)
    labels = np.array([1, 2, 3, 3, 0], np.uint8)
    assert find_conflicts(digests, labels).tolist() == [True, True, False, False, False]


def test_mirror_images_are_found_and_symmetric_ones_left_alone(tmp_path: Path) -> None:
    images, _ = draw_images(4)
    images[1] = images[0][:, ::-1]
    images[2] = np.maximum(images[2], images[2][:, ::-1])
    features = measure(tmp_path, images, np.zeros(4, np.uint8))
    assert find_mirrored(features, features.digest).tolist() == [True, True, False, False]


def test_classes_of_equal_brightness_are_separated_by_their_colour() -> None:
    images, labels = draw_parts(300, 0)
    images[..., 0], images[..., 1] = 230, np.where(labels == 0, 230, 20)[:, None, None]
    images[..., 2] = 250 - images[..., 1]
    features = measure_images([(images, labels, table.strings(["official"] * 300))])
    assert features
    assert class_separation(features, features) > 0.9
    assert class_separation(replace(features, red_sum=None), replace(features, red_sum=None)) < 0.1


class TestClassSeparation:
    @pytest.fixture
    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """Images whose class is the row of their one bright line, give or take a row."""
        generator = np.random.default_rng(0)
        labels = generator.integers(0, CLASSES, 800).astype(np.uint8)
        images = np.zeros((800, HEIGHT, WIDTH), np.uint8)
        images[np.arange(800), labels + generator.integers(0, 2, 800)] = 200
        return images, labels

    def test_is_the_share_of_variance_between_classes(
        self, tmp_path: Path, images: tuple[np.ndarray, np.ndarray]
    ) -> None:
        pixels, labels = images
        features = measure(tmp_path, pixels, labels)
        row = features.centre[0]
        within = sum(((row[labels == label] - row[labels == label].mean()) ** 2).sum() for label in range(CLASSES))
        expected = 1 - within / ((row - row.mean()) ** 2).sum()
        assert expected > 0.5
        assert class_separation(features, features) == pytest.approx(expected, abs=1e-4)

    def test_vanishes_when_labels_are_shuffled(self, tmp_path: Path, images: tuple[np.ndarray, np.ndarray]) -> None:
        pixels, labels = images
        shuffled = measure(tmp_path, pixels, np.random.default_rng(1).permutation(labels))
        assert class_separation(shuffled, shuffled) < 0.02

    def test_vanishes_when_labels_mean_something_else_than_in_the_reference(
        self, tmp_path: Path, images: tuple[np.ndarray, np.ndarray]
    ) -> None:
        pixels, labels = images
        features = measure(tmp_path, pixels, labels)
        renamed = measure(tmp_path, pixels, (labels + 1) % CLASSES)
        assert class_separation(renamed, renamed) > 0.5
        assert class_separation(renamed, features) < 0.02
