"""A window over the training images: all of the newest batches, and a sample of each class from everything older.

The draw of an image is a hash of its pixels. In each class, the dataset's own images with the lowest draws are kept, as
many as the share requires; the highest of these draws is the threshold of the class, which also applies to older
batches. The sample is therefore the same every time, later data does not change it, and copies of an image are kept or
dropped together. The draws are independent of those of the split.
"""

import math
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from pipeline.data.added_classes import share_of_range

Pair = tuple[np.ndarray, np.ndarray]  # images uint8 [n, *shape], labels uint16 [n]


def find_thresholds(pairs: Iterable[Pair], classes: int, share: float) -> np.ndarray:
    """Find the highest draw of each class that is kept: uint64 [classes].

    At least one image of each class is kept. The threshold of a class that batches added, which has no own images, is
    the share of all possible draws.

    Args:
        pairs: the dataset's own images and labels, in chunks.
        share: the share of each class to keep, above 0 and up to 1.
    """
    drawn = [(draw_numbers(images), labels) for images, labels in pairs]
    numbers, labels = (np.concatenate(column) for column in zip(*drawn, strict=True))
    thresholds = np.full(classes, share_of_range(share), np.uint64)
    for label in np.unique(labels):
        members = numbers[labels == label]
        last = max(1, round(share * len(members))) - 1
        thresholds[label] = np.partition(members, last)[last]
    return thresholds


def choose(images: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return True for each image that is kept: bool [n]. thresholds: from `find_thresholds`."""
    return draw_numbers(images) <= thresholds[labels]


def draw_numbers(images: np.ndarray) -> np.ndarray:
    """Return a uniform number for each image, equal for its copies: uint64 [n]. images: uint8 [n, *shape]."""
    digests = (blake2b(image, digest_size=8, person=b"window").digest() for image in np.ascontiguousarray(images))
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def kept_range(images: int, classes: int, share: float) -> tuple[int, int]:
    """Return the minimum and maximum number of kept images. The share of each class is rounded once."""
    if share == 1:
        return images, images
    return max(0, math.floor(share * images) - classes), min(images, math.ceil(share * images) + classes)
