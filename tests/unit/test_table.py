"""Images and labels as Parquet."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data import table
from pipeline.errors import DataError
from pipeline.files import file_digest

DATASET = table.Dataset("shapes", 4, 5, ("a", "b"), ("가", "나"), flip=True)


def write(path: Path, images: np.ndarray, labels: np.ndarray, step: int) -> None:
    with table.writer(path, DATASET) as rows:
        for start in range(0, len(labels), step):
            part = slice(start, start + step)
            count = len(labels[part])
            ids = [f"{start + row}-0" for row in range(count)]
            rows.write(images[part], labels[part], ids, pa.array([table.OFFICIAL] * count))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20_000, 4, 5), dtype=np.uint8)


def test_what_is_written_is_read_back(tmp_path: Path, images: np.ndarray) -> None:
    labels = (np.arange(len(images)) % 2).astype(np.uint8)
    write(tmp_path / "t.parquet", images, labels, step=3333)
    read, read_labels = table.read_images(tmp_path / "t.parquet")
    assert (read == images).all()
    assert (read_labels == labels).all()
    assert table.read_dataset(tmp_path / "t.parquet") == DATASET
    assert table.count_rows(tmp_path / "t.parquet") == len(images)
    streamed = list(table.stream(tmp_path / "t.parquet"))
    assert [len(rows) for rows in streamed] == [table.ROW_GROUP, table.ROW_GROUP, len(images) - 2 * table.ROW_GROUP]
    assert (np.concatenate([rows.images for rows in streamed]) == images).all()
    assert [id_ for rows in streamed for id_ in rows.ids.to_pylist()] == table.read_ids(tmp_path / "t.parquet")


def test_colours_corrected_labels_groups_and_many_classes_are_read_back(tmp_path: Path) -> None:
    names = tuple(map(str, range(1000)))
    dataset = table.Dataset("parts", 64, 48, names, (), flip=True, channels=3, grouped=True)
    assert dataset.shape == (64, 48, 3)
    count = dataset.row_group + 5
    assert (count - 5) * 64 * 48 * 3 <= 2**25 < (count - 4) * 64 * 48 * 3
    images = np.random.default_rng(1).integers(0, 256, (count, *dataset.shape), dtype=np.uint8)
    given = np.arange(count) % 1000
    labels = np.where(given == 999, 0, given)
    groups = [f"object {row // 2}" for row in range(count)]
    texts = table.strings(groups), table.strings(["official"] * count)
    with table.writer(tmp_path / "t.parquet", dataset) as rows:
        rows.write(images, labels, *texts, given, texts[0])
    assert table.read_dataset(tmp_path / "t.parquet") == dataset
    full, rest = table.stream(tmp_path / "t.parquet")
    assert (len(full), len(rest)) == (dataset.row_group, 5)
    assert (np.concatenate([full.images, rest.images]) == images).all()
    assert (np.concatenate([full.labels, rest.labels]) == labels).all()
    assert (np.concatenate([full.given, rest.given]) == given).all()
    assert [group for part in (full, rest) if part.groups for group in part.groups.to_pylist()] == groups


def test_a_table_of_release_0_1_0_can_be_read(tmp_path: Path) -> None:
    """It has labels of eight bits, no labels as given, and fewer facts."""
    images = np.arange(40, dtype=np.uint8).reshape(2, 20)
    facts = {"name": "shapes", "height": 4, "width": 5, "classes": ["a", "b"], "classes_ko": ["가", "나"], "flip": True}
    columns = {
        "image": pa.array([bytes(image) for image in images], pa.binary(20)),
        "label": pa.array([1, 0], pa.uint8()),
        "id": ["0-0", "1-0"],
        "source": [table.OFFICIAL] * 2,
    }
    old = pa.table(columns).replace_schema_metadata({"dataset": json.dumps(facts)})
    pa.parquet.write_table(old, tmp_path / "t.parquet")
    assert table.read_dataset(tmp_path / "t.parquet") == DATASET
    (rows,) = table.stream(tmp_path / "t.parquet")
    assert (rows.images == images.reshape(2, 4, 5)).all()
    assert rows.labels.tolist() == rows.given.tolist() == [1, 0]
    assert rows.labels.dtype == np.uint16


def test_the_bytes_do_not_depend_on_how_rows_arrive(tmp_path: Path, images: np.ndarray) -> None:
    labels = np.zeros(len(images), np.uint8)
    for step in (1000, 8192, 20_000):
        with table.writer(tmp_path / f"{step}.parquet", DATASET) as rows:
            for start in range(0, len(labels), step):
                part = slice(start, start + step)
                ids = [str(row) for row in range(start, min(start + step, len(labels)))]
                rows.write(images[part], labels[part], ids, pa.array(["official"] * len(ids)))
    assert len({file_digest(path) for path in tmp_path.glob("*.parquet")}) == 1


def test_an_empty_table_can_be_read(tmp_path: Path) -> None:
    with table.writer(tmp_path / "t.parquet", DATASET):
        pass
    images, labels = table.read_images(tmp_path / "t.parquet")
    assert images.shape == (0, 4, 5)
    assert labels.shape == (0,)


def test_missing_and_damaged_tables_are_named(tmp_path: Path, images: np.ndarray) -> None:
    with pytest.raises(DataError, match="is missing"):
        table.read_dataset(tmp_path / "none.parquet")
    path = tmp_path / "t.parquet"
    write(path, images, np.zeros(len(images), np.uint8), step=5000)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="is damaged"):
        table.read_images(path)


def test_a_foreign_table_is_refused(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="is not a table of this pipeline"):
        table.read_dataset(tmp_path / "t.parquet")
