"""Which images a window keeps: the share of each class, the same ones whatever comes later."""

from collections.abc import Iterator

import numpy as np
import pytest

from pipeline.data import tiny, window

Pair = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def own() -> Pair:
    """1,000 images in classes of 190 down to 10."""
    images, labels = tiny.generate(4000, 3)
    counts = [190, 170, 150, 130, 110, 90, 70, 50, 30, 10]
    rows = np.concatenate([np.flatnonzero(labels == label)[:count] for label, count in enumerate(counts)])
    return images[rows], labels[rows]


def chunks(pair: Pair, size: int) -> Iterator[Pair]:
    for start in range(0, len(pair[1]), size):
        yield pair[0][start : start + size], pair[1][start : start + size]


def keep(pair: Pair, thresholds: np.ndarray, size: int = 8192) -> Pair:
    kept = np.concatenate([window.choose(*chunk, thresholds) for chunk in chunks(pair, size)])
    return pair[0][kept], pair[1][kept]


def identities(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.77, 1.0])
def test_each_class_keeps_its_share_of_the_datasets_own(own: Pair, share: float) -> None:
    images, labels = keep(own, window.find_thresholds([own], 10, share))
    counts = np.bincount(own[1], minlength=10)
    assert np.bincount(labels, minlength=10).tolist() == [round(share * count) for count in counts.tolist()]
    kept, order = identities(images), [image.tobytes() for image in own[0]]
    assert [image.tobytes() for image in images] == [one for one in order if one in kept]
    fewest, most = window.kept_range(len(own[1]), 10, share)
    assert fewest <= len(labels) <= most


def test_a_small_share_leaves_an_image_of_each_class(own: Pair) -> None:
    _, labels = keep(own, window.find_thresholds([own], 10, 0.001))
    assert np.bincount(labels, minlength=10).tolist() == [1] * 10


def test_a_class_that_batches_added_keeps_its_share_too(own: Pair) -> None:
    added = own[0], np.full(len(own[1]), 10)
    smaller, larger = (keep(added, window.find_thresholds([own], 11, share))[0] for share in (0.4, 0.5))
    assert 0.45 < len(larger) / len(own[1]) < 0.55
    assert identities(smaller) < identities(larger)
    assert len(keep(added, window.find_thresholds([own], 11, 1.0))[0]) == len(own[1])


def test_a_larger_share_keeps_what_a_smaller_kept(own: Pair) -> None:
    smaller, larger = (keep(own, window.find_thresholds([own], 10, share))[0] for share in (0.3, 0.4))
    assert identities(smaller) < identities(larger)


def test_chunks_make_no_difference(own: Pair) -> None:
    thresholds = window.find_thresholds([own], 10, 0.5)
    assert (window.find_thresholds(chunks(own, 7), 10, 0.5) == thresholds).all()
    assert (keep(own, thresholds, 7)[0] == keep(own, thresholds)[0]).all()


def test_batches_keep_about_the_share_and_copies_stay_together(own: Pair) -> None:
    thresholds = window.find_thresholds([own], 10, 0.5)
    batch = tiny.generate(3000, 4)
    _, labels = keep(batch, thresholds)
    assert 0.42 < len(labels) / 3000 < 0.58
    twice = np.concatenate([own[0], own[0]]), np.concatenate([own[1], own[1]])
    images, _ = keep(twice, thresholds)
    assert len(images) == 2 * len(identities(images)) == 2 * len(keep(own, thresholds)[0])


def test_a_sample_of_everything_has_a_known_size() -> None:
    assert window.kept_range(60_000, 10, 1.0) == (60_000, 60_000)
    assert window.kept_range(60_000, 10, 0.5) == (29_990, 30_010)
    assert window.kept_range(20, 10, 0.1) == (0, 12)
