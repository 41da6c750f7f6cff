"""The validation split: stratified, seeded, and decided by a hash of each image, or of its group.

The draw of an image is a hash of the seed and its pixels. In each class, the official images with the lowest draws go
to validation, as many as the fraction requires; the highest of these draws is the threshold of the class. A class that
batches added has no official images: its threshold is the fraction of all possible draws. Images that are added later
are compared with the same thresholds. They therefore move no earlier image, and copies of an image are in the same
split.

In a grouped dataset, the draw is a hash of the seed and the group, and the class whose threshold applies is the lowest
label in the group: a group stays in one split. Labels are those before corrections, and images that a correction
removed still count: a correction moves no other image.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path

import numpy as np

from pipeline.data import table
from pipeline.data.added_classes import advise_images, share_of_range
from pipeline.data.removed_images import Removed
from pipeline.data.table import OFFICIAL, SHA1_DIGITS
from pipeline.errors import DataError

EXAMPLES = 5


@dataclass(frozen=True)
class Draws:
    """The draws of a table's images, in its order."""

    number: np.ndarray  # uint64 [n]: among 10 million images or groups, only copies or members have the same number
    label: np.ndarray  # uint16 [n]
    given: np.ndarray  # uint16 [n], the label before corrections
    official: np.ndarray  # bool [n]

    def __add__(self, other: "Draws") -> "Draws":
        pairs = ((getattr(self, column.name), getattr(other, column.name)) for column in fields(Draws))
        return Draws(*map(np.concatenate, pairs))


def draw_numbers(keys: Iterable[str], seed: int) -> np.ndarray:
    """Return a uniform number for each key, the SHA-1 of an image or a group: uint64 [n]."""
    digests = (blake2b(f"{seed} {key}".encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def read_draws(path: Path, seed: int) -> Draws:
    """Compute the draws of a table's images from its small columns, one row group in memory at a time."""
    grouped = table.read_dataset(path).grouped
    parts = []
    for rows in table.stream_columns(path, ["id", "label", "given", "source", *(["group"] if grouped else [])]):
        keys = rows.column("group").to_pylist() if grouped else _digests(rows.column("id").to_pylist())
        official = np.array([source == OFFICIAL for source in rows.column("source").to_pylist()], bool)
        labels, given = (table.label_column(rows, name) for name in ("label", "given"))
        parts.append((draw_numbers(keys, seed), labels, given, official))
    return Draws(*map(np.concatenate, zip(*parts, strict=True)))


def draw_removed(removed: Sequence[Removed], seed: int) -> Draws:
    """Compute the draws of images that a correction removed."""
    keys = [image.group or image.id[:SHA1_DIGITS] for image in removed]
    given = np.array([image.given for image in removed], np.uint16)
    official = np.array([image.source == OFFICIAL for image in removed], bool)
    return Draws(draw_numbers(keys, seed), given, given, official)


def _digests(ids: Iterable[str]) -> Iterator[str]:
    return (id_[:SHA1_DIGITS] for id_ in ids)


def find_strata(draws: Draws, *, grouped: bool) -> np.ndarray:
    """Return the class whose threshold applies to each image: uint16 [n].

    It is the image's label before corrections. For a group, it is the lowest of its official images, or else that of
    its first image. For a copy that has the same label after corrections, it is that of the first copy.
    """
    if not grouped and (draws.label == draws.given).all():
        return draws.given
    _, first, group = np.unique(draws.number, return_index=True, return_inverse=True)
    of_group = draws.given[first]
    if grouped:
        np.minimum.at(of_group, group[draws.official], draws.given[draws.official])
        return of_group[group]
    return np.where(draws.label == draws.label[first][group], of_group[group], draws.given)


def find_added(train: Draws, test: Draws, classes: int) -> np.ndarray:
    """Return True for each class that batches added: bool [classes]. It has no official images."""
    known = np.concatenate([draws.given[draws.official] for draws in (train, test)])
    added = np.zeros(classes, bool)
    added[test.given[~test.official]] = True  # batches have test images of no other class
    added[known] = False
    return added


def find_thresholds(
    draws: Draws, strata: np.ndarray, classes: Sequence[str], fraction: float, added: np.ndarray
) -> np.ndarray:
    """Find the highest draw of each class that goes to validation: uint64 [classes].

    Of a small class, at least one image or group goes to validation, and at least one does not.

    Args:
        strata: from `find_strata`.
        added: from `find_added`.

    Raises:
        DataError: a class has no official images, or one image or group; an added class has too few images for both
            sides.
    """
    thresholds = np.zeros(len(classes), np.uint64)
    for label, name in enumerate(classes):
        if added[label]:
            thresholds[label] = share_of_range(fraction)
            _require_both_sides(draws.number[strata == label] <= thresholds[label], name, fraction)
            continue
        if not (draws.official & (draws.given == label)).any():
            raise DataError(
                f"the class {name} has no official training images",
                expected="every class among the official images",
                remedy="complete the dataset, or correct its classes in its catalogue entry",
            )
        numbers = draws.number[draws.official & (strata == label)]
        if not len(numbers):  # all its groups have images of a lower label
            continue
        count = min(max(round(fraction * len(numbers)), 1), len(numbers))
        thresholds[label] = np.partition(numbers, count - 1)[count - 1]
        if thresholds[label] == numbers.max():
            others = numbers[numbers < thresholds[label]]
            if not len(others):
                raise DataError(
                    f"the class {name} has only one official training image or group of images",
                    expected="two or more of every class: one to train on, and one to validate on",
                    remedy="add images of this class, or remove the class from the dataset",
                )
            thresholds[label] = others.max()
    return thresholds


def _require_both_sides(is_validation: np.ndarray, name: str, fraction: float) -> None:
    validation = int(is_validation.sum())
    if not 0 < validation < len(is_validation):
        raise DataError(
            f"the added class {name} has too few training images for a validation split of {fraction:.0%}",
            expected=f"images of it for training and for validation; {advise_images(min(fraction, 1 - fraction))}",
            found=f"{len(is_validation) - validation} for training, {validation} for validation",
            remedy="add more images of it",
        )


def choose_validation(draws: Draws, strata: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return True for each training image that goes to validation: bool [n]."""
    return draws.number <= thresholds[strata]


def require_disjoint(train: Draws, is_validation: np.ndarray, test: Draws, path: Path, *, grouped: bool) -> None:
    """Refuse images that would be in two splits. `path` is the table of `train`, for the ids in the message.

    Raises:
        DataError: copies of an image are in train and test, or have labels whose thresholds separate them.
    """
    leaks = table.are_among(train.number, test.number)
    separated = ~is_validation & table.are_among(train.number, train.number[is_validation])
    shared_by = "images, or groups of images," if grouped else "images"
    for shared, splits in ((leaks, "the test images"), (separated, "both training and validation, under two labels")):
        rows = np.flatnonzero(shared)
        if len(rows):
            raise DataError(
                f"{len(rows):,} training {shared_by} are also among {splits}",
                expected="no image in two splits" + (", and no group" if grouped else ""),
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
                groups = None if rows.groups is None else table.filter_rows(rows.groups, mask)
                ids, sources = (table.filter_rows(column, mask) for column in (rows.ids, rows.sources))
                split.write(rows.images[mask], rows.labels[mask], ids, sources, rows.given[mask], groups)
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
