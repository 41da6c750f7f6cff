"""Images and labels on disk: Parquet files, written and read by row group, that say which dataset they belong to.

Columns: `image` fixed_size_binary(height*width), row-major grey values; `label` uint8; `id` string, the SHA-1 of the
pixels and its occurrence (`SHA1-0`, `SHA1-1` for an exact duplicate); `source` string, `official` or a batch's name.
The dataset's facts travel in the file's own metadata, so a split can be understood without its neighbours.
"""

import json
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
    """What the images are, whatever their number."""

    name: str  # names the registered model: `fashion-mnist`, `tiny`, `fashion-mnist-local-1a2b3c4d`
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


@dataclass(frozen=True)
class Rows:
    """Some consecutive rows of a table."""

    images: np.ndarray  # uint8 [n, height, width], read-only
    labels: np.ndarray  # uint8 [n]
    ids: pa.Array  # string [n]
    sources: pa.Array  # string [n]

    def __len__(self) -> int:
        return len(self.labels)


@contextmanager
def writer(path: Path, dataset: Dataset) -> Iterator["TableWriter"]:
    """Write a table; it appears under `path` only when the block succeeds. Row groups hold `ROW_GROUP` rows."""
    with atomic_file(path) as partial:
        with pq.ParquetWriter(partial, dataset.schema, compression="zstd", use_dictionary=["label", "source"]) as parquet:
            table = TableWriter(parquet, dataset)
            yield table
            table.flush()


class TableWriter:
    """Collects rows until a row group is full, so that the bytes do not depend on how the rows arrived."""

    def __init__(self, parquet: pq.ParquetWriter, dataset: Dataset) -> None:
        self._parquet, self._dataset = parquet, dataset
        self._pending: list[pa.RecordBatch] = []
        self._rows = 0

    def write(self, images: np.ndarray, labels: np.ndarray, ids: Sequence[str] | pa.Array, sources: pa.Array) -> None:
        """Append rows. images: uint8 [n, height, width]; labels: uint8 [n]; ids and sources: string [n]."""
        pixels = self._dataset.height * self._dataset.width
        flat = np.ascontiguousarray(images, dtype=np.uint8).reshape(len(labels), pixels)
        column = pa.Array.from_buffers(pa.binary(pixels), len(flat), [None, pa.py_buffer(flat)])
        columns = [column, pa.array(labels, pa.uint8()), pa.array(ids, pa.string()), pa.array(sources, pa.string())]
        self._pending.append(pa.RecordBatch.from_arrays(columns, schema=self._dataset.schema))
        self._rows += len(flat)
        while self._rows >= ROW_GROUP:
            self._write_group(ROW_GROUP)

    def flush(self) -> None:
        if self._rows or self._parquet.writer is None:
            self._write_group(self._rows)

    def _write_group(self, rows: int) -> None:
        table = pa.Table.from_batches(self._pending, self._dataset.schema)
        self._parquet.write_table(table.slice(0, rows).combine_chunks(), row_group_size=ROW_GROUP)
        rest = table.slice(rows)
        self._pending, self._rows = rest.to_batches(), len(rest)


def read_dataset(path: Path) -> Dataset:
    """The facts of the dataset that a table belongs to.

    Raises:
        DataError: the file is missing, damaged, or not one of ours.
    """
    with _open(path) as parquet:
        metadata = parquet.schema_arrow.metadata or {}
    if _METADATA_KEY not in metadata:
        raise DataError(f"{path} is not a table of this pipeline", expected="dataset metadata in the Parquet schema")
    facts = json.loads(metadata[_METADATA_KEY])
    return Dataset(**{**facts, "classes": tuple(facts["classes"]), "classes_ko": tuple(facts["classes_ko"])})


def count_rows(path: Path) -> int:
    """Number of images in a table, from its footer alone."""
    with _open(path) as parquet:
        return int(parquet.metadata.num_rows)


def stream(path: Path) -> Iterator[Rows]:
    """The rows of a table, one row group in memory at a time."""
    dataset = read_dataset(path)
    with _open(path) as parquet:
        for group in range(parquet.num_row_groups):
            yield _rows(parquet.read_row_group(group), dataset)


def read_images(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A whole table: images uint8 [n, height, width] and labels uint8 [n]."""
    dataset = read_dataset(path)
    with _open(path) as parquet:
        table = parquet.read(["image", "label"])
    return _images(table, dataset), _labels(table)


def read_ids(path: Path) -> list[str]:
    """The ids of a whole table, in its order."""
    with _open(path) as parquet:
        return parquet.read(["id"]).column("id").to_pylist()


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing", remedy="dvc repro") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is damaged", found=str(error), remedy=f"rm {path} && dvc checkout") from None


def _rows(table: pa.Table, dataset: Dataset) -> Rows:
    ids, sources = (table.column(name).combine_chunks() for name in ("id", "source"))
    return Rows(_images(table, dataset), _labels(table), ids, sources)


def _images(table: pa.Table, dataset: Dataset) -> np.ndarray:
    chunks = [
        np.frombuffer(chunk.buffers()[1], np.uint8).reshape(-1, dataset.height, dataset.width)[
            chunk.offset : chunk.offset + len(chunk)
        ]
        for chunk in table.column("image").chunks
        if len(chunk)
    ]
    if len(chunks) == 1:
        return chunks[0]
    return np.concatenate([np.empty((0, dataset.height, dataset.width), np.uint8), *chunks])


def _labels(table: pa.Table) -> np.ndarray:
    return table.column("label").to_numpy()
