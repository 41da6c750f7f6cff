"""The idx format of MNIST and its successors: a big-endian header, then unsigned bytes; plain or gzip-compressed.

Format: a magic number 0x0000TTDD (T the type of a value, D the number of dimensions), then one 32-bit size for each
dimension, then the values, the last dimension fastest. `TT` is 08, unsigned byte, throughout.
"""

import gzip
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import numpy as np

from pipeline.data.decoders import decoding
from pipeline.data.table import Dataset
from pipeline.errors import DataError

CHUNK_ROWS = 8192
GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08


@contextmanager
def open_binary(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for `read`. Decompresses gzip, which is detected by the content and not by the name."""
    with path.open("rb") as file:
        compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    with gzip.open(path) if compressed else path.open("rb") as content:
        yield cast(IO[bytes], content)


def read(content: IO[bytes], size: int, path: Path) -> bytes:
    """Read at most `size` bytes. `path` is the file's, for the error message.

    Raises:
        DataError: the file is damaged gzip.
    """
    with decoding(path, "a complete file", problem="is a damaged gzip file", remedy=f"fetch {path} again"):
        return content.read(size)


def stream(path: Path, dimensions: int, rows: int = CHUNK_ROWS) -> Iterator[np.ndarray]:
    """Read the values of an idx file in chunks of at most `rows` along the first dimension.

    Yields:
        uint8 [n, ...] with `dimensions` dimensions; one empty array if the file has no rows.

    Raises:
        DataError: not an idx file of bytes with `dimensions` dimensions, or its length differs from its header.
    """
    with open_binary(path) as content:
        shape = _read_header(content, path, dimensions)
        row_bytes = math.prod(shape[1:])
        for start in range(0, max(shape[0], 1), rows):
            count = min(rows, shape[0] - start)
            values = read(content, count * row_bytes, path)
            if len(values) < count * row_bytes:
                raise _wrong_length(path, shape, f"{start * row_bytes + len(values)} bytes of values")
            yield np.frombuffer(values, np.uint8).reshape(count, *shape[1:])
        if read(content, 1, path):
            raise _wrong_length(path, shape, "more bytes")


def read_shape(path: Path, dimensions: int) -> tuple[int, ...]:
    """Read the sizes in the header."""
    with open_binary(path) as content:
        return _read_header(content, path, dimensions)


def stream_pair(images: Path, labels: Path, dataset: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read an images file and its labels file together, and check them against the dataset's shape and classes.

    Yields:
        images uint8 [n, height, width] and labels uint16 [n].

    Raises:
        DataError: a file is malformed, the counts or the shape differ, or a label is out of range.
    """
    count, *shape = read_shape(images, 3)
    (label_count,) = read_shape(labels, 1)
    dataset.require_shape(tuple(shape), images)
    if count != label_count:
        raise DataError(
            f"{images} and {labels} do not belong together",
            expected="as many labels as images",
            found=f"{count} images, {label_count} labels",
        )
    first = 0
    rows = dataset.row_group
    for pixels, numbers in zip(stream(images, 3, rows), stream(labels, 1, rows), strict=True):
        dataset.require_labels(numbers, labels, first)
        first += len(numbers)
        yield pixels, numbers.astype(np.uint16)


def write(path: Path, values: np.ndarray) -> None:
    """Write `values`, uint8 of any shape, as a plain idx file."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, _UNSIGNED_BYTE, values.ndim, *values.shape)
    with path.open("wb") as file:
        file.write(header)
        file.write(np.ascontiguousarray(values, np.uint8).data)


def _read_header(content: IO[bytes], path: Path, dimensions: int) -> tuple[int, ...]:
    header = read(content, 4 + 4 * dimensions, path)
    expected = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if header[:4] != expected:
        raise DataError(
            f"{path} is not an idx file of bytes with {dimensions} dimension{'s' if dimensions > 1 else ''}",
            expected=f"magic number 0x{expected.hex()}",
            found=f"0x{header[:4].hex()}" if header else "an empty file",
        )
    if len(header) < 4 + 4 * dimensions:
        raise DataError(f"{path} ends within its header")
    return struct.unpack(f">{dimensions}I", header[4:])


def _wrong_length(path: Path, shape: tuple[int, ...], found: str) -> DataError:
    return DataError(
        f"the length of {path} differs from its header",
        expected=f"{math.prod(shape)} bytes of values, for {' x '.join(map(str, shape))}",
        found=found,
    )
