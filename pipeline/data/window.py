"""A window over the training images: the newest batches whole, and of everything older the same share of each class.

An image draws a number from its pixels alone. In each class, those of the dataset's own images with the lowest draws
are kept, as many as the share asks for; the highest of these draws is the threshold of the class, against which older
batches are held as well. So the sample is the same every time, data added later changes none of it, and copies of an
image are kept or left together. The draws are not those of the split: a window does not choose who validates.
"""

import math
from collections.abc import Iterable, Iterator
from hashlib import blake2b

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]  # images uint8 [n, height, width], labels uint8 [n]


def find_thresholds(pairs: Iterable[Pair], classes: int, share: float) -> np.ndarray:
    """The highest draw of each class that is still kept: uint64 [classes].

    A class keeps one image at least. One without images keeps nothing older: the split refuses such data.

    Args:
        pairs: the dataset's own images and labels, a chunk in memory at a time.
        share: to be kept of each class, above 0 and up to 1.
    """
    drawn = [(draw_numbers(images), labels) for images, labels in pairs]
    numbers, labels = (np.concatenate(column) for column in zip(*drawn, strict=True))
    thresholds = np.zeros(classes, np.uint64)
    for label in np.unique(labels):
        members = numbers[labels == label]
        last = max(1, round(share * len(members))) - 1
        thresholds[label] = np.partition(members, last)[last]
    return thresholds


def sample(pairs: Iterable[Pair], thresholds: np.ndarray) -> Iterator[Pair]:
    """Those of the images that are kept, a chunk in memory at a time. thresholds: as `find_thresholds` has found."""
    for images, labels in pairs:
        kept = draw_numbers(images) <= thresholds[labels]
        if kept.any():
            yield images[kept], labels[kept]


def draw_numbers(images: np.ndarray) -> np.ndarray:
    """A number for each image, the same for every copy of it: uint64 [n], uniform. images: uint8 [n, height, width]."""
    digests = (blake2b(image, digest_size=8, person=b"window").digest() for image in np.ascontiguousarray(images))
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def kept_range(images: int, classes: int, share: float) -> tuple[int, int]:
    """The fewest and the most that are kept of so many images: each class rounds its share once."""
    if share == 1:
        return images, images
    return max(0, math.floor(share * images) - classes), min(images, math.ceil(share * images) + classes)
