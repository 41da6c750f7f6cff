"""Collections of labelled pictures: the interface of all readers in this package."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.errors import DataError

CHUNK = 256  # pictures that are decoded together
TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = {
    **dict.fromkeys(("train", "training", "trn"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), VALIDATION),
    **dict.fromkeys(("test", "testing", "tst", "t10k"), TEST),
}


@dataclass(frozen=True)
class Chunk:
    """Consecutive pictures of a collection, all of one split."""

    names: Sequence[str]  # a file relative to the collection, or a position: `images.npz: x_train[3]`
    pictures: Sequence[Path] | Sequence[bytes] | np.ndarray  # files, encoded, or uint8 [n, height, width(, 3)]
    labels: np.ndarray  # int64 [n], indices into the collection's classes
    split: str  # TRAIN, VALIDATION or TEST
    groups: Sequence[str] | None = None


@dataclass(frozen=True)
class Collection:
    """Labelled pictures, and the facts about them before they are decoded."""

    form: str  # for messages, such as "a folder for each class"
    classes: tuple[str, ...]
    counts: Counter[str]  # pictures by split
    chunks: Callable[[], Iterator[Chunk]]  # in the same order every time
    left_out: Counter[str] = field(default_factory=Counter)  # files that are not read, by kind
    is_numbered: bool = False  # the labels are stored as numbers from 0, in arrays


def find_split(word: str) -> str | None:
    """Return the split named by a word such as `train`, `val` or `testing`. None for other words."""
    return SPLITS.get(word.strip().lower())


def order_classes(names: set[str]) -> list[str]:
    """Sort class names: by number if all are numbers, else by name."""
    return sorted(names, key=int) if all(name.isascii() and name.isdecimal() for name in names) else sorted(names)


def name_classes(names: Sequence[str] | None, highest: int, path: Path) -> tuple[str, ...]:
    """Return the names of the classes for labels that are numbers from 0.

    Args:
        names: in the order of the labels; None names each class by its number.
        highest: the highest label of `path`.

    Raises:
        DataError: there are fewer names than labels, or a label is too large for a dataset.
    """
    if highest >= 2**16:
        raise DataError(f"{path} has labels out of range", expected="0 to 65535", found=str(highest))
    if names is None:
        return tuple(map(str, range(highest + 1)))
    if len(names) <= highest:
        raise DataError(
            f"cannot name all classes of {path}",
            expected=f"labels 0 to {len(names) - 1}, because there are {len(names)} names",
            found=f"label {highest}",
        )
    return tuple(names)


def number_labels(names: Sequence[str], found: set[int], path: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the classes, and the label of each number, as text, that a collection uses for a class.

    A number is the label itself, also if the name of another class is this number.

    Raises:
        DataError: a number is out of range.
    """
    if (lowest := min(found, default=0)) < 0:
        raise DataError(f"{path} has labels out of range", expected=f"0 to {len(names) - 1}", found=str(lowest))
    return name_classes(names, max(found, default=0), path), {str(label): label for label in found}


def find_labels(names: Sequence[str] | None, found: set[str], path: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the classes, and the label of each class name or number in a collection.

    Args:
        names: the classes in the order of their labels; None takes those of the collection, sorted.
        found: the class names or numbers in the collection.

    Raises:
        DataError: the collection has a name that is not in `names`.
    """
    if names is None:
        classes = tuple(order_classes(found))
        return classes, {name: label for label, name in enumerate(classes)}
    known = {name: label for label, name in enumerate(names)}
    if not found <= known.keys() and all(name.isascii() and name.isdecimal() for name in found):
        return number_labels(names, set(map(int, found)), path)
    if unknown := sorted(found - known.keys()):
        raise DataError(
            f"{path} has classes that are not among the given names",
            expected=f"{', '.join(names[:10])}{', …' if names[10:] else ''}",
            found=f"{', '.join(unknown[:10])}{f', and {len(unknown) - 10} more' if unknown[10:] else ''}",
        )
    return tuple(names), known
