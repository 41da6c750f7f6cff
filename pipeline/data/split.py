"""The validation split: stratified, seeded, and decided by a hash of each image.

The draw of an image is a hash of the seed and its pixels. In each class, the official images with the lowest draws go
to validation, as many as the fraction requires; the highest of these draws is the threshold of the class. Images that
are added later are compared with the same thresholds. They therefore move no earlier image, and copies of an image are
in the same split.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data import table
from pipeline.data.table import OFFICIAL
from pipeline.errors import DataError

SHA1_DIGITS = 40  # of an id; the digits after them count the copies of an image
EXAMPLES = 5


@dataclass(frozen=True)
class Draws:
    """The draws of a table's images, in its order."""

    number: np.ndarray  # uint64 [n]: among 10 million images, only copies have the same number
    label: np.ndarray  # uint16 [n]
    official: np.ndarray  # bool [n]


def draw_numbers(ids: Iterable[str], seed: int) -> np.ndarray:
    """Return a uniform number for each image, equal for its copies: uint64 [n]."""
    digests = (blake2b(f"{seed} {id_[:SHA1_DIGITS]}".encode(), digest_size=8).digest() for id_ in ids)
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def read_draws(path: Path, seed: int) -> Draws:
    """Compute the draws of a table's images from its small columns, one row group in memory at a time."""
    numbers, labels, official = [], [], []
    for rows in table.stream_columns(path, ["id", "label", "source"]):
        numbers.append(draw_numbers(rows.column("id").to_pylist(), seed))
        labels.append(table.label_column(rows, "label"))
        official.append(np.array([source == OFFICIAL for source in rows.column("source").to_pylist()], bool))
    return Draws(np.concatenate(numbers), np.concatenate(labels), np.concatenate(official))


def find_thresholds(draws: Draws, classes: Sequence[str], fraction: float) -> np.ndarray:
    """Find the highest draw of each class that goes to validation: uint64 [classes].

    Of a small class, at least one image goes to validation, and at least one does not.

    Raises:
        DataError: a class has fewer than two official images.
    """
    thresholds = np.zeros(len(classes), np.uint64)
    for label, name in enumerate(classes):
        numbers = draws.number[draws.official & (draws.label == label)]
        if not len(numbers):
            raise DataError(
                f"the class {name} has no official training images",
                expected="every class among the official images",
                remedy="complete the dataset, or correct its classes in its catalogue entry",
            )
        if len(numbers) == 1:
            raise DataError(
                f"the class {name} has only one official training image",
                expected="two or more of every class: one to train on, and one to validate on",
                remedy="add images of this class, or remove the class from the dataset",
            )
        count = min(max(round(fraction * len(numbers)), 1), len(numbers) - 1)
        thresholds[label] = np.partition(numbers, count - 1)[count - 1]
    return thresholds


def choose_validation(draws: Draws, thresholds: np.ndarray) -> np.ndarray:
    """Return True for each training image that goes to validation: bool [n]."""
    return draws.number <= thresholds[draws.label]


def require_disjoint(train: Draws, is_validation: np.ndarray, test: Draws, path: Path) -> None:
    """Refuse images that would be in two splits. `path` is the table of `train`, for the ids in the message.

    Raises:
        DataError: copies of an image are in train and test, or have labels whose thresholds separate them.
    """
    leaks = _are_among(train.number, test.number)
    separated = ~is_validation & _are_among(train.number, train.number[is_validation])
    for shared, splits in ((leaks, "the test images"), (separated, "both training and validation, under two labels")):
        rows = np.flatnonzero(shared)
        if len(rows):
            raise DataError(
                f"{len(rows):,} training images are also among {splits}",
                expected="no image in two splits",
                found=f"such as {', '.join(table.ids_at(path, rows[:EXAMPLES].tolist()))}",
                remedy="remove the copies: `dvc repro validate` prints their sources",
            )


def write_splits(source: Path, is_validation: np.ndarray, train: Path, validation: Path) -> None:
    """Write the rows of a table to two new ones, in their order, one row group in memory at a time."""
    dataset = table.read_dataset(source)
    first = 0
    with table.writer(train, dataset) as kept, table.writer(validation, dataset) as held_out:
        for rows in table.stream(source):
            chosen = is_validation[first : first + len(rows)]
            for split, mask in ((kept, ~chosen), (held_out, chosen)):
                where = _as_arrow(mask)
                groups = None if rows.groups is None else rows.groups.filter(where)
                texts = rows.ids.filter(where), rows.sources.filter(where)
                split.write(rows.images[mask], rows.labels[mask], *texts, rows.given[mask], groups)
            first += len(rows)


def count_classes(split: str, labels: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
    """Count the images of a split by class name. labels: uint16 [n], indices into `classes`.

    Raises:
        DataError: a class has no images.
    """
    counts = dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True))
    missing = [name for name, count in counts.items() if not count]
    if missing:
        raise DataError(
            f"the {split} split has no images of {', '.join(missing)}",
            expected="images of every class in every split",
            remedy="complete the dataset, or correct its classes in its catalogue entry",
        )
    return counts


def _are_among(numbers: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`np.isin`, in an eighth of its memory: bool [n]."""
    ordered = np.sort(others)
    places = np.searchsorted(ordered, numbers)
    return ordered[np.minimum(places, len(ordered) - 1)] == numbers


def _as_arrow(mask: np.ndarray) -> pa.Array:
    """Convert bool [n] to an Arrow array. pyarrow would import pandas for it, which takes longer than the split."""
    return pa.Array.from_buffers(pa.bool_(), len(mask), [None, pa.py_buffer(np.packbits(mask, bitorder="little"))])
