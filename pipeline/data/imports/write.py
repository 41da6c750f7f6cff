"""Write an import: two Parquet files, and the dataset's entry in the catalogue."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import own_files, table
from pipeline.data.catalog import OWN_FILES
from pipeline.data.imports.survey import Survey
from pipeline.data.table import Dataset
from pipeline.files import atomic_file, file_digest, format_yaml


@dataclass(frozen=True)
class About:
    """Facts about a dataset that the user of an import states."""

    name: str
    title: str = ""
    licence: str = ""
    source: str = ""
    flip: bool = False
    classes_ko: Sequence[str] = ()


@dataclass
class _Moments:
    """Sums for the mean and the standard deviation of pixels."""

    count: int = 0
    total: int = 0
    squares: int = 0

    def add(self, pixels: np.ndarray) -> None:
        counts = np.bincount(pixels.reshape(-1), minlength=256)
        values = np.arange(256)
        self.count += int(counts.sum())
        self.total += int(counts @ values)
        self.squares += int(counts @ values**2)

    def describe(self) -> tuple[float, float]:
        """Return mean and standard deviation as shares of 255, rounded to four decimals."""
        mean = self.total / self.count
        return round(mean / 255, 4), round(math.sqrt(self.squares / self.count - mean**2) / 255, 4)


def create_dataset(survey: Survey, about: About) -> Dataset:
    """Return the facts that are stored with the images."""
    height, width = survey.form.size
    return Dataset(
        name=about.name,
        height=height,
        width=width,
        classes=tuple(survey.pictures.classes),
        classes_ko=tuple(about.classes_ko),
        flip=about.flip,
        channels=survey.form.channels or 1,
        grouped=survey.groups is not None,
        resizing=survey.form.resizing,
        ground=survey.form.ground,
    )


def write_tables(survey: Survey, dataset: Dataset, folder: Path, advance: Callable[[int], None]) -> tuple[float, float]:
    """Write `train.parquet` and `test.parquet`. Rows are in the order of a hash of their pixels, so classes are mixed.

    Args:
        folder: the directory to write to, which exists.
        advance: called with the number of pictures that were written since the last call.

    Returns:
        mean and standard deviation of the training pictures, as shares of 255.
    """
    pictures = survey.pictures
    moments = _Moments()
    order = np.argsort(survey.measured.digests, kind="stable")
    for name, is_test in zip(OWN_FILES, (False, True), strict=True):
        rows = order[survey.is_kept[order] & (survey.is_test[order] == is_test)]
        with own_files.writer(folder / name, dataset) as writer:
            for start in range(0, len(rows), dataset.row_group):
                part = rows[start : start + dataset.row_group]
                images = _as_channels(pictures.pixels[part], dataset.channels)
                columns = [
                    pictures.labels[part],
                    table.strings([_printable(pictures.names[row]) for row in part]),
                    table.strings(pictures.file_digests[part].astype(str).tolist()),
                ]
                if survey.groups is not None:  # a picture without a group is a group of its own
                    names = [survey.groups[row] or survey.measured.digests[row].decode() for row in part]
                    columns.append(table.strings([_printable(name) for name in names]))
                writer.write_columns(images, *columns)
                if not is_test:
                    moments.add(images)
                advance(len(part))
    return moments.describe()


def _as_channels(images: np.ndarray, channels: int) -> np.ndarray:
    return np.ascontiguousarray(images) if channels == 3 or images.ndim == 3 else images[..., 0]


def _printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()  # a file's name may be bytes that are not UTF-8


def create_entry(
    survey: Survey, dataset: Dataset, about: About, folder: Path, moments: tuple[float, float]
) -> dict[str, Any]:
    """Return the facts of the dataset's entry in the catalogue."""
    classes: list[Any] = list(dataset.classes)
    if dataset.classes_ko:
        classes = [{"en": en, "ko": ko} for en, ko in zip(dataset.classes, dataset.classes_ko, strict=True)]
    mean, std = moments
    facts: dict[str, Any] = {"title": about.title or about.name}
    facts |= {"page": about.source} if about.source else {}
    facts |= {"licence": about.licence} if about.licence else {}
    return facts | {
        "height": dataset.height,
        "width": dataset.width,
        "channels": dataset.channels,
        "resizing": dataset.resizing,
        "ground": list(dataset.ground),
        "grouped": dataset.grouped,
        "train": int(survey.count(test=False).sum()),
        "test": int(survey.count(test=True).sum()),
        "mean": mean,
        "std": std,
        "flip": dataset.flip,
        "classes": classes,
        "files": [
            {"name": name, "bytes": (folder / name).stat().st_size, "sha256": file_digest(folder / name)}
            for name in OWN_FILES
        ],
    }


def write_entry(path: Path, facts: dict[str, Any]) -> None:
    """Write an entry of the catalogue. The same facts give the same bytes."""
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write("# Written by `pipeline data import`. Title, page, licence and names may be edited.\n")
        file.write(format_yaml(facts))
