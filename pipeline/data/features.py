"""Features of images for validation and drift: brightness, colour, centre of mass, digests. One streamed pass.

Each is an integer for each image, so that sums over images are exact and equal on every processor. Means, shares and
centres are computed from them.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha1
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data import table
from pipeline.errors import DataError
from pipeline.partitions import map_partitions

WHITE = 255
CHANNEL_SUMS = ("red_sum", "green_sum")  # the blue one is the rest of `pixel_sum`

Chunk = tuple[np.ndarray, np.ndarray, pa.Array]  # images uint8 [n, *shape], labels uint16 [n], sources string [n]
Measured = tuple[tuple[int, ...], dict[str, np.ndarray]]  # shape of the images, and arrays [n] of `Features` by name


@dataclass(frozen=True)
class Features:
    """Features of a table's images, in its order: arrays [n], one value per image."""

    pixels: int  # number in an image: height * width
    channels: int  # 1: grey; 3: red, green and blue, whose values are summed unless stated otherwise
    sources: tuple[str, ...]
    source: np.ndarray  # uint16, an index into `sources`
    label: np.ndarray  # uint16
    pixel_sum: np.ndarray  # uint32, or int64 for large images, like all sums
    square_sum: np.ndarray  # of the squared pixels
    row_moment: np.ndarray  # sum over the pixels of value * row
    column_moment: np.ndarray  # sum of value * column
    darkest: np.ndarray  # uint8
    brightest: np.ndarray  # uint8
    ink: np.ndarray  # int32, pixels above 0; in colour, in any channel
    white: np.ndarray  # int32, pixels at 255; in colour, in all channels
    digest: np.ndarray  # int64, the first 8 bytes of the pixels' SHA-1: among 10 million images, none agree by chance
    mirrored: np.ndarray  # int64, the same for the image mirrored left to right
    red_sum: np.ndarray | None = None  # of the red values; None if grey, as the next
    green_sum: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.label)

    @property
    def images_by_source(self) -> dict[str, int]:
        """Number of images from each source."""
        return dict(zip(self.sources, np.bincount(self.source, minlength=len(self.sources)).tolist(), strict=True))

    @property
    def values(self) -> int:
        """Number of values in an image: pixels * channels."""
        return self.pixels * self.channels

    @property
    def opponents(self) -> dict[str, np.ndarray]:
        """Mean colour of each image on the two axes of opponent colours, float64 [n], -1 to 1; empty if grey.

        `red_green` is red less green, `yellow_blue` the mean of red and green less blue. Grey images have 0 on both.
        """
        if self.red_sum is None or self.green_sum is None:
            return {}
        red, green, total = (sums.astype(np.int64) for sums in (self.red_sum, self.green_sum, self.pixel_sum))
        blue, scale = total - red - green, self.pixels * WHITE
        return {"red_green": (red - green) / scale, "yellow_blue": ((red + green) / 2 - blue) / scale}

    @property
    def mean(self) -> np.ndarray:
        """Mean value of each image's pixels, float64 [n], 0 to 1."""
        return self.pixel_sum / (self.values * WHITE)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each image's pixels, float64 [n], 0 to 0.5."""
        variance = self.square_sum.astype(np.int64)
        variance *= self.values
        variance -= self.pixel_sum.astype(np.int64) ** 2
        return np.sqrt(variance) / (self.values * WHITE)

    @property
    def centre(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of each image's centre of mass, float64 [n], in pixels; NaN for a black image."""
        with np.errstate(invalid="ignore"):
            return self.row_moment / self.pixel_sum, self.column_moment / self.pixel_sum


def by_source(features: Features) -> dict[str, Features]:
    """Divide features by source."""
    columns = {name: values for name, values in vars(features).items() if isinstance(values, np.ndarray)}
    return {
        name: replace(features, **{column: values[features.source == number] for column, values in columns.items()})
        for number, name in enumerate(features.sources)
    }


def read_features(path: Path) -> Features:
    """Measure a table's images, one row group in memory at a time.

    Raises:
        DataError: the file is missing, damaged, not a table of this pipeline, or has no images.
    """
    sizes = table.RowGroups(path).sizes
    partitions = ((str(path.absolute()), group) for group in range(len(sizes)))
    # Without a cluster, one process: several would take more memory, and save less time than they need to start.
    measured = map_partitions(measure_row_group, partitions, workers=1)
    sources = (rows.column("source").combine_chunks() for rows in table.stream_columns(path, ["source"]))
    features = _join(zip(measured, sources, strict=True), sum(sizes))
    pa.default_memory_pool().release_unused()  # what follows needs memory of NumPy
    if features is None:
        raise DataError(f"{path} has no images", remedy="complete the dataset")
    return features


def measure(chunks: Iterable[Chunk]) -> Features | None:
    """Measure images in chunks. Returns None if there are none."""
    return _join((_measure(images, labels), sources) for images, labels, sources in chunks)


def measure_row_group(partition: tuple[str, int]) -> Measured:
    """Measure the images of one row group of a table: its path, and the number of the row group."""
    path, group = partition
    return _measure(*table.RowGroups(Path(path)).read(group))


def _join(parts: Iterable[tuple[Measured, pa.Array]], images: int = 0) -> Features | None:
    """Join the arrays of `Features` of parts of the images, with their sources. Returns None if there are none.

    Args:
        images: their number, if it is known: the memory is then allocated once.
    """
    sources: dict[str, int] = {}
    columns: dict[str, np.ndarray] = {}
    filled = 0
    shape: tuple[int, ...] = ()
    for (of_part, measured), origins in parts:
        shape = of_part
        named = origins.dictionary_encode()
        numbers = [sources.setdefault(name, len(sources)) for name in named.dictionary.to_pylist()]
        indices = np.frombuffer(named.indices.buffers()[1], np.int32)[: len(origins)]  # `to_numpy` would import pandas
        source, end = np.array(numbers, np.uint16)[indices], filled + len(origins)
        for name, values in ({"source": source} | measured).items():
            if name not in columns:
                columns[name] = np.empty(max(images, end), values.dtype)
            elif len(columns[name]) < end:
                columns[name] = np.concatenate([columns[name][:filled], np.empty(end, values.dtype)])
            columns[name][filled:end] = values
        filled = end
    if not columns:
        return None
    columns = {name: column[:filled] for name, column in columns.items()}
    height, width, *colours = shape
    return Features(pixels=height * width, channels=math.prod(colours), sources=tuple(sources), **columns)


def overall_mean(features: Features) -> float:
    """Mean of all pixels of all images, 0 to 1."""
    return int(features.pixel_sum.sum()) / (len(features) * features.values * WHITE)


def overall_std(features: Features) -> float:
    """Standard deviation of all pixels of all images, 0 to 0.5."""
    values = len(features) * features.values
    total, squares = int(features.pixel_sum.sum()), int(features.square_sum.sum())
    return math.sqrt((values * squares - total**2) / (values * WHITE) ** 2)


def find_conflicts(digests: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Find images that also occur with another label: bool [n]. digests: int64 [n]; labels: uint16 [n]."""
    order = np.lexsort((labels, digests))
    ordered, sorted_labels = digests[order], labels[order]
    del order
    conflicting = (ordered[1:] == ordered[:-1]) & (sorted_labels[1:] != sorted_labels[:-1])
    return table.are_among(digests, ordered[1:][conflicting])


def find_mirrored(features: Features, digests: np.ndarray) -> np.ndarray:
    """Find images whose mirror image is among the given digests: bool [n].

    Symmetric images do not count: their copies are duplicates.
    """
    return table.are_among(features.mirrored, digests) & (features.mirrored != features.digest)


def class_separation(features: Features, reference: Features) -> float:
    """Measure how well simple features separate the classes. Shuffled labels give 0.

    For the number of pixels above 0, the mean pixel, the centre of mass and the mean colour, this is the share of the
    feature's variance that the means of the classes in `reference` explain (for the reference itself: the correlation
    ratio, eta squared).
    Returns the largest share: 1 if the class determines the feature, 0 or less if the labels do not describe the
    images, or describe them differently than in the reference.
    """
    pairs = zip(_class_features(features), _class_features(reference), strict=True)
    return max(_explained(*own, *others) for own, others in pairs)


def _measure(images: np.ndarray, labels: np.ndarray) -> Measured:
    """Compute the arrays of `Features`, except `source`: images uint8 [n, *shape], labels uint16 [n]."""
    count, height, width, *colours = images.shape
    channels = math.prod(colours)
    flat = images.reshape(count, height * width * channels)
    lowest, highest = _extremes(images, count) if colours else (flat, flat)
    by_row = flat.reshape(count, height, width * channels)
    column_sums = by_row.sum(axis=1, dtype=np.int64)
    largest = flat.shape[1] * WHITE * max(WHITE, height, width)
    sums = {
        "pixel_sum": flat.sum(axis=1, dtype=np.int64),
        "square_sum": np.square(flat, dtype=np.uint16).sum(axis=1, dtype=np.int64),
        "row_moment": by_row.sum(axis=2, dtype=np.int64) @ np.arange(height),
        "column_moment": column_sums @ np.repeat(np.arange(width), channels),
        **({name: column_sums[:, place::3].sum(axis=1) for place, name in enumerate(CHANNEL_SUMS)} if colours else {}),
    }
    columns = {
        "label": labels,
        **{name: values.astype(np.uint32) if largest < 2**32 else values for name, values in sums.items()},
        "darkest": flat.min(axis=1),
        "brightest": flat.max(axis=1),
        "ink": (highest > 0).sum(axis=1, dtype=np.int32),
        "white": (lowest == WHITE).sum(axis=1, dtype=np.int32),
        "digest": _digests(flat),
        "mirrored": _digests(images[:, :, ::-1].reshape(flat.shape)),
    }
    return images.shape[1:], columns


def _extremes(images: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest value of each pixel's colours: uint8 [n, pixels]."""
    red, green, blue = (images[..., channel] for channel in range(3))
    lowest, highest = (choose(choose(red, green), blue) for choose in (np.minimum, np.maximum))
    return lowest.reshape(count, -1), highest.reshape(count, -1)


def _digests(flat: np.ndarray) -> np.ndarray:
    images = flat.view(f"V{flat.shape[1]}").ravel().tolist()  # as bytes objects: twice as fast as hashing array rows
    digests = (sha1(image, usedforsecurity=False).digest()[:8] for image in images)
    return np.frombuffer(b"".join(digests), ">i8").astype(np.int64)


def _class_features(features: Features) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield labels and values of each feature that may separate classes, for the images where it is defined.

    Values are int64 in units of 1/256 grey level or pixel, so that their sums are exact.
    """
    quantities: list[Callable[[], np.ndarray]] = [  # one in memory at a time
        lambda: features.ink * (WHITE / features.pixels),
        lambda: features.mean * WHITE,
        lambda: features.centre[0],
        lambda: features.centre[1],
        *(partial(_scale_opponent, features, name) for name in features.opponents),
    ]
    for compute in quantities:
        values = compute()
        defined = np.isfinite(values)
        yield features.label[defined], np.rint(values[defined] * 256).astype(np.int64)


def _scale_opponent(features: Features, name: str) -> np.ndarray:
    return features.opponents[name] * WHITE


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
