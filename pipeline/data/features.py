"""What each image looks like in a few numbers, measured in one streamed pass: the table that validation looks at.

Everything is an integer per image, so that sums over images are exact and the same on any processor; means, shares
and centres are derived from them.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from hashlib import sha1
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data import table
from pipeline.errors import DataError

WHITE = 255

Chunk = tuple[np.ndarray, np.ndarray, pa.Array]  # images uint8 [n, height, width], labels uint8 [n], sources string [n]


@dataclass(frozen=True)
class Features:
    """Features of a table's images, in its order: arrays [n], one value per image."""

    pixels: int  # of one image: height * width
    sources: tuple[str, ...]
    source: np.ndarray  # uint16, an index into `sources`
    label: np.ndarray  # uint8
    pixel_sum: np.ndarray  # int64
    square_sum: np.ndarray  # int64, of the squared pixels
    row_moment: np.ndarray  # int64, sum over the pixels of value * row
    column_moment: np.ndarray  # int64, likewise
    darkest: np.ndarray  # uint8
    brightest: np.ndarray  # uint8
    ink: np.ndarray  # int32, pixels above 0
    white: np.ndarray  # int32, pixels at 255
    digest: np.ndarray  # int64, the first 8 bytes of the pixels' SHA-1: among 10 million images, none agree by chance
    mirrored: np.ndarray  # int64, likewise of the image mirrored left to right

    def __len__(self) -> int:
        return len(self.label)

    @property
    def images_by_source(self) -> dict[str, int]:
        """Number of images that came from each source."""
        return dict(zip(self.sources, np.bincount(self.source, minlength=len(self.sources)).tolist(), strict=True))

    @property
    def mean(self) -> np.ndarray:
        """Mean pixel of each image, float64 [n], 0 to 1."""
        return self.pixel_sum / (self.pixels * WHITE)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each image's pixels, float64 [n], 0 to 0.5."""
        return np.sqrt(self.pixels * self.square_sum - self.pixel_sum**2) / (self.pixels * WHITE)

    @property
    def centre(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of each image's centre of mass, float64 [n], in pixels; NaN where there is no mass."""
        with np.errstate(invalid="ignore"):
            return self.row_moment / self.pixel_sum, self.column_moment / self.pixel_sum


def by_source(features: Features) -> dict[str, Features]:
    """The features of each source's images."""
    columns = [column.name for column in fields(Features) if column.name not in ("pixels", "sources")]
    return {
        name: replace(features, **{column: getattr(features, column)[features.source == number] for column in columns})
        for number, name in enumerate(features.sources)
    }


def read_features(path: Path) -> Features:
    """Measure a table's images, one row group in memory at a time.

    Raises:
        DataError: the file is missing, damaged, not one of ours, or has no images.
    """
    features = measure((rows.images, rows.labels, rows.sources) for rows in table.stream(path))
    if features is None:
        raise DataError(f"{path} has no images", remedy="complete the dataset")
    return features


def measure(chunks: Iterable[Chunk]) -> Features | None:
    """Measure images, a chunk in memory at a time; None when there are none."""
    sources: dict[str, int] = {}
    parts, pixels = [], 0
    for images, labels, named in chunks:
        pixels = images.shape[1] * images.shape[2]
        parts.append(_measure(images, labels, named, sources))
    if not parts:
        return None
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Features(pixels=pixels, sources=tuple(sources), **columns)


def overall_mean(features: Features) -> float:
    """Mean of all pixels of all images, 0 to 1."""
    return int(features.pixel_sum.sum()) / (len(features) * features.pixels * WHITE)


def overall_std(features: Features) -> float:
    """Standard deviation of all pixels of all images, 0 to 0.5."""
    values = len(features) * features.pixels
    total, squares = int(features.pixel_sum.sum()), int(features.square_sum.sum())
    return math.sqrt((values * squares - total**2) / (values * WHITE) ** 2)


def find_conflicts(digests: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which images also occur with another label: bool [n]. digests: int64 [n]; labels: uint8 [n]."""
    different, group = np.unique(digests, return_inverse=True)
    lowest, highest = np.full(len(different), 255, np.uint8), np.zeros(len(different), np.uint8)
    np.minimum.at(lowest, group, labels)
    np.maximum.at(highest, group, labels)
    return (lowest != highest)[group]


def find_mirrored(features: Features, digests: np.ndarray) -> np.ndarray:
    """Which images have their mirror image among those of the digests: bool [n].

    An image that is its own mirror image has none: its copies are duplicates.
    """
    return np.isin(features.mirrored, digests) & (features.mirrored != features.digest)


def class_separation(features: Features, reference: Features) -> float:
    """How well simple features tell the classes apart: what shuffled labels bring down to 0.

    For the amount of ink, the mean pixel and the centre of mass: the share of the feature's variance that the classes'
    means explain, the means taken from `reference` (with the reference itself this is the correlation ratio, eta
    squared). Of those, the largest: 1 when the class determines the feature, 0 or below when labels say nothing about
    the images, or something else than in the reference.
    """
    pairs = zip(_class_features(features), _class_features(reference), strict=True)
    return max(_explained(*own, *others) for own, others in pairs)


def _measure(
    images: np.ndarray, labels: np.ndarray, origins: pa.Array, sources: dict[str, int]
) -> Mapping[str, np.ndarray]:
    """The arrays of `Features` for some rows. `sources` numbers the names seen so far, and gains those that are new."""
    count, height, width = images.shape
    flat = images.reshape(count, height * width)
    named = origins.dictionary_encode()
    numbers = [sources.setdefault(name, len(sources)) for name in named.dictionary.to_pylist()]
    return {
        "source": np.array(numbers, np.uint16)[named.indices.to_numpy()],
        "label": labels,
        "pixel_sum": flat.sum(axis=1, dtype=np.int64),
        "square_sum": np.square(flat, dtype=np.uint16).sum(axis=1, dtype=np.int64),
        "row_moment": images.sum(axis=2, dtype=np.int64) @ np.arange(height),
        "column_moment": images.sum(axis=1, dtype=np.int64) @ np.arange(width),
        "darkest": flat.min(axis=1),
        "brightest": flat.max(axis=1),
        "ink": (flat > 0).sum(axis=1, dtype=np.int32),
        "white": (flat == WHITE).sum(axis=1, dtype=np.int32),
        "digest": _digests(flat),
        "mirrored": _digests(images[:, :, ::-1].reshape(flat.shape)),
    }


def _digests(flat: np.ndarray) -> np.ndarray:
    images = flat.view(f"V{flat.shape[1]}").ravel().tolist()  # as bytes objects: twice as fast as hashing array rows
    digests = (sha1(image, usedforsecurity=False).digest()[:8] for image in images)
    return np.frombuffer(b"".join(digests), ">i8").astype(np.int64)


def _class_features(features: Features) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Labels, and values of each feature that may tell classes apart, of the images that have it.

    Values are int64, in 1/256 of a grey level or a pixel, so that their sums are exact.
    """
    ink = features.ink * (WHITE / features.pixels)
    for values in (ink, features.mean * WHITE, *features.centre):
        there = np.isfinite(values)
        yield features.label[there], np.rint(values[there] * 256).astype(np.int64)


def _explained(
    labels: np.ndarray, values: np.ndarray, reference_labels: np.ndarray, reference_values: np.ndarray
) -> float:
    """Coefficient of determination of predicting each value by the mean of its class in the reference."""
    total = int((values**2).sum()) - int(values.sum()) ** 2 / max(len(values), 1)
    residual = 0.0
    for label in np.unique(labels):
        members, reference = values[labels == label], reference_values[reference_labels == label]
        mean = int(reference.sum()) / max(len(reference), 1)
        residual += int((members**2).sum()) - 2 * mean * int(members.sum()) + len(members) * mean**2
    return 1 - residual / total if total > 0 else 0.0
