"""Decoders of users' files: pictures and `.npz` archives. Every exception of a decoder becomes a DataError.

The sizes in a file's header are compared with its real size before memory is allocated. Large files are refused.
"""

import errno
import io
import math
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from pipeline.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # Pillow's names
PICTURE = "a PNG, JPEG, WebP, BMP, TIFF or GIF file"
BLACK = (0,)
MOST_FILE_BYTES = 2**26  # size limit of a picture's file
MOST_PIXELS = 50_000_000  # limit for a picture: up to 200 MB when decoded
NPZ, NPY = "an .npz file that NumPy wrote", "an .npy file that NumPy wrote"
_IMAGE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B", "I")
_ORIENTED = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # places of a picture's orientation
_MOST_HEADER_BYTES = 2**16  # of an array's header in an .npz file; NumPy's own limit is lower
_MOST_REASON = 200  # characters of a decoder's message


@contextmanager
def decoding(path: str | Path, expected: str, problem: str = "is damaged", remedy: str = "") -> Iterator[None]:
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
        reason = re.sub(r" ?<\S+ object at 0x[0-9a-f]+>", "", reason)  # differs in every process
        found = reason[:_MOST_REASON] or type(error).__name__
        raise DataError(f"{path} {problem}", expected=expected, found=found, remedy=remedy) from None


def read_picture(
    path: Path, channels: int | None = None, *, ground: Sequence[int] = BLACK, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Read a picture's file: uint8 [height, width] if it is grey, or [height, width, 3] if it has colours.

    Args:
        channels: 1 converts colours to grey, 3 grey to colours; None keeps what the file has.
        ground: see `decode_picture`.
        size: see `decode_picture`.

    Raises:
        DataError: it is not a picture, is damaged, or is too large.
    """
    if not is_picture(path):
        raise DataError(f"{path} is not a picture", expected=f"a file whose name ends in {', '.join(IMAGE_SUFFIXES)}")
    return np.asarray(decode_picture(read_file(path), path, channels, ground=ground, size=size))


def is_picture(path: Path) -> bool:
    """Return True for a file with the name of a picture."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def read_file(path: Path, *, follow_links: bool = True) -> bytes:
    """Read the file of a picture.

    Raises:
        DataError: it is too large, or is a link that is not followed.
        OSError: it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DataError(f"{path} is a link", expected="a file: links are not followed") from None
        raise
    with open(descriptor, "rb") as file:
        if (size := os.fstat(descriptor).st_size) > MOST_FILE_BYTES:
            raise _too_large(path, f"{MOST_FILE_BYTES:,} bytes", f"{size:,}")
        return file.read()


def open_picture(content: bytes, name: str | Path) -> "Image":
    """Read the header of a picture, and refuse one that is too large to be decoded. `name` is for the message.

    Raises:
        DataError: it is not a picture in one of `FORMATS`, is damaged, or is too large.
    """
    with warnings.catch_warnings(), decoding(name, PICTURE):
        warnings.simplefilter("ignore")  # about metadata, and about sizes that are refused below
        return _open_header(content, name)


def _open_header(content: bytes, name: str | Path) -> "Image":
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(name, f"{MOST_PIXELS:,} pixels", str(error)) from None
    if picture.width * picture.height > MOST_PIXELS:
        raise _too_large(name, f"{MOST_PIXELS:,} pixels", f"{picture.height} x {picture.width}")
    return picture


def decode_picture(
    content: bytes,
    name: str | Path,
    channels: int | None = None,
    *,
    ground: Sequence[int] = BLACK,
    size: tuple[int, int] | None = None,
) -> "Image":
    """Decode a picture: upright, opaque, 8 bits a channel, in Pillow's mode `L` or `RGB`. Training, batches and
    predictions all decode with this function.

    The picture is rotated as its EXIF data says. Transparent parts show the ground. Of 16-bit values the upper eight
    bits are kept. CMYK becomes RGB without a colour profile. Of an animation or several pages, the first is decoded.

    Args:
        channels: 1 converts colours to grey, 3 grey to colours; None keeps what the file has.
        ground: the value to show behind transparent parts, one for grey or three for red, green and blue.
        size: height and width that it will be resized to. A much larger JPEG is then decoded at a smaller scale, which
            is several times as fast.

    Raises:
        DataError: it is not a picture in one of `FORMATS`, is damaged, or is too large.
    """
    from PIL import ImageOps

    with warnings.catch_warnings(), decoding(name, PICTURE):
        warnings.simplefilter("ignore")
        picture = _open_header(content, name)
        if picture.mode not in _IMAGE_MODES:
            problem, modes = f"{name} has an unsupported pixel format", ", ".join(_IMAGE_MODES)
            raise DataError(problem, expected=modes, found=picture.mode)
        if size:
            picture.draft(None, (2 * max(size), 2 * max(size)))  # only JPEG does it
        picture.load()
        if not _ORIENTED.isdisjoint(picture.info):
            picture = ImageOps.exif_transpose(picture)
        picture = _convert(picture, ground)
        mode = {1: "L", 3: "RGB"}.get(channels or 0, picture.mode)
        return picture if picture.mode == mode else picture.convert(mode)


def _convert(picture: "Image", ground: Sequence[int]) -> "Image":
    """Convert any mode to `L` or `RGB`."""
    from PIL import Image

    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if values.min(initial=0) < 0 or values.max(initial=0) >= 2**16:
            raise ValueError("it has values of more than 16 bits")
        return Image.fromarray((values >> 8).astype(np.uint8))
    is_grey = picture.mode in ("1", "L", "LA")
    if "A" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema() != (255, 255):
            behind = Image.new("RGBA", picture.size, (*_as_rgb(ground), 255))
            picture = Image.alpha_composite(behind, picture)
        if is_grey and len(set(ground)) == 1:
            return picture.getchannel(0)
    mode = "L" if picture.mode in ("1", "L") else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def resize(picture: "Image", size: tuple[int, int], method: str, ground: Sequence[int]) -> "Image":
    """Resize a decoded picture by Lanczos resampling, with its proportions kept.

    Args:
        size: height and width of the result.
        method: "fit" scales the picture into the size and pads it with the ground; "crop" fills the size with it, and
            cuts off what is outside, equally on both sides.
        ground: one value for grey or three for red, green and blue.
    """
    from PIL import Image, ImageOps

    height, width = size
    if picture.size == (width, height):
        return picture
    if method == "crop":
        return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    colour = ground[0] if picture.mode == "L" else _as_rgb(ground)
    return ImageOps.pad(picture, (width, height), Image.Resampling.LANCZOS, color=colour)


def _as_rgb(ground: Sequence[int]) -> tuple[int, ...]:
    return tuple(ground) if len(ground) == 3 else 3 * tuple(ground)


def _too_large(name: str | Path, limit: str, found: str) -> DataError:
    return DataError(f"{name} is too large", expected=f"at most {limit}", found=found, remedy="scale it down")


@dataclass(frozen=True)
class StoredArray:
    """An array in an `.npz` or `.npy` file that is read in chunks; `numpy.load` would read all of it."""

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
        with decoding(self.path, NPZ if self.path.suffix == ".npz" else NPY):
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


def read_names(path: Path) -> set[str]:
    """Return the names of the arrays in an `.npz` file.

    Raises:
        DataError: the file is damaged.
    """
    with path.open("rb") as content, decoding(path, NPZ), zipfile.ZipFile(content) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}


@contextmanager
def open_npy(path: Path) -> Iterator[StoredArray]:
    """Open the array of an `.npy` file, to be read in the block.

    Raises:
        DataError: the file is damaged.
    """
    with path.open("rb") as content:
        with decoding(path, NPY):
            shape, fortran, dtype, start = _read_array_header(
                content.read(_MOST_HEADER_BYTES), path.stat().st_size, "it"
            )
            content.seek(start)
        yield StoredArray(path, shape, dtype, fortran, content)


def _open_array(path: Path, archive: zipfile.ZipFile, name: str, stack: ExitStack) -> StoredArray:
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed by method {info.compress_type}")
    with archive.open(name) as file:
        shape, fortran, dtype, start = _read_array_header(file.read(_MOST_HEADER_BYTES), info.file_size, name)
    content = stack.enter_context(archive.open(name))
    content.read(start)
    return StoredArray(path, shape, dtype, fortran, content)


def _read_array_header(head: bytes, size: int, name: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Return shape, order and type of a stored array of `size` bytes, and the position of its values."""
    file = io.BytesIO(head)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    has_length = min(shape, default=0) >= 0 and file.tell() + math.prod(shape) * dtype.itemsize == size
    if not has_length and not dtype.hasobject:  # objects have no fixed length; the caller refuses them by their dtype
        raise ValueError(f"the length of {name} differs from its header")
    return shape, fortran, dtype, file.tell()
