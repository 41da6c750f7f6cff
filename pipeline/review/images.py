"""The images of a review: the training images, and on request the test images, without their pixels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import table
from pipeline.data.removed_images import read_removed
from pipeline.data.table import Dataset
from pipeline.review.items import Split

TABLES: dict[Split, Path] = {"train": Path("data/dataset/train.parquet"), "test": Path("data/dataset/test.parquet")}
VALIDATION = Path("data/splits/validation.parquet")


@dataclass(frozen=True)
class Images:
    """The images of one table, in its order."""

    dataset: Dataset
    split: Split
    ids: list[str]
    labels: np.ndarray  # uint16 [n], corrections included
    given: np.ndarray  # uint16 [n], before corrections
    groups: list[str]  # of a grouped dataset, else empty
    official_rows: np.ndarray  # int64 [n], position among the official images before corrections; -1: unknown, or none

    def __len__(self) -> int:
        return len(self.ids)

    def official_row(self, row: int) -> int | None:
        """Return the position of an image among the official ones, from 0. None if it is of a batch, or unknown."""
        found = int(self.official_rows[row])
        return found if found >= 0 else None


def read_images(split: Split, *, windowed: bool) -> Images:
    """Read the columns of a table in `data/dataset/` except its pixels.

    Args:
        windowed: `dataset.window` leaves some training images out, so that their positions are unknown.

    Raises:
        DataError: the table is missing or damaged.
    """
    path = TABLES[split]
    dataset = table.read_dataset(path)
    names = ["label", "given", "id", "source", *(["group"] if dataset.grouped else [])]
    labels: list[np.ndarray] = []
    given: list[np.ndarray] = []
    ids: list[str] = []
    groups: list[str] = []
    is_official: list[bool] = []
    for rows in table.stream_columns(path, names):
        labels.append(table.label_column(rows, "label"))
        given.append(table.label_column(rows, "given" if "given" in rows.column_names else "label"))  # release 0.1.0
        ids += rows.column("id").to_pylist()
        is_official += [source == table.OFFICIAL for source in rows.column("source").to_pylist()]
        groups += rows.column("group").to_pylist() if dataset.grouped else []
    positions = np.full(len(ids), -1)
    if split == "test" or not windowed:
        removed = [one.row for one in read_removed(path.parent) if (one.split, one.source) == (split, table.OFFICIAL)]
        count = sum(is_official)
        positions[np.array(is_official, bool)] = np.setdiff1d(np.arange(count + len(removed)), removed)
    return Images(dataset, split, ids, np.concatenate(labels), np.concatenate(given), groups, positions)


def read_validation_ids() -> set[str]:
    """Read the ids of the validation split. Empty if the data is not split yet."""
    return set(table.read_ids(VALIDATION)) if VALIDATION.exists() else set()
