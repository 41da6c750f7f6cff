"""Readers of arrays of pictures and labels: `.npz` files, pairs of `.npy` files, and pairs of idx files."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.data import idx
from pipeline.data.decoders import MOST_PIXELS, StoredArray, open_npy, open_npz, read_names
from pipeline.data.sources.collection import TEST, TRAIN, VALIDATION, Chunk, Collection, name_classes
from pipeline.errors import DataError

# Names of the arrays of pictures and labels, for each split.
PAIRS = {
    ("x_train", "y_train"): TRAIN,
    ("train_images", "train_labels"): TRAIN,
    ("images", "labels"): TRAIN,
    ("x", "y"): TRAIN,
    ("x_val", "y_val"): VALIDATION,
    ("val_images", "val_labels"): VALIDATION,
    ("x_test", "y_test"): TEST,
    ("test_images", "test_labels"): TEST,
}
EXPECTED = "arrays such as x_train and y_train, or images and labels, and perhaps x_test and y_test"
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"  # ends of the names of an idx pair
_ROWS, _BYTES = 1024, 2**25  # the most pictures, and the most bytes of pixels, that are read together


@dataclass(frozen=True)
class _Pair:
    """Pictures and labels of one split."""

    name: str  # of the pictures, for messages
    split: str
    shape: tuple[int, ...]  # of the pictures
    read_labels: Callable[[], np.ndarray]  # int64 [n]
    read: Callable[[], Iterator[np.ndarray]]  # pictures uint8, in chunks


def read_npz(path: Path, classes: Sequence[str] | None = None) -> Collection:
    """Read an `.npz` file.

    Args:
        classes: their names in the order of the labels; None names each by its number.

    Raises:
        DataError: it is damaged, or its arrays are not pictures and labels.
    """
    names = read_names(path)
    pairs = [
        _stored_pair(f"{path.name}: {images}", split, partial(_open_in_npz, path, (images, labels)), images, labels)
        for (images, labels), split in PAIRS.items()
        if {images, labels} <= names
    ]
    return _collect(path, "an .npz file", pairs, classes, f"{EXPECTED}; found {', '.join(sorted(names)[:8])}")


def is_keras_style(names: set[str]) -> bool:
    """Return True if the arrays have names such as `x_train` and `y_train`, and not only `images` and `labels`."""
    return any({images, labels} <= names for images, labels in PAIRS if images != "images")


def find_npy(files: Mapping[str, Path]) -> dict[tuple[Path, Path], str]:
    """Return pairs of `.npy` files of pictures and labels with their splits. files: by name."""
    stems = {path.stem.lower(): path for name, path in files.items() if name.lower().endswith(".npy")}
    return {
        (stems[images], stems[labels]): split
        for (images, labels), split in PAIRS.items()
        if {images, labels} <= stems.keys()
    }


def read_npy(files: Mapping[tuple[Path, Path], str], root: Path, classes: Sequence[str] | None = None) -> Collection:
    """Read pairs of `.npy` files. Arguments and errors are those of `read_npz`; files: from `find_npy`."""
    pairs = [
        _stored_pair(images.name, split, partial(_open_npy, images, labels), images.name, labels.name)
        for (images, labels), split in files.items()
    ]
    return _collect(root, "pairs of .npy files", pairs, classes, EXPECTED)


def find_idx(files: Mapping[str, Path]) -> dict[tuple[Path, Path], str]:
    """Return pairs of idx files with their splits. files: by name, plain or gzip."""
    plain = {name.removesuffix(".gz"): path for name, path in sorted(files.items())}
    pairs = {}
    for name, path in plain.items():
        partner = name.removesuffix(IMAGES) + LABELS
        if name.endswith(IMAGES) and partner in plain:
            pairs[path, plain[partner]] = TEST if re.match(r"(t10k|test)\b", name) else TRAIN
    return dict(sorted(pairs.items(), key=lambda pair: pair[1] == TEST))


def read_idx(files: Mapping[tuple[Path, Path], str], root: Path, classes: Sequence[str] | None = None) -> Collection:
    """Read pairs of idx files. Arguments and errors are those of `read_npz`; files: from `find_idx`."""
    pairs = []
    for (images, labels), split in files.items():
        shape, (count,) = idx.read_shape(images, 3), idx.read_shape(labels, 1)
        _require_pictures(images.name, shape, "uint8", fits=count == shape[0], labels=f"{count} labels")

        def read_labels(path: Path = labels) -> np.ndarray:
            return np.concatenate(list(idx.stream(path, 1))).astype(np.int64)

        def read(path: Path = images, rows: int = _count_rows(shape)) -> Iterator[np.ndarray]:
            return idx.stream(path, 3, rows)

        pairs.append(_Pair(images.name, split, shape, read_labels, read))
    return _collect(root, "pairs of idx files", pairs, classes, "pairs of idx files")


def _collect(path: Path, form: str, pairs: Sequence[_Pair], classes: Sequence[str] | None, expected: str) -> Collection:
    """Combine the pairs of a file or folder."""
    if not pairs:
        raise DataError(f"{path} has no pictures and labels", expected=expected)
    if len({pair.shape[1:] for pair in pairs}) > 1:
        raise DataError(
            f"{path} has pictures of different shapes",
            expected="one height and width, and one number of channels",
            found=", ".join(f"{pair.name} {list(pair.shape)}" for pair in pairs),
        )
    labels = {pair.name: pair.read_labels() for pair in pairs}
    names = name_classes(classes, max(int(values.max(initial=0)) for values in labels.values()), path)
    counts: Counter[str] = Counter()
    for pair in pairs:
        counts[pair.split] += pair.shape[0]

    def chunks() -> Iterator[Chunk]:
        for pair in pairs:
            row = 0
            for pictures in pair.read():
                numbers = labels[pair.name][row : row + len(pictures)]
                yield Chunk(
                    [f"{pair.name}[{row + place}]" for place in range(len(pictures))],
                    pictures[..., 0] if pictures.shape[3:] == (1,) else pictures,
                    numbers,
                    pair.split,
                )
                row += len(pictures)

    return Collection(form, names, counts, chunks, is_numbered=True)


def _stored_pair(
    name: str,
    split: str,
    open_pair: Callable[[], AbstractContextManager[tuple[StoredArray, StoredArray]]],
    images_name: str,
    labels_name: str,
) -> _Pair:
    """Check two stored arrays by their headers."""
    with open_pair() as (images, labels):
        shape, dtype = images.shape, str(images.dtype)
        length = labels.shape[0] if labels.shape else 0
        fits = (
            labels.dtype.kind in "iu"
            and (len(labels.shape) == 1 or labels.shape[1:] == (1,))
            and length == (shape[0] if shape else 0)
        )
        if images.fortran or labels.fortran:
            dtype += " in Fortran order"
        _require_pictures(name, shape, dtype, fits=fits, labels=f"{labels_name} {labels}")

    def read_labels() -> np.ndarray:
        with open_pair() as (_, labels):
            parts = [labels.read(min(_ROWS, length - row)) for row in range(0, length, _ROWS)]
        numbers = np.concatenate([np.empty(0, np.int64), *(part.reshape(-1).astype(np.int64) for part in parts)])
        if numbers.min(initial=0) < 0:
            raise DataError(f"{labels_name} has labels out of range", expected="from 0", found=str(numbers.min()))
        return numbers

    def read() -> Iterator[np.ndarray]:
        with open_pair() as (images, _):
            rows = _count_rows(shape)
            for row in range(0, shape[0], rows):
                yield images.read(min(rows, shape[0] - row))

    return _Pair(name, split, shape, read_labels, read)


def _count_rows(shape: tuple[int, ...]) -> int:
    """Return the number of pictures to read together, of an array of pictures of a shape."""
    return max(1, min(_ROWS, _BYTES // max(1, math.prod(shape[1:]))))


def _require_pictures(name: str, shape: tuple[int, ...], dtype: str, *, fits: bool, labels: str) -> None:
    has_channels = len(shape) == 4 and shape[3] in (1, 3)
    if dtype != "uint8" or not (len(shape) == 3 or has_channels) or not fits:
        raise DataError(
            f"cannot read {name} with its labels",
            expected="pictures uint8 [n, height, width] or [n, height, width, 1 or 3], and n integer labels from 0",
            found=f"{dtype} {list(shape)}, {labels}",
            remedy="store one label per picture, and values of 0 to 255 as uint8 with the channels last",
        )
    if math.prod(shape[1:3]) > MOST_PIXELS:
        raise DataError(
            f"{name} has pictures that are too large",
            expected=f"at most {MOST_PIXELS:,} pixels",
            found=f"{shape[1]} x {shape[2]}",
        )


@contextmanager
def _open_in_npz(path: Path, names: tuple[str, str]) -> Iterator[tuple[StoredArray, StoredArray]]:
    with open_npz(path, *names) as (images, labels):
        yield images, labels


@contextmanager
def _open_npy(images: Path, labels: Path) -> Iterator[tuple[StoredArray, StoredArray]]:
    with open_npy(images) as pictures, open_npy(labels) as numbers:
        yield pictures, numbers
