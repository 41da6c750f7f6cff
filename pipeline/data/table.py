"""Tables of images and labels: Parquet files that are written and read by row group.

Columns: `image` fixed_size_binary(height*width*channels), row-major, grey or sRGB; `label` uint16; `given` uint16, the
label before corrections; `id` string, the SHA-1 of the pixels and its occurrence (`SHA1-0`, `SHA1-1` for an exact
duplicate); `source` string, `official` or a batch's name; `group` string, only in a grouped dataset. The facts about
the dataset are in the file's metadata.
"""

import hashlib
import json
import math
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError
from pipeline.files import atomic_file

ROW_GROUP, ROW_GROUP_BYTES = 8192, 2**25  # the most rows, and the most bytes of pixels, of a row group
OFFICIAL = "official"
SHA1_DIGITS = 40  # of an id; the digits after them count the copies of an image
_METADATA_KEY = b"dataset"


Resizing = Literal["none", "fit", "crop"]


@dataclass(frozen=True)
class Dataset:
    """The facts about a dataset that do not depend on the number of its images."""

    name: str  # also of the registered model: `fashion-mnist`, `tiny`, `fashion-mnist-local-1a2b3c4d`
    height: int
    width: int
    classes: tuple[str, ...]  # English names; a label is an index into them
    classes_ko: tuple[str, ...]
    flip: bool  # whether a mirrored image keeps its class: a garment does, a digit does not
    channels: int = 1  # 1: grey; 3: sRGB
    grouped: bool = False  # whether images have a group, such as an object or a patient, that stays in one split
    resizing: Resizing = "none"  # of pictures of another size: none (they are refused), fit into it and pad, or crop
    ground: tuple[int, ...] = ()  # the value or the three values that padding has; empty: measured on the images

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image: (height, width) if grey, (height, width, 3) if in colour."""
        return (self.height, self.width) if self.channels == 1 else (self.height, self.width, self.channels)

    @property
    def row_group(self) -> int:
        """Number of rows in a full row group."""
        return max(1, min(ROW_GROUP, ROW_GROUP_BYTES // math.prod(self.shape)))

    @property
    def schema(self) -> pa.Schema:
        """Columns of a table, with the facts about the dataset as metadata."""
        text, label = pa.string(), pa.uint16()
        image = pa.binary(math.prod(self.shape))
        fields = [("image", image), ("label", label), ("given", label), ("id", text), ("source", text)]
        return pa.schema([*fields, *([("group", text)] if self.grouped else [])], metadata=self.metadata)

    @property
    def metadata(self) -> dict[bytes, str]:
        """The facts about the dataset as metadata of a Parquet schema."""
        return {_METADATA_KEY: json.dumps(asdict(self), ensure_ascii=False)}

    def require_shape(self, shape: tuple[int, ...], path: Path) -> None:
        """Refuse images of another height, width or number of colours. `path` is their file, for the message.

        Raises:
            DataError: names both shapes.
        """
        if shape != self.shape:
            raise DataError(
                f"{path} has images of another size",
                expected=f"{' x '.join(map(str, self.shape))} pixels: images are not resized",
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

    images: np.ndarray  # uint8 [n, *shape], read-only
    labels: np.ndarray  # uint16 [n]
    given: np.ndarray  # uint16 [n], labels before corrections
    ids: pa.Array  # string [n]
    sources: pa.Array  # string [n]
    groups: pa.Array | None  # string [n]; None if the dataset has no groups

    def __len__(self) -> int:
        return len(self.labels)


@contextmanager
def writer(path: Path, dataset: Dataset, schema: pa.Schema | None = None) -> Iterator["TableWriter"]:
    """Write a table in full row groups. The file `path` is created only if the block succeeds.

    Args:
        schema: columns other than those of a table; the first is `image`. For `TableWriter.write_columns`.
    """
    schema = schema or dataset.schema
    dictionaries = [name for name in ("label", "given", "source", "group") if name in schema.names]
    with (
        atomic_file(path) as partial,
        pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=dictionaries) as parquet,
    ):
        table = TableWriter(parquet, dataset, schema)
        yield table
        table.flush()


class TableWriter:
    """Collects rows until a row group is full. The bytes therefore do not depend on the sizes of the chunks."""

    def __init__(self, parquet: pq.ParquetWriter, dataset: Dataset, schema: pa.Schema) -> None:
        self._parquet, self._dataset, self._schema = parquet, dataset, schema
        self._pending: list[pa.RecordBatch] = []
        self._rows = 0

    def write(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        ids: pa.Array,
        sources: pa.Array,
        given: np.ndarray | None = None,
        groups: pa.Array | None = None,
    ) -> None:
        """Append rows to a table.

        Args:
            images: uint8 [n, *shape].
            labels: integers [n].
            ids, sources: string [n].
            given: the labels before corrections, integers [n]; None if they are the same.
            groups: string [n], of a grouped dataset only.
        """
        columns = [labels, labels if given is None else given, ids, sources]
        self.write_columns(images, *columns, *([] if groups is None else [groups]))

    def write_columns(self, images: np.ndarray, *columns: np.ndarray | pa.Array) -> None:
        """Append rows of the writer's schema. images: uint8 [n, *shape]; NumPy arrays of integers become uint16."""
        flat = images.reshape(len(images), math.prod(self._dataset.shape))
        arrays = [_labels_as_arrow(column) if isinstance(column, np.ndarray) else column for column in columns]
        arrays = [_from_buffer(flat, self._schema.field("image").type), *arrays]
        self._pending.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._rows += len(images)
        while self._rows >= self._dataset.row_group:
            self._write_group(self._dataset.row_group)

    def flush(self) -> None:
        """Write the remaining rows, or one empty row group if there are no rows."""
        if self._rows or self._parquet.writer is None:
            self._write_group(self._rows)

    def _write_group(self, rows: int) -> None:
        table = pa.Table.from_batches(self._pending, self._schema)
        self._parquet.write_table(table.slice(0, rows).combine_chunks(), row_group_size=self._dataset.row_group)
        rest = table.slice(rows)
        self._pending, self._rows = rest.to_batches(), len(rest)


def pixel_digests(images: np.ndarray) -> list[bytes]:
    """Return the SHA-1 of each image's pixels, 20 bytes; an id starts with it. images: uint8 [n, *shape]."""
    return [hashlib.sha1(image, usedforsecurity=False).digest() for image in np.ascontiguousarray(images)]


def strings(values: Sequence[str]) -> pa.Array:
    """Convert strings to a column for `TableWriter.write`. `pyarrow.array` would import pandas, which takes longer."""
    encoded = [value.encode() for value in values]
    offsets = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum([len(value) for value in encoded], out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers)


def filter_rows(column: pa.Array, mask: np.ndarray) -> pa.Array:
    """Select rows of a column. mask: bool [n]. Given NumPy's array, pyarrow would import pandas, which takes longer."""
    packed = pa.py_buffer(np.packbits(mask, bitorder="little"))
    return column.filter(pa.Array.from_buffers(pa.bool_(), len(mask), [None, packed]))


def are_among(numbers: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Do the same as `np.isin` in an eighth of its memory: bool [n]."""
    if not len(others):
        return np.zeros(len(numbers), bool)
    ordered = np.sort(others)
    places = np.searchsorted(ordered, numbers)
    return ordered[np.minimum(places, len(ordered) - 1)] == numbers


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
    plain: dict[str, Any] = {name: tuple(fact) if isinstance(fact, list) else fact for name, fact in facts.items()}
    return Dataset(**plain)


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
        """Read a row group: images uint8 [n, *shape] and labels uint16 [n], read-only."""
        with _open(self._path) as parquet:
            table = parquet.read_row_group(group, ["image", "label"])
        return image_column(table, self._dataset), label_column(table, "label")


def read_images(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a whole table: images uint8 [n, *shape] and labels uint16 [n]."""
    dataset = read_dataset(path)
    with _open(path) as parquet:
        table = parquet.read(["image", "label"])
    return image_column(table, dataset), label_column(table, "label")


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
    labels = label_column(table, "label")
    given = (
        label_column(table, "given") if "given" in table.column_names else labels
    )  # release 0.1.0 wrote no such column
    groups = table.column("group").combine_chunks() if dataset.grouped else None
    return Rows(image_column(table, dataset), labels, given, ids, sources, groups)


# Buffers are used directly, because pyarrow's own conversions import pandas, which takes a quarter of a second.


def label_column(table: pa.Table, name: str) -> np.ndarray:
    """Return a column of labels, uint16 or (in tables of release 0.1.0) uint8, as uint16 [n]."""
    column = table.column(name)
    return _to_numpy(column, np.dtype(f"u{column.type.bit_width // 8}")).astype(np.uint16, copy=False)


def image_column(table: pa.Table, dataset: Dataset) -> np.ndarray:
    """Return the column of images as uint8 [n, *shape]."""
    flat = _to_numpy(table.column("image"), np.dtype((np.void, math.prod(dataset.shape))))
    return flat.view(np.uint8).reshape(-1, *dataset.shape)


def _labels_as_arrow(labels: np.ndarray) -> pa.Array:
    return _from_buffer(labels.astype(np.uint16), pa.uint16())


def _from_buffer(values: np.ndarray, type_: pa.DataType) -> pa.Array:
    """Convert an array [n, ...] to n values of a type of the same width."""
    return pa.Array.from_buffers(type_, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _to_numpy(column: pa.ChunkedArray, type_: np.dtype) -> np.ndarray:
    """Convert a column to an array [n] of a type of the same width. A view if the column has one chunk."""
    pieces = [
        np.frombuffer(chunk.buffers()[1], type_)[chunk.offset : chunk.offset + len(chunk)]
        for chunk in column.chunks
        if len(chunk)
    ]
    return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, type_), *pieces])
