"""`data/incoming/`: labelled batches that a team adds to the training images over time.

A batch is a directory of idx pairs, a directory with one folder of PNG or JPEG files per class, or an `.npz` file with
`images` and `labels`. Its content is DVC's: the pointer `NAME.dvc` beside it is what git holds.
"""

import filecmp
import os
import shlex
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from pipeline.data import idx
from pipeline.data.table import OFFICIAL, Dataset
from pipeline.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

INCOMING = Path("data/incoming")
POINTER = ".dvc"
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"  # what names in an idx pair end in
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
IMAGE_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # of eight bits or fewer a channel
FORMATS = (
    "pairs of *images-idx3-ubyte[.gz] and *labels-idx1-ubyte[.gz], or one folder of PNG or JPEG files per class, "
    "or an .npz file with images and labels"
)

Pair = tuple[np.ndarray, np.ndarray]  # images uint8 [n, height, width], labels uint8 [n]


def find_batches(directory: Path) -> list[Path]:
    """The batches of a directory, in the order of their names, in which they are appended to the training images.

    Raises:
        DataError: a batch has no pointer, so a clone would miss it, or a pointer has no content.
    """
    batches, pointers = _names(directory)
    for name in sorted(batches - pointers):
        raise DataError(
            f"batch {name} has no pointer: other checkouts would not have it",
            expected=str(directory / f"{name}{POINTER}"),
            remedy=f"pipeline add-data {shlex.quote(str(directory / name))}",
        )
    for name in sorted(pointers - batches):
        raise DataError(
            f"batch {name} is not here: only its pointer is",
            expected=str(directory / name),
            remedy=f"dvc checkout {shlex.quote(str(directory / name))}{POINTER}, or dvc pull if another machine has it",
        )
    return [directory / name for name in sorted(batches)]


def read_files(path: Path) -> dict[str, tuple[int, int]]:
    """The files at or below a path, by theirs: bytes, and time of the last change in ns.

    Raises:
        OSError: something there cannot be looked at, such as another's folder, or a link that leads nowhere.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    walk = os.walk(path, onerror=refuse, followlinks=True)
    below = [Path(directory, name) for directory, _, names in walk for name in names]
    files = {}
    for file in (path, *below):
        try:
            status = file.stat()
        except FileNotFoundError:
            if file.is_symlink():
                raise
            continue  # it has just been taken away
        if stat.S_ISREG(status.st_mode):
            files[str(file)] = (status.st_size, status.st_mtime_ns)
    return files


def read_state(directory: Path) -> dict[str, tuple[int, int]]:
    """The files of all batches and pointers."""
    files: dict[str, tuple[int, int]] = {}
    for path in directory.glob("*"):
        if not path.name.startswith("."):
            with suppress(FileNotFoundError):  # of a link that leads nowhere, reading the batch tells
                files |= read_files(path)
    return files


def require_unchanged(directory: Path, before: dict[str, tuple[int, int]]) -> None:
    """Refuse what was read of batches that changed meanwhile.

    Args:
        before: what `read_state` found when the reading began.

    Raises:
        DataError: a file has come, gone or changed since.
    """
    now = read_state(directory)
    if changed := sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path)):
        raise DataError(
            f"{directory} changed while it was read",
            expected="batches that stay as they are until the stage has ended",
            found=f"{changed[0]} has come, gone or changed{f', and {len(changed) - 1} more' if changed[1:] else ''}",
            remedy="run the same command again: it reads them all",
        )


def require_same_batches(here: Path, main: Path) -> None:
    """Refuse to work in a temporary copy or a worktree that lacks a batch, or an edit of one, of the main repository.

    Such a copy holds what git has, and what DVC has for it: a batch that was never added is left out without a word.

    Args:
        here: `data/incoming` of the workspace.
        main: that of the repository it belongs to.

    Raises:
        DataError: naming the batch that differs and how to bring it along.
    """
    if here.resolve() == main.resolve():
        return
    batches, pointers = _names(main)
    for name in sorted(batches | pointers):
        pointer = main / f"{name}{POINTER}"
        batch_word, pointer_word = shlex.quote(str(main / name)), shlex.quote(str(pointer))  # for a shell
        same_pointer = _same_content(here / pointer.name, pointer)
        if (here / name).exists() and (main / name).exists():
            if _same_content(here / name, main / name):
                continue
            found = f"{main / name} differs from {here / name}"
            remedy = f"dvc add {batch_word}, and commit {pointer_word}" if same_pointer else f"commit {pointer_word}"
        elif same_pointer:
            continue
        elif pointer.exists():
            found, remedy = f"{pointer} is not the one in {here}, or not there", f"git add {pointer_word}, and commit"
        else:
            found, remedy = f"there is no {pointer}", f"pipeline add-data {batch_word}, and commit {pointer_word}"
        raise DataError(
            f"this workspace does not have batch {name} as the main repository has it",
            expected=f"the same in {here} and {main}",
            found=found,
            remedy=remedy,
        )


def require_same_local_data(here: Path, main: Path) -> None:
    """Refuse to work in a temporary copy or a worktree that lacks the files of `dataset.path`: git does not hold them.

    Without them, `ingest` would take the catalogue's dataset for the reader's own.

    Raises:
        DataError: the main repository has other files there.
    """
    if here.resolve() != main.resolve() and main.is_dir() and not _same_content(here, main):
        raise DataError(
            f"this workspace does not have the files of dataset.path as {main} has them",
            expected="the same files in both: a temporary workspace takes what git holds",
            found=f"others, or none, in {here}",
            remedy=f"set dataset.path to {main.resolve()} while you experiment",
        )


def read_batch(path: Path, dataset: Dataset) -> Iterator[Pair]:
    """The images and labels of a batch, a chunk in memory at a time.

    Yields:
        images uint8 [n, height, width] and labels uint8 [n], in the same order every time.

    Raises:
        DataError: it is malformed, is empty, or does not fit the dataset's shape and classes.
    """
    try:
        if path.name == OFFICIAL:
            raise DataError(f"{OFFICIAL} marks the dataset's own images", expected="another name")
        images_read = 0
        for images, labels in _reader(path, dataset):
            images_read += len(images)
            yield images, labels
        if not images_read:
            raise DataError(f"{path} holds no images", expected=FORMATS)
    except DataError as error:
        raise refused(path, error) from error


def refused(path: Path, error: DataError) -> DataError:
    """The error that names the batch, for one that says what is wrong with it."""
    in_place = path.resolve().parent == INCOMING.resolve()
    word = shlex.quote(str(path))
    take_out = f", or take it out: dvc remove {word}{POINTER}; rm -r {word}" if in_place else ""
    return DataError(
        f"batch {path.name} is refused: {error.problem}",
        expected=error.expected,
        found=error.found,
        remedy=f"mend {path}{take_out}",
    )


def _reader(path: Path, dataset: Dataset) -> Iterator[Pair]:
    if path.is_file():
        if path.suffix != ".npz":
            raise DataError(f"{path} is in no known format", expected=FORMATS)
        return _read_npz(path, dataset)
    if not path.is_dir():
        raise DataError(f"{path} does not exist", expected=FORMATS)
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    folders = [entry for entry in entries if entry.is_dir()]
    if folders and len(folders) < len(entries):
        raise DataError(f"{path} holds both files and folders", expected=FORMATS)
    return _read_folders(folders, dataset) if folders else _read_idx_pairs(entries, dataset)


def _read_idx_pairs(files: list[Path], dataset: Dataset) -> Iterator[Pair]:
    by_name = {file.name.removesuffix(".gz"): file for file in files}
    for file in files:
        name = file.name.removesuffix(".gz")
        if by_name[name] != file:
            raise DataError(f"{file.with_name(name)} is there twice", expected="either as it is or with .gz")
        if _partner(name) not in by_name:
            raise DataError(f"{file} belongs to no pair of images and labels", expected=FORMATS)
    for name, file in by_name.items():
        if name.endswith(IMAGES):
            yield from idx.stream_pair(file, by_name[_partner(name)], dataset)


def _partner(name: str) -> str:
    """The name of the labels file that belongs to an images file, or the other way round."""
    for ending, other in ((IMAGES, LABELS), (LABELS, IMAGES)):
        if name.endswith(ending):
            return name.removesuffix(ending) + other
    return ""


def _read_npz(path: Path, dataset: Dataset) -> Iterator[Pair]:
    try:
        with zipfile.ZipFile(path) as archive:
            missing = {"images.npy", "labels.npy"} - set(archive.namelist())
            if missing:
                raise DataError(f"{path} lacks {', '.join(sorted(missing))}", expected="images and labels")
            with archive.open("labels.npy") as file:
                labels = np.lib.format.read_array(file, allow_pickle=False)
            with archive.open("images.npy") as file:
                yield from _zip_labels(file, labels, path, dataset)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise DataError(f"{path} is damaged", expected="an .npz file that NumPy wrote", found=str(error)) from None


def _zip_labels(file: IO[bytes], labels: np.ndarray, path: Path, dataset: Dataset) -> Iterator[Pair]:
    """The array in `file`, a chunk at a time, with its labels: `numpy.load` would read all of it."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype != np.uint8 or len(shape) != 3 or fortran or labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"{path} does not hold images and labels",
            expected="images uint8 [n, height, width] in C order, labels of an integer type [n]",
            found=f"images {dtype} {list(shape)}{' in Fortran order' * fortran}, "
            f"labels {labels.dtype} {list(labels.shape)}",
        )
    if shape[0] != len(labels):
        raise DataError(
            f"the images and labels of {path} do not belong together",
            expected="as many labels as images",
            found=f"{shape[0]} images, {len(labels)} labels",
        )
    dataset.require_shape(shape[1:], path)
    dataset.require_labels(labels, path)
    for start in range(0, len(labels), idx.CHUNK_ROWS):
        part = labels[start : start + idx.CHUNK_ROWS]
        pixels = file.read(len(part) * shape[1] * shape[2])
        yield np.frombuffer(pixels, np.uint8).reshape(len(part), *shape[1:]), part.astype(np.uint8)


def _read_folders(folders: list[Path], dataset: Dataset) -> Iterator[Pair]:
    """One folder of pictures for each class, turned to grey; a transparent channel is ignored."""
    labelled = [
        (file, label)
        for folder in folders
        for label in [_label_of(folder, dataset)]
        for file in sorted(folder.iterdir())
        if not file.name.startswith(".")
    ]
    for start in range(0, len(labelled), idx.CHUNK_ROWS):
        part = labelled[start : start + idx.CHUNK_ROWS]
        images = np.stack([_read_picture(file, dataset) for file, _ in part])
        yield images, np.array([label for _, label in part], np.uint8)


def _label_of(folder: Path, dataset: Dataset) -> int:
    labels = {str(label): label for label in range(len(dataset.classes))}
    for names in (dataset.classes, dataset.classes_ko):
        labels |= {_plain(name): label for label, name in enumerate(names)}
    if _plain(folder.name) not in labels:
        raise DataError(
            f"{folder} is named after no class",
            expected=f"the English or Korean name, or the number, of one of {', '.join(dataset.classes)}",
        )
    return labels[_plain(folder.name)]


def _plain(name: str) -> str:
    """A class name as a folder may spell it: `T-shirt/top` cannot be one, and macOS takes Korean syllables apart."""
    return "".join(letter for letter in unicodedata.normalize("NFC", name).casefold() if letter.isalnum())


def _read_picture(path: Path, dataset: Dataset) -> np.ndarray:
    with open_picture(path) as picture:
        dataset.require_shape(picture.size[::-1], path)
        return np.asarray(picture.convert("L"))


@contextmanager
def open_picture(path: Path) -> Iterator["Image"]:
    """A PNG or JPEG file, whose pixels are read in the block.

    Raises:
        DataError: it is no such file, is damaged, or has more than eight bits a channel.
    """
    from PIL import Image

    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{path} is not a picture", expected=f"a name that ends in {', '.join(IMAGE_SUFFIXES)}")
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            if picture.mode not in IMAGE_MODES:
                expected = f"one of {', '.join(IMAGE_MODES)}"
                raise DataError(f"{path} has more than eight bits a channel", expected=expected, found=picture.mode)
            yield picture
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large a picture", found=str(error), remedy="scale it down") from None
    except (OSError, SyntaxError) as error:  # Pillow raises either for damaged files
        raise DataError(f"{path} is damaged", expected="a PNG or JPEG file", found=str(error)) from None


def _names(directory: Path) -> tuple[set[str], set[str]]:
    """Names of the batches in a directory, and names that its pointers speak of."""
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    visible = {name for name in names if not name.startswith(".")}
    pointers = {name for name in visible if name.endswith(POINTER)}
    return visible - pointers, {name.removesuffix(POINTER) for name in pointers}


def _same_content(one: Path, other: Path) -> bool:
    if not one.is_dir() or not other.is_dir():
        return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)
    files = _files(one)
    return files == _files(other) and all(filecmp.cmp(one / name, other / name, shallow=False) for name in files)


def _files(directory: Path) -> list[Path]:
    """Files below a directory, relative to it, in a fixed order; dot-files left out."""
    found = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.parts))
