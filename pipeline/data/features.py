"""Features of images for validation and drift: brightness, centre of mass, digests. Measured in one streamed pass.

Each is an integer for each image, so that sums over images are exact and equal on every processor. Means, shares and
centres are computed from them.
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

Chunk = tuple[
    np.ndarray, np.ndarray, pa.Array
]  # images uint8 [n, height, width], labels uint16 [n], sources string [n]


@dataclass(frozen=True)
class Features:
    """Features of a table's images, in its order: arrays [n], one value per image."""

    pixels: int  # number in an image: height * width
    sources: tuple[str, ...]
    source: np.ndarray  # uint16, an index into `sources`
    label: np.ndarray  # uint16
    pixel_sum: np.ndarray  # int64
    square_sum: np.ndarray  # int64, of the squared pixels
    row_moment: np.ndarray  # int64, sum over the pixels of value * row
    column_moment: np.ndarray  # int64, sum of value * column
    darkest: np.ndarray  # uint8
    brightest: np.ndarray  # uint8
    ink: np.ndarray  # int32, pixels above 0
    white: np.ndarray  # int32, pixels at 255
    digest: np.ndarray  # int64, the first 8 bytes of the pixels' SHA-1: among 10 million images, none agree by chance
    mirrored: np.ndarray  # int64, the same for the image mirrored left to right

    def __len__(self) -> int:
        return len(self.label)

    @property
    def images_by_source(self) -> dict[str, int]:
        """Number of images from each source."""
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
        """Row and column of each image's centre of mass, float64 [n], in pixels; NaN for a black image."""
        with np.errstate(invalid="ignore"):
            return self.row_moment / self.pixel_sum, self.column_moment / self.pixel_sum


def by_source(features: Features) -> dict[str, Features]:
    """Divide features by source."""
    columns = [column.name for column in fields(Features) if column.name not in ("pixels", "sources")]
    return {
        name: replace(features, **{column: getattr(features, column)[features.source == number] for column in columns})
        for number, name in enumerate(features.sources)
    }


def read_features(path: Path) -> Features:
    """Measure a table's images, one row group in memory at a time.

    Raises:
        DataError: the file is missing, damaged, not a table of this pipeline, or has no images.
    """
    features = measure((rows.images, rows.labels, rows.sources) for rows in table.stream(path))
    if features is None:
        raise DataError(f"{path} has no images", remedy="complete the dataset")
    return features


def measure(chunks: Iterable[Chunk]) -> Features | None:
    """Measure images in chunks. Returns None if there are none."""
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
    """Find images that also occur with another label: bool [n]. digests: int64 [n]; labels: uint16 [n]."""
    different, group = np.unique(digests, return_inverse=True)
    lowest, highest = np.full(len(different), 2**16 - 1, np.uint16), np.zeros(len(different), np.uint16)
    np.minimum.at(lowest, group, labels)
    np.maximum.at(highest, group, labels)
    return (lowest != highest)[group]


def find_mirrored(features: Features, digests: np.ndarray) -> np.ndarray:
    """Find images whose mirror image is among the given digests: bool [n].

    Symmetric images do not count: their copies are duplicates.
    """
    return np.isin(features.mirrored, digests) & (features.mirrored != features.digest)


def class_separation(features: Features, reference: Features) -> float:
    """Measure how well simple features separate the classes. Shuffled labels give 0.

    For the number of pixels above 0, the mean pixel and the centre of mass, this is the share of the feature's variance
    that the means of the classes in `reference` explain (for the reference itself: the correlation ratio, eta squared).
    Returns the largest share: 1 if the class determines the feature, 0 or less if the labels do not describe the
    images, or describe them differently than in the reference.
    """
    pairs = zip(_class_features(features), _class_features(reference), strict=True)
    return max(_explained(*own, *others) for own, others in pairs)


def _measure(
    images: np.ndarray, labels: np.ndarray, origins: pa.Array, sources: dict[str, int]
) -> Mapping[str, np.ndarray]:
    """Compute the arrays of `Features` for some rows. Adds new names to `sources`, which numbers them."""
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
    """Yield labels and values of each feature that may separate classes, for the images where it is defined.

    Values are int64 in units of 1/256 grey level or pixel, so that their sums are exact.
    """
    ink = features.ink * (WHITE / features.pixels)
    for values in (ink, features.mean * WHITE, *features.centre):
        defined = np.isfinite(values)
        yield features.label[defined], np.rint(values[defined] * 256).astype(np.int64)


def _explained(
    labels: np.ndarray, values: np.ndarray, reference_labels: np.ndarray, reference_values: np.ndarray
) -> float:
    """Return the coefficient of determination if each value is predicted by the mean of its class in the reference."""
    total = int((values**2).sum()) - int(values.sum()) ** 2 / max(len(values), 1)
    residual = 0.0
    for label in np.unique(labels):
        members, reference = values[labels == label], reference_values[reference_labels == label]
        mean = int(reference.sum()) / max(len(reference), 1)
        residual += int((members**2).sum()) - 2 * mean * int(members.sum()) + len(members) * mean**2
    return 1 - residual / total if total > 0 else 0.0
