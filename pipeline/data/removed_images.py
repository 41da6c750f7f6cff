"""The images that a correction removed: `removed.csv` beside the tables in `data/dataset/`, if there are any.

`validate` counts them among the official images, and `split` draws its thresholds with them.
"""

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

REMOVED = "removed.csv"


@dataclass(frozen=True)
class Removed:
    """An image that a correction removed."""

    split: str  # `train` or `test`
    id: str
    given: int
    source: str
    group: str  # empty if the dataset has no groups
    row: int  # its position among the images of its source in this split, from 0


def write_removed(directory: Path, removed: Sequence[Removed]) -> None:
    """Write the list of removed images into the directory of the tables. An empty list has no file."""
    if removed:
        with (directory / REMOVED).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([column.name for column in fields(Removed)])
            writer.writerows(astuple(image) for image in removed)


def read_removed(directory: Path) -> list[Removed]:
    """Read the list of removed images from the directory of the tables."""
    if not (directory / REMOVED).exists():
        return []
    with (directory / REMOVED).open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return [
            Removed(row["split"], row["id"], int(row["given"]), row["source"], row["group"], int(row["row"]))
            for row in rows
        ]
