"""The two Parquet files of imported data: `train.parquet` and `test.parquet` in `data/own/NAME/`.

Columns: `image` fixed_size_binary(height*width*channels), row-major, grey or sRGB; `label` uint16; `file` string, the
picture's path below the imported directory; `file_sha256` string; `group` string, only in a grouped dataset. The facts
about the dataset are in the file's metadata. Row groups are as long as those of a table (`pipeline.data.table`).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data import table
from pipeline.data.table import Dataset, TableWriter
from pipeline.errors import DataError

OWN = Path("data/own")


def writer(path: Path, dataset: Dataset) -> AbstractContextManager[TableWriter]:
    """Write a file by `TableWriter.write_columns(images, labels, files, digests)`, and groups if it has them.

    The file is created only if the block succeeds.
    """
    return table.writer(path, dataset, _schema(dataset))


def stream(path: Path, dataset: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray, pa.Array | None]]:
    """Yield images, labels and groups, one row group in memory at a time.

    Args:
        dataset: as the catalogue has it. Names and other facts may have been edited since the import.

    Yields:
        images uint8 [n, *shape], labels uint16 [n], and groups, string [n], or None.

    Raises:
        DataError: the file is missing or damaged, has other columns or another shape, or a label is out of range.
    """
    expected, found = _schema(dataset), table.read_schema(path)
    if not found.equals(expected):
        raise DataError(
            f"{path} does not have the columns of imported data",
            expected=", ".join(f"{field.name}: {field.type}" for field in expected),
            found=", ".join(f"{field.name}: {field.type}" for field in found),
            remedy="correct its catalogue entry, or import the pictures again: pipeline data import",
        )
    dataset.require_shape(table.read_dataset(path).shape, path)
    first = 0
    for rows in table.stream_columns(path, [name for name in expected.names if not name.startswith("file")]):
        labels = table.label_column(rows, "label")
        dataset.require_labels(labels, path, first)
        first += len(labels)
        groups = rows.column("group").combine_chunks() if dataset.grouped else None
        yield table.image_column(rows, dataset), labels, groups


def _schema(dataset: Dataset) -> pa.Schema:
    kept = [field for field in dataset.schema if field.name in ("image", "label")]
    fields = [*kept, pa.field("file", pa.string()), pa.field("file_sha256", pa.string())]
    group = [pa.field("group", pa.string())] if dataset.grouped else []
    return pa.schema([*fields, *group], metadata=dataset.metadata)
