"""Tables of images and labels: Parquet files that are written and read by row group.

Columns: `image` fixed_size_binary(height*width), row-major grey values; `label` uint8; `id` string, the SHA-1 of the
pixels and its occurrence (`SHA1-0`, `SHA1-1` for an exact duplicate); `source` string, `official` or a batch's name.
The facts about the dataset are in the file's metadata.
"""

import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError
from pipeline.files import atomic_file

ROW_GROUP = 8192
OFFICIAL = "official"
_METADATA_KEY = b"dataset"


@dataclass(frozen=True)
class Dataset:
    """The facts about a dataset that do not depend on the number of its images."""

    name: str  # also of the registered model: `fashion-mnist`, `tiny`, `fashion-mnist-local-1a2b3c4d`
    height: int
    width: int
    classes: tuple[str, ...]  # English names; a label is an index into them
    classes_ko: tuple[str, ...]
    flip: bool  # whether a mirrored image keeps its class: a garment does, a digit does not

    @property
    def schema(self) -> pa.Schema:
        image = pa.binary(self.height * self.width)
        fields = [("image", image), ("label", pa.uint8()), ("id", pa.string()), ("source", pa.string())]
        return pa.schema(fields, metadata={_METADATA_KEY: json.dumps(asdict(self), ensure_ascii=False)})

    def require_shape(self, shape: tuple[int, ...], path: Path) -> None:
        """Refuse images of another height and width. `path` is their file, for the message.

        Raises:
            DataError: names both sizes.
        """
        if shape != (self.height, self.width):
            raise DataError(
                f"{path} has images of another size",
                expected=f"{self.height} x {self.width} pixels: images are not resized",
                found=" x ".join(map(str, shape)),
            )

    def require_labels(self, labels: np.ndarray, path: Path, first: int = 0) -> None:
        """Refuse labels out of range. `path`, and the position of `labels[0]` in it, are for the message.

        Raises:
            DataError: names the first such label and its position.
        """
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.classes)))
        if len(wrong):
            raise DataError(
                f"{path} has labels out of range",
                expected=f"0 to {len(self.classes) - 1}",
                found=f"{labels[wrong[0]]} at position {first + wrong[0]}",
            )


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a table."""

    images: np.ndarray  # uint8 [n, height, width], read-only
    labels: np.ndarray  # uint8 [n]
    ids: pa.Array  # string [n]
    sources: pa.Array  # string [n]

    def __len__(self) -> int:
        return len(self.labels)


@contextmanager
def writer(path: Path, dataset: Dataset) -> Iterator["TableWriter"]:
    """Write a table in row groups of `ROW_GROUP`. The file `path` is created only if the block succeeds."""
    with (
        atomic_file(path) as partial,
        pq.ParquetWriter(partial, dataset.schema, compression="zstd", use_dictionary=["label", "source"]) as parquet,
    ):
        table = TableWriter(parquet, dataset)
        yield table
        table.flush()


class TableWriter:
    """Collects rows until a row group is full. The bytes therefore do not depend on the sizes of the chunks."""

    def __init__(self, parquet: pq.ParquetWriter, dataset: Dataset) -> None:
        self._parquet, self._dataset = parquet, dataset
        self._pending: list[pa.RecordBatch] = []
        self._rows = 0

    def write(self, images: np.ndarray, labels: np.ndarray, ids: pa.Array, sources: pa.Array) -> None:
        """Append rows. images: uint8 [n, height, width]; labels: uint8 [n]; ids and sources: string [n]."""
        pixels = self._dataset.height * self._dataset.width
        flat = images.reshape(len(labels), pixels)
        columns = [_from_bytes(flat, pa.binary(pixels)), _from_bytes(labels, pa.uint8()), ids, sources]
        self._pending.append(pa.RecordBatch.from_arrays(columns, schema=self._dataset.schema))
        self._rows += len(labels)
        while self._rows >= ROW_GROUP:
            self._write_group(ROW_GROUP)

    def flush(self) -> None:
        """Write the remaining rows, or one empty row group if there are no rows."""
        if self._rows or self._parquet.writer is None:
            self._write_group(self._rows)

    def _write_group(self, rows: int) -> None:
        table = pa.Table.from_batches(self._pending, self._dataset.schema)
        self._parquet.write_table(table.slice(0, rows).combine_chunks(), row_group_size=ROW_GROUP)
        rest = table.slice(rows)
        self._pending, self._rows = rest.to_batches(), len(rest)


def pixel_digests(images: np.ndarray) -> list[bytes]:
    """Return the SHA-1 of each image's pixels, 20 bytes; an id starts with it. images: uint8 [n, height, width]."""
    return [hashlib.sha1(image, usedforsecurity=False).digest() for image in np.ascontiguousarray(images)]


def strings(values: Sequence[str]) -> pa.Array:
    """Convert strings to a column for `TableWriter.write`. `pyarrow.array` would import pandas, which takes longer."""
    encoded = [value.encode() for value in values]
    offsets = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum([len(value) for value in encoded], out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers)


def read_dataset(path: Path) -> Dataset:
    """Read the facts about the dataset of a table.

    Raises:
        DataError: the file is missing, damaged, or not a table of this pipeline.
    """
    with _open(path) as parquet:
        metadata = parquet.schema_arrow.metadata or {}
    if _METADATA_KEY not in metadata:
        raise DataError(f"{path} is not a table of this pipeline", expected="dataset metadata in the Parquet schema")
    facts = json.loads(metadata[_METADATA_KEY])
    return Dataset(**{**facts, "classes": tuple(facts["classes"]), "classes_ko": tuple(facts["classes_ko"])})


def read_schema(path: Path) -> pa.Schema:
    """Read the columns and types of a table, which may differ from those of its dataset."""
    with _open(path) as parquet:
        return parquet.schema_arrow


def count_rows(path: Path) -> int:
    """Return the number of images in a table. Reads only its footer."""
    with _open(path) as parquet:
        return int(parquet.metadata.num_rows)


def stream(path: Path) -> Iterator[Rows]:
    """Yield the rows of a table, one row group in memory at a time."""
    dataset = read_dataset(path)
    with _open(path) as parquet:
        for group in range(parquet.num_row_groups):
            yield _rows(parquet.read_row_group(group), dataset)


class RowGroups:
    """The images and labels of a table by row group. Each row group is read when it is needed."""

    def __init__(self, path: Path) -> None:
        self._path, self._dataset = path, read_dataset(path)
        with _open(path) as parquet:
            metadata = parquet.metadata
        self.sizes = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))

    def read(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Read a row group: images uint8 [n, height, width] and labels uint8 [n], read-only."""
        with _open(self._path) as parquet:
            table = parquet.read_row_group(group, ["image", "label"])
        return _images(table, self._dataset), _labels(table)


def read_images(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a whole table: images uint8 [n, height, width] and labels uint8 [n]."""
    dataset = read_dataset(path)
    with _open(path) as parquet:
        table = parquet.read(["image", "label"])
    return _images(table, dataset), _labels(table)


def read_ids(path: Path) -> list[str]:
    """Read the ids of a whole table, in its order."""
    with _open(path) as parquet:
        return parquet.read(["id"]).column("id").to_pylist()


def ids_at(path: Path, rows: Sequence[int]) -> list[str]:
    """Read the ids of the rows at some positions of a table."""
    with _open(path) as parquet:
        return parquet.read(["id"]).column("id").take(pa.array(rows, pa.int64())).to_pylist()


def stream_columns(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield columns of a table, one row group in memory at a time."""
    with _open(path) as parquet:
        for group in range(parquet.num_row_groups):
            yield parquet.read_row_group(group, columns=list(columns))


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as parquet:
            yield parquet
    except FileNotFoundError:
        raise DataError(f"{path} is missing", remedy="dvc repro") from None
    except (pa.ArrowInvalid, OSError) as error:
        if (
            isinstance(error, OSError) and error.errno
        ):  # an error of the system; Arrow's error for a damaged page has no number
            raise
        raise DataError(
            f"{path} is damaged", found=str(error), remedy=f"rm {shlex.quote(str(path))} && dvc checkout"
        ) from None


def _rows(table: pa.Table, dataset: Dataset) -> Rows:
    ids, sources = (table.column(name).combine_chunks() for name in ("id", "source"))
    return Rows(_images(table, dataset), _labels(table), ids, sources)


def _images(table: pa.Table, dataset: Dataset) -> np.ndarray:
    flat = _to_bytes(table.column("image"), dataset.height * dataset.width)
    return flat.reshape(-1, dataset.height, dataset.width)


def _labels(table: pa.Table) -> np.ndarray:
    return _to_bytes(table.column("label"), 1).reshape(-1)


# Buffers are used directly, because pyarrow's own conversions import pandas, which takes a quarter of a second.


def _from_bytes(values: np.ndarray, type_: pa.DataType) -> pa.Array:
    """Convert uint8 [n, ...] to n values of a type of the same width."""
    return pa.Array.from_buffers(type_, len(values), [None, pa.py_buffer(np.ascontiguousarray(values, np.uint8))])


def _to_bytes(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """Convert a column of n values of `width` bytes to uint8 [n, width]. A view if the column has one chunk."""
    pieces = [
        np.frombuffer(chunk.buffers()[1], np.uint8).reshape(-1, width)[chunk.offset : chunk.offset + len(chunk)]
        for chunk in column.chunks
        if len(chunk)
    ]
    return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty((0, width), np.uint8), *pieces])
