"""The test images of a class that batches added to a dataset.

The draw of an image is a hash of its pixels, with the same function as in an import. The images of the class whose
draws are below the share of its catalogue entry, `test_fraction`, are test images. Later batches therefore move no
image, and copies of an image are on one side.
"""

import math
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path

import numpy as np

from pipeline.data import table
from pipeline.errors import DataError

CONFIDENCE = 0.99  # that a split gets an image, with the number of images that an error advises


def draw_test(keys: Iterable[str]) -> np.ndarray:
    """Return a uniform number for each key, the SHA-1 of an image or a group, for the test split: uint64 [n]."""
    digests = (blake2b(key.encode("utf-8", "replace"), digest_size=8, person=b"test split").digest() for key in keys)
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def share_of_range(share: float) -> int:
    """Return the highest draw, a uint64, of a share of all possible images."""
    return min(max(math.ceil(share * 2**64) - 1, 0), 2**64 - 1)


def choose_test(images: np.ndarray, labels: np.ndarray, fractions: Mapping[int, float]) -> np.ndarray:
    """Return True for each image of a batch that is a test image: bool [n].

    Args:
        images: uint8 [n, *shape].
        labels: as given, integers [n].
        fractions: the share of each added class, by label.
    """
    is_test = np.zeros(len(labels), bool)
    for label, fraction in fractions.items():
        rows = np.flatnonzero(labels == label)
        if len(rows):
            draws = draw_test(digest.hex() for digest in table.pixel_digests(images[rows]))
            is_test[rows] = draws <= np.uint64(share_of_range(fraction))
    return is_test


def require_images(train: Path, test: Path, fractions: Mapping[int, float]) -> None:
    """Refuse an added class without training images, or without test images.

    Raises:
        DataError: names the class, and how many images it needs.
    """
    if not fractions:
        return
    classes = table.read_dataset(train).classes
    counts = [_count(path, len(classes)) for path in (train, test)]
    for label, fraction in fractions.items():
        found = [int(of_split[label]) for of_split in counts]
        if not all(found):
            raise DataError(
                f"the added class {classes[label]} has too few images for a test split of {fraction:.0%}",
                expected=f"images of it for training and for testing; {advise_images(min(fraction, 1 - fraction))}",
                found=f"{found[0]} for training, {found[1]} for testing",
                remedy="add more images of it, or remove it from its catalogue entry together with its batches",
            )


def advise_images(share: float) -> str:
    """Describe the number of images of which a share almost surely contains at least one."""
    return f"about {math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - share)):,} images are needed"


def _count(path: Path, classes: int) -> np.ndarray:
    labels = [table.label_column(rows, "given") for rows in table.stream_columns(path, ["given"])]
    return np.bincount(np.concatenate(labels), minlength=classes)
