"""Partitions of the input of batch scoring.

A partition is a small value with paths and positions, so that it can be sent to a process. Only the arrays of
compressed files, which cannot be read from the middle, are sent with their pixels.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data import table
from pipeline.data.decoders import decoding
from pipeline.data.sources import tables
from pipeline.data.table import Dataset

CHUNK = 256  # encoded pictures that are decoded together

Pictures = np.ndarray | Sequence[Path] | Sequence[bytes]  # pixels uint8 [n, height, width(, 3)], files, or encoded
Block = tuple[pa.Array, Pictures]  # ids: string [n]; and their pictures


class Partition(Protocol):
    """A part of an input."""

    def read(self) -> Iterator[Block]:
        """Yield the pictures of the partition in their order, a few in memory at a time."""


@dataclass(frozen=True)
class Files(Partition):
    """Pictures in files."""

    ids: Sequence[str]
    paths: Sequence[str]  # an empty path: the table has none in this row

    def read(self) -> Iterator[Block]:
        for start in range(0, len(self.ids), CHUNK):
            part = slice(start, start + CHUNK)
            yield table.strings(self.ids[part]), [Path(path) for path in self.paths[part]]


@dataclass(frozen=True)
class RowGroups(Partition):
    """Row groups of a Parquet file."""

    path: Path
    groups: tuple[int, ...]
    first: int  # position of the first row among all rows of the input
    picture: str  # column
    id: str | None  # column; None: positions are the ids
    dataset: Dataset | None  # of a table with pixels; None: the pictures are encoded

    def read(self) -> Iterator[Block]:
        columns = [self.picture, *([self.id] if self.id else [])]
        rows, row = (self.dataset.row_group if self.dataset else CHUNK), self.first
        with decoding(self.path, "a Parquet file"), pq.ParquetFile(self.path) as parquet:
            for batch in parquet.iter_batches(rows, row_groups=self.groups, columns=columns, use_threads=False):
                ids = batch.column(self.id) if self.id else _positions(row, len(batch))
                row += len(batch)
                if self.dataset:
                    images = pa.Table.from_batches([batch.select([self.picture]).rename_columns(["image"])])
                    yield ids, table.image_column(images, self.dataset)
                else:
                    yield ids, [tables.embedded_bytes(value) for value in batch.column(self.picture).to_pylist()]


@dataclass(frozen=True)
class NpyRows(Partition):
    """Rows of an `.npy` file."""

    path: Path
    start: int
    stop: int

    def read(self) -> Iterator[Block]:
        with decoding(self.path, "an .npy file"):
            pixels = np.load(self.path, mmap_mode="r", allow_pickle=False)[self.start : self.stop]
        yield from Pixels(pixels, self.start).read()


@dataclass(frozen=True)
class Pixels(Partition):
    """Pixels that are sent with the partition."""

    pixels: np.ndarray  # uint8 [n, height, width], or [n, height, width, 1 or 3]
    first: int

    def read(self) -> Iterator[Block]:
        pixels = self.pixels[..., 0] if self.pixels.shape[3:] == (1,) else self.pixels
        rows = max(1, min(table.ROW_GROUP, table.ROW_GROUP_BYTES // math.prod(pixels.shape[1:])))
        for start in range(0, len(pixels), rows):
            part = np.asarray(pixels[start : start + rows])
            yield _positions(self.first + start, len(part)), part


def _positions(first: int, rows: int) -> pa.Array:
    numbers = np.arange(first, first + rows, dtype=np.int64)
    return pa.Array.from_buffers(pa.int64(), rows, [None, pa.py_buffer(numbers)]).cast(pa.string())
