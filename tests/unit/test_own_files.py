"""The Parquet files of imported data."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import own_files, table
from pipeline.data.table import Dataset
from pipeline.errors import DataError

PARTS = Dataset("parts", 8, 9, ("bolt", "nut"), (), flip=True, channels=3, grouped=True)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), np.uint8)


@pytest.fixture
def file(tmp_path: Path, images: np.ndarray) -> Path:
    path, count = tmp_path / "train.parquet", len(images)
    files, digests, groups = ([f"{prefix}{row // 2}" for row in range(count)] for prefix in ("a/", "f", "object "))
    with own_files.writer(path, PARTS) as rows:
        rows.write_columns(images, np.arange(count) % 2, *map(table.strings, (files, digests, groups)))
    return path


def test_what_an_import_writes_is_read_back(file: Path, images: np.ndarray) -> None:
    ((found, labels, groups),) = own_files.stream(file, PARTS)
    assert (found == images).all()
    assert labels.tolist() == [0, 1] * 3
    assert groups is not None
    assert groups.to_pylist() == ["object 0", "object 0", "object 1", "object 1", "object 2", "object 2"]
    assert table.read_dataset(file) == PARTS


def test_edited_names_are_accepted(file: Path) -> None:
    ((_, labels, _),) = own_files.stream(file, replace(PARTS, classes=("Bolt", "Nut"), classes_ko=("볼트", "너트")))
    assert len(labels) == 6


@pytest.mark.parametrize("change", [{"width": 8}, {"channels": 1}, {"grouped": False}])
def test_a_file_of_another_shape_is_refused(file: Path, change: dict[str, int]) -> None:
    with pytest.raises(DataError, match=r"(?s)columns of imported data.*fixed_size_binary\[216\]"):
        list(own_files.stream(file, replace(PARTS, **change)))
    with pytest.raises(DataError, match=r"(?s)another size.*found:    8 x 9 x 3"):
        list(own_files.stream(file, replace(PARTS, height=9, width=8)))


def test_a_label_out_of_range_is_refused(tmp_path: Path, images: np.ndarray) -> None:
    path = tmp_path / "train.parquet"
    with own_files.writer(path, PARTS) as rows:
        rows.write_columns(images, np.arange(6), *[table.strings("abcdef")] * 3)
    with pytest.raises(DataError, match=r"(?s)labels out of range.*found:    2 at position 2"):
        list(own_files.stream(path, PARTS))
