"""The formats of a batch: those of an import (`pipeline.data.sources`), with the classes of a dataset.

Pictures get the form of the dataset's images: its colours, and its size by the resizing that its import used.
"""

from collections.abc import Iterator
from itertools import tee
from pathlib import Path

import numpy as np

from pipeline.data import idx
from pipeline.data.batches import as_batch_error, read_files
from pipeline.data.decoders import (
    BLACK,
    IMAGE_SUFFIXES,
    StoredArray,
    decode_picture,
    is_picture,
    open_npz,
    read_file,
    read_names,
    resize,
)
from pipeline.data.sources import arrays, tables
from pipeline.data.sources.collection import CHUNK, TEST, TRAIN, Chunk, Collection
from pipeline.data.sources.folders import STRAYS
from pipeline.data.sources.recognise import Reading, open_collection
from pipeline.data.table import OFFICIAL, Dataset
from pipeline.errors import DataError
from pipeline.image_class_names import find_class, simplify
from pipeline.partitions import map_partitions

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"  # ends of the file names in an idx pair
FORMATS = (
    "pairs of *images-idx3-ubyte[.gz] and *labels-idx1-ubyte[.gz], or one folder of pictures per class, or a table of "
    "pictures and classes with its pictures, or an .npz file with images and labels"
)

Pair = tuple[np.ndarray, np.ndarray]  # images uint8 [n, height, width], labels uint16 [n]


class UnknownClass(DataError):
    """A folder or a row of a batch names no class of the dataset."""


def read_batch(path: Path, dataset: Dataset) -> Iterator[Pair]:
    """Yield the images and labels of a batch in chunks, in the same order every time.

    Yields:
        images uint8 [n, height, width] and labels uint16 [n].

    Raises:
        DataError: it is malformed or empty, or does not fit the dataset's shape and classes.
    """
    try:
        if path.name == OFFICIAL:
            raise DataError(f"{OFFICIAL} marks the dataset's own images", expected="another name")
        read_files(path)  # refuses links
        images_read = 0
        for images, labels in _reader(path, dataset):
            images_read += len(images)
            yield images, labels
        if not images_read:
            raise DataError(f"{path} holds no images", expected=FORMATS)
    except DataError as error:
        raise as_batch_error(path, error) from error


def _reader(path: Path, dataset: Dataset) -> Iterator[Pair]:
    if path.is_file():
        if path.suffix == ".npz" and not arrays.is_keras_style(read_names(path)):
            return _read_npz(path, dataset)
        if path.suffix not in (".npz", ".parquet"):  # the pictures of other tables are outside the file
            raise DataError(f"{path} has an unknown format", expected=FORMATS)
        return _read_collection(path, dataset)
    if not path.is_dir():
        raise DataError(f"{path} does not exist", expected=FORMATS)
    entries = sorted(entry for entry in path.iterdir() if not _is_stray(entry))
    if any(entry.suffix.lower() in (*tables.SUFFIXES, ".npy") for entry in entries):
        return _read_collection(path, dataset)
    folders = [entry for entry in entries if entry.is_dir()]
    if folders and len(folders) < len(entries):
        raise DataError(f"{path} holds both files and folders", expected=FORMATS)
    return _read_folders(folders, dataset) if folders else _read_idx_pairs(entries, dataset)


def _is_stray(entry: Path) -> bool:
    return entry.name.startswith(".") or entry.name in STRAYS


def _read_collection(path: Path, dataset: Dataset) -> Iterator[Pair]:
    """Yield the pictures of a table or of arrays."""
    collection = open_collection(path, Reading())
    if collection.counts[TEST]:
        raise DataError(
            f"{path} has a test split",
            expected="a batch of training images: the test images stay the same",
            found=f"{collection.counts[TEST]} test images",
        )
    labels = _number_classes(collection, path, dataset)
    chunks, partitions = tee(collection.chunks())
    decoded = map_partitions(decode_pictures, ((chunk, path, dataset) for chunk in partitions), workers=1)
    for chunk, images in zip(chunks, decoded, strict=True):
        yield images, labels[chunk.labels].astype(np.uint16)


def decode_pictures(partition: tuple[Chunk, Path, Dataset]) -> np.ndarray:
    """Decode some pictures of a batch: uint8 [n, *shape]. `path` is that of the batch, for the messages."""
    chunk, path, dataset = partition
    return np.stack(
        [_read_image(picture, name, path, dataset) for name, picture in zip(chunk.names, chunk.pictures, strict=True)]
    )


def _number_classes(collection: Collection, path: Path, dataset: Dataset) -> np.ndarray:
    """Return the dataset's label of each class of a collection: int64 [classes]. `path` is for the message."""
    if not collection.is_numbered:
        return np.array([_label_of(name, path, dataset) for name in collection.classes])
    labels = np.arange(len(collection.classes))
    if len(labels) > len(dataset.classes):
        raise DataError(
            f"{path} has labels out of range",
            expected=f"0 to {len(dataset.classes) - 1}",
            found=str(labels[-1]),
        )
    return labels


def _read_image(picture: np.ndarray | bytes | Path, name: str, path: Path, dataset: Dataset) -> np.ndarray:
    """Return a picture in the form of the dataset's images. An array must have it already."""
    if isinstance(picture, np.ndarray):
        dataset.require_shape(picture.shape, path)
        return picture
    content = picture if isinstance(picture, bytes) else read_file(picture, follow_links=False)
    place = f"{path}: {name}" if isinstance(picture, bytes) else picture
    is_resized, size, ground = dataset.resizing != "none", (dataset.height, dataset.width), dataset.ground or BLACK
    opened = decode_picture(content, place, dataset.channels, ground=ground, size=size if is_resized else None)
    if is_resized:
        opened = resize(opened, size, dataset.resizing, ground)
    pixels = np.asarray(opened)
    dataset.require_shape(pixels.shape, Path(place))
    return pixels


def _read_idx_pairs(files: list[Path], dataset: Dataset) -> Iterator[Pair]:
    by_name = {file.name.removesuffix(".gz"): file for file in files}
    for file in files:
        name = file.name.removesuffix(".gz")
        if by_name[name] != file:
            raise DataError(f"{file.with_name(name)} exists twice", expected="one file, with or without .gz")
        if _partner(name) not in by_name:
            raise DataError(f"{file} belongs to no pair of images and labels", expected=FORMATS)
    for name, file in by_name.items():
        if name.endswith(IMAGES):
            yield from idx.stream_pair(file, by_name[_partner(name)], dataset)


def _partner(name: str) -> str:
    """Return the name of the labels file of an images file, or the reverse. Empty for other files."""
    for ending, other in ((IMAGES, LABELS), (LABELS, IMAGES)):
        if name.endswith(ending):
            return name.removesuffix(ending) + other
    return ""


def _read_npz(path: Path, dataset: Dataset) -> Iterator[Pair]:
    with open_npz(path, "images", "labels") as (images, labels):
        if images.dtype != np.uint8 or len(images.shape) != 3 or images.fortran:
            raise _not_a_pair(path, images, labels)
        if labels.dtype.kind not in "iu" or len(labels.shape) != 1:
            raise _not_a_pair(path, images, labels)
        count, *shape = images.shape
        if labels.shape != (count,):
            raise DataError(
                f"the images and labels of {path} do not belong together",
                expected="as many labels as images",
                found=f"{count} images, {labels.shape[0]} labels",
            )
        dataset.require_shape(tuple(shape), path)
        for start in range(0, count, dataset.row_group):
            rows = min(dataset.row_group, count - start)
            numbers = labels.read(rows)
            dataset.require_labels(numbers, path, start)
            yield images.read(rows), numbers.astype(np.uint16)


def _not_a_pair(path: Path, images: StoredArray, labels: StoredArray) -> DataError:
    return DataError(
        f"{path} does not hold images and labels",
        expected="images uint8 [n, height, width] in C order, labels of an integer type [n]",
        found=f"images {images}, labels {labels}",
    )


def _read_folders(folders: list[Path], dataset: Dataset) -> Iterator[Pair]:
    """Yield the pictures in folders that are named after their classes."""
    labelled = [
        (file, label)
        for folder, label in zip(folders, _labels_of(folders, dataset), strict=True)
        for file in sorted(folder.iterdir())
        if not _is_stray(file)
    ]

    def chunks() -> Iterator[Chunk]:
        for start in range(0, len(labelled), CHUNK):
            files, labels = zip(*labelled[start : start + CHUNK], strict=True)
            yield Chunk([file.name for file in files], list(map(_require_picture, files)), np.array(labels), TRAIN)

    read, partitions = tee(chunks())
    decoded = map_partitions(decode_pictures, ((chunk, folders[0].parent, dataset) for chunk in partitions), workers=1)
    for chunk, images in zip(read, decoded, strict=True):
        yield images, chunk.labels.astype(np.uint16)


def _require_picture(file: Path) -> Path:
    if not is_picture(file):
        raise DataError(f"{file} is not a picture", expected=f"a file whose name ends in {', '.join(IMAGE_SUFFIXES)}")
    return file


def _labels_of(folders: list[Path], dataset: Dataset) -> list[int]:
    """Return the label of the class that each folder is named after.

    Raises:
        DataError: a name matches no class or several, or two names differ only in case and separators.
    """
    found: dict[tuple[int, str], Path] = {}
    for folder in folders:
        label = _label_of(folder.name, folder, dataset)
        key = (label, simplify(folder.name))
        if key in found:
            raise DataError(
                f"{found[key]} and {folder} match the same class, {dataset.classes[label]}",
                expected="one folder, or names of different classes",
            )
        found[key] = folder
    return [label for label, _ in found]


def _label_of(name: str, path: Path, dataset: Dataset) -> int:
    """Return the label of the class that a folder or a row of a table names. `path` is for the message."""
    labels = find_class(name, dataset.classes, dataset.classes_ko)
    if not labels:
        raise UnknownClass(
            f"{path} does not have the name of a class" if path.name == name else f"{path} has a class {name!r}",
            expected=f"the English or Korean name, or the number, of one of {', '.join(dataset.classes)}",
        )
    if len(labels) > 1:
        raise DataError(
            f"{path} may mean more than one class",
            expected="the exact name of one class",
            found=" or ".join(f"{label} {dataset.classes[label]}" for label in sorted(labels)),
        )
    return labels.pop()
