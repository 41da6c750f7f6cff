"""The two Parquet files of imported data: `train.parquet` and `test.parquet` in `data/own/NAME/`.

Columns: `image` fixed_size_binary(height*width*channels), row-major, grey or sRGB; `label` uint16; `file` string, the
picture's path below the imported directory; `file_sha256` string; `group` string, only in a grouped dataset. The facts
about the dataset are in the file's metadata. Row groups are as long as those of a table (`pipeline.data.table`).
"""

import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data import table
from pipeline.data.catalog import Entry
from pipeline.data.table import Dataset, TableWriter
from pipeline.errors import DataError
from pipeline.files import file_digest

OWN = Path("data/own")


def writer(path: Path, dataset: Dataset) -> AbstractContextManager[TableWriter]:
    """Write a file by `TableWriter.write_columns(images, labels, files, digests)`, and groups if it has them.

    The file is created only if the block succeeds.
    """
    return table.writer(path, dataset, _schema(dataset))


def find(entry: Entry, directory: Path) -> tuple[Path, Path]:
    """Return the training and the test file of imported data, after a check of their digests.

    Args:
        entry: of the catalogue.
        directory: `dataset.path`.

    Raises:
        DataError: a file is missing, or has another content than at the import.
    """
    home = OWN / entry.name
    pointer = shlex.quote(f"{home}.dvc")
    for file in entry.files:
        path = directory / file.name
        if not path.is_file():
            here = directory.absolute() == home.absolute()
            raise DataError(
                f"{path} is missing" if here else f"dataset.path is {directory}, which does not hold {entry.name}",
                expected=str(home / file.name),
                remedy=f"dvc checkout {pointer}, or dvc pull {pointer} if another machine has it"
                if here
                else f"set dataset.path to {home} in params.yaml",
            )
        if (digest := file_digest(path)) != file.sha256:
            raise DataError(
                f"{path} is not the file that its catalogue entry describes",
                expected=f"SHA-256 {file.sha256}",
                found=digest,
                remedy=f"dvc checkout --force {pointer}, or import the pictures again: pipeline data import",
            )
    train, test = (directory / file.name for file in entry.files)
    return train, test


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
