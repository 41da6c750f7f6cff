"""Decoders of users' files: pictures and `.npz` archives. Every exception of a decoder becomes a DataError.

The sizes in a file's header are compared with its real size before memory is allocated. Large files are refused.
"""

import errno
import io
import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from pipeline.data.table import Dataset
from pipeline.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
MOST_FILE_BYTES = 2**26  # size limit of a picture's file
MOST_PIXELS = 50_000_000  # limit for a picture: up to 200 MB when decoded
NPZ = "an .npz file that NumPy wrote"
_IMAGE_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I")
_MOST_HEADER_BYTES = 2**16  # of an array's header in an .npz file; NumPy's own limit is lower
_MOST_REASON = 200  # characters of a decoder's message


@contextmanager
def decoding(path: Path, expected: str, problem: str = "is damaged", remedy: str = "") -> Iterator[None]:
    """Convert every exception of a decoder in the block to a DataError. Put only the decoder's call into the block.

    Decoders raise nearly anything for damaged input: ValueError, SyntaxError, RuntimeError, MemoryError, struct.error.

    Raises:
        DataError: the file is damaged, with the decoder's reason.
        OSError: the system cannot read the file.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a seek before the start
            raise
        reason = " ".join("".join(letter if letter.isprintable() else " " for letter in str(error)).split())
        found = reason[:_MOST_REASON] or type(error).__name__
        raise DataError(f"{path} {problem}", expected=expected, found=found, remedy=remedy) from None


def read_grey(path: Path, dataset: Dataset | None = None) -> np.ndarray:
    """Read a PNG or JPEG file as grey values: uint8 [height, width].

    The picture is rotated as its EXIF data says. Colours become grey, transparency is ignored, and of 16-bit values
    the upper eight bits are kept.

    Args:
        dataset: if given, refuse a picture of another size.

    Raises:
        DataError: it is not a PNG or JPEG file, is damaged, is too large, or has another size.
    """
    from PIL import Image, ImageOps

    if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
        raise DataError(f"{path} is not a picture", expected=f"a file whose name ends in {', '.join(IMAGE_SUFFIXES)}")
    size = path.stat().st_size
    if size > MOST_FILE_BYTES:
        raise _too_large(path, f"{MOST_FILE_BYTES:,} bytes", f"{size:,}")
    content, expected = io.BytesIO(path.read_bytes()), "a PNG or JPEG file"
    with warnings.catch_warnings(), decoding(path, expected):
        warnings.simplefilter("ignore")  # about metadata, and about sizes that are refused below
        try:
            picture = Image.open(content, formats=("PNG", "JPEG"))
        except Image.DecompressionBombError as error:
            raise _too_large(path, f"{MOST_PIXELS:,} pixels", str(error)) from None
    if picture.width * picture.height > MOST_PIXELS:
        raise _too_large(path, f"{MOST_PIXELS:,} pixels", f"{picture.height} x {picture.width}")
    if dataset and {picture.height, picture.width} != {dataset.height, dataset.width}:
        dataset.require_shape((picture.height, picture.width), path)
    if picture.mode not in _IMAGE_MODES:
        raise DataError(f"{path} has an unsupported pixel format", expected=", ".join(_IMAGE_MODES), found=picture.mode)
    with warnings.catch_warnings(), decoding(path, expected):
        warnings.simplefilter("ignore")
        pixels = np.asarray(ImageOps.exif_transpose(_to_grey(picture)))
    if dataset:
        dataset.require_shape(pixels.shape, path)
    return pixels


def _to_grey(picture: "Image") -> "Image":
    from PIL import Image

    if picture.mode.startswith("I"):
        grey = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        grey.info = picture.info
        return grey
    return (picture.convert("RGB") if picture.mode == "CMYK" else picture).convert("L")


def _too_large(path: Path, limit: str, found: str) -> DataError:
    return DataError(f"{path} is too large", expected=f"at most {limit}", found=found, remedy="scale it down")


@dataclass(frozen=True)
class StoredArray:
    """An array in an `.npz` file that is read in chunks; `numpy.load` would read all of it."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    content: IO[bytes]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}{' in Fortran order' * self.fortran}"

    def read(self, rows: int) -> np.ndarray:
        """Read the next rows.

        Raises:
            DataError: the file is damaged.
        """
        size = rows * math.prod(self.shape[1:]) * self.dtype.itemsize
        with decoding(self.path, NPZ):
            values = self.content.read(size)
            if len(values) < size:
                raise EOFError("it ends too early")
            return np.frombuffer(values, self.dtype).reshape(rows, *self.shape[1:])


@contextmanager
def open_npz(path: Path, *names: str) -> Iterator[list[StoredArray]]:
    """Open arrays of an `.npz` file, to be read in the block.

    Raises:
        DataError: the file is damaged, or an array is missing.
    """
    with path.open("rb") as content, ExitStack() as stack:
        with decoding(path, NPZ):
            archive = stack.enter_context(zipfile.ZipFile(content))
        missing = {f"{name}.npy" for name in names} - set(archive.namelist())
        if missing:
            raise DataError(f"{path} lacks {', '.join(sorted(missing))}", expected=" and ".join(names))
        with decoding(path, NPZ):
            arrays = [_open_array(path, archive, f"{name}.npy", stack) for name in names]
        yield arrays


def _open_array(path: Path, archive: zipfile.ZipFile, name: str, stack: ExitStack) -> StoredArray:
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed by method {info.compress_type}")
    with archive.open(name) as file:
        head = io.BytesIO(file.read(_MOST_HEADER_BYTES))
    version = np.lib.format.read_magic(head)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(head)
    has_length = min(shape, default=0) >= 0 and head.tell() + math.prod(shape) * dtype.itemsize == info.file_size
    if not has_length and not dtype.hasobject:  # objects have no fixed length; the caller refuses them by their dtype
        raise ValueError(f"the length of {name} differs from its header")
    file = stack.enter_context(archive.open(name))
    file.read(head.tell())
    return StoredArray(path, shape, dtype, fortran, file)
