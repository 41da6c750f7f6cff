"""Counts of the corrections that `ingest` applied: `corrections.csv` beside the tables in `data/dataset/`, if any.

`validate` puts them into its report, from which the model card has them.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

APPLIED = "corrections.csv"


@dataclass(frozen=True)
class Applied:
    """Images that one person corrected from one class to another."""

    split: str  # `train` or `test`
    given: str  # class before
    label: str  # class after; empty: removed
    who: str
    images: int


def write_applied(directory: Path, applied: Sequence[Applied]) -> None:
    """Write the counts into the directory of the tables. Without corrections, there is no file."""
    if applied:
        with (directory / APPLIED).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([column.name for column in fields(Applied)])
            writer.writerows(astuple(count) for count in applied)


def read_applied(directory: Path) -> list[Applied]:
    """Read the counts from the directory of the tables. Empty if no correction was applied."""
    if not (directory / APPLIED).exists():
        return []
    with (directory / APPLIED).open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return [Applied(row["split"], row["given"], row["label"], row["who"], int(row["images"])) for row in rows]


def count_by_class(applied: Iterable[Applied]) -> dict[str, int]:
    """Count corrected images by class: `Shirt to Coat`, `Shirt removed`, and `… (test)` in the test split."""
    counts: Counter[str] = Counter()
    for one in applied:
        change = f"{one.given} to {one.label}" if one.label else f"{one.given} removed"
        counts[change + (" (test)" if one.split == "test" else "")] += one.images
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def count_by_person(applied: Iterable[Applied]) -> dict[str, int]:
    """Count corrected images by the person who corrected them."""
    counts: Counter[str] = Counter()
    for one in applied:
        counts[one.who or "not recorded"] += one.images
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def summarise_applied(applied: Sequence[Applied]) -> str:
    """Summarise corrections in one line: `12 images relabelled, 3 removed, by reader-1 (10), reader-2 (5)`."""
    relabelled, removed = (sum(one.images for one in applied if bool(one.label) == kept) for kept in (True, False))
    people = ", ".join(f"{who} ({images:,})" for who, images in count_by_person(applied).items())
    return f"{relabelled:,} images relabelled, {removed:,} removed, by {people}"
