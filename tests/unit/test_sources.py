"""Collections as people have them: each form is recognised, and what could mean two things is refused."""

import gzip
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.data import idx
from pipeline.data.sources.collection import Collection
from pipeline.data.sources.recognise import Reading, open_collection
from pipeline.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), np.uint8)
LABELS = np.array([0, 1, 0, 1, 0, 1])


def put(*paths: Path) -> None:
    """Write a picture to each path."""
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[number % len(IMAGES)]).save(path)


def listed(collection: Collection) -> list[tuple[str, str, str]]:
    """Name, class and split of every picture."""
    return [
        (name, collection.classes[label], chunk.split)
        for chunk in collection.chunks()
        for name, label in zip(chunk.names, chunk.labels.tolist(), strict=True)
    ]


def read(path: Path, **reading: object) -> Collection:
    return open_collection(path, Reading(**reading))  # type: ignore[arg-type]


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    put(tmp_path / "b/1.png", tmp_path / "b/0.JPG", tmp_path / "a/deeper/2.webp", tmp_path / "a/.hidden.png")
    for stray in ("Thumbs.db", "README.txt", "a/__MACOSX/x.png"):
        (tmp_path / stray).parent.mkdir(exist_ok=True)
        (tmp_path / stray).write_bytes(b"x")
    (tmp_path / "b/link.png").symlink_to(tmp_path / "b/1.png")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    collection = read(tmp_path)
    assert listed(collection) == [
        ("a/deeper/2.webp", "a", "train"),
        ("b/0.JPG", "b", "train"),
        ("b/1.png", "b", "train"),
    ]
    assert collection.left_out == Counter(
        {"hidden files and files of the operating system": 3, "links": 2, ".txt files": 1}
    )


@pytest.mark.parametrize(
    ("folders", "found"),
    [
        (["2026/b", "2026/a"], {("a", "train"), ("b", "train")}),
        (
            ["train/a", "train/b", "test/a", "Validation/b"],
            {("a", "train"), ("b", "train"), ("a", "test"), ("b", "validation")},
        ),
        (["x/train/a", "x/test/a"], {("a", "train"), ("a", "test")}),
        (["a/train", "b/train", "a/test"], {("a", "train"), ("b", "train"), ("a", "test")}),
        (["a/one", "a/two", "b/three"], {("a", "train"), ("b", "train")}),
        (["10", "9"], {("9", "train"), ("10", "train")}),
    ],
)
def test_levels_of_folders(tmp_path: Path, folders: list[str], found: set[tuple[str, str]]) -> None:
    put(*(tmp_path / folder / "x.png" for folder in folders))
    assert {(label, split) for _, label, split in listed(read(tmp_path))} == found


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["a", "."], "pictures outside the folders"),
        (["train", "test"], "pictures outside the folders"),
        (["train/a", "other/a"], "folders for splits and other folders beside them"),
        (["2025/a", "2025/b", "2026/a", "2026/b"], "either of two levels"),
    ],
)
def test_folders_that_could_mean_something_else_are_refused(tmp_path: Path, folders: list[str], message: str) -> None:
    put(*(tmp_path / folder / "x.png" for folder in folders))
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_the_level_of_the_classes_can_be_given(tmp_path: Path) -> None:
    put(*(tmp_path / folder / "x.png" for folder in ("2025/a", "2025/b", "2026/a", "2026/b")))
    assert read(tmp_path, class_level="last").classes == ("a", "b")
    assert read(tmp_path, class_level="first").classes == ("2025", "2026")


ROWS = [("p/0.png", "볼트", "train", "x"), ("p/1.png", "bolt, long", "test", "x"), ("p/2.png", "볼트", "val", "y")]


def write_csv(path: Path) -> None:
    path.write_text("﻿File Name,Class,Split,thing\n" + "".join(f'{a},"{b}",{c},{d}\n' for a, b, c, d in ROWS))


def write_tsv(path: Path) -> None:
    path.write_text("path\tlabel\tsplit\tthing\n" + "".join("\t".join(row) + "\n" for row in ROWS))


def write_json_lines(path: Path) -> None:
    names = ("file_name", "label", "split", "thing")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in ROWS))


def write_parquet(path: Path) -> None:
    columns = zip(("image", "category", "subset", "thing"), zip(*ROWS, strict=True), strict=True)
    pq.write_table(pa.table({name: list(values) for name, values in columns}), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("t.csv", write_csv), ("t.tsv", write_tsv), ("t.jsonl", write_json_lines), ("t.parquet", write_parquet)],
)
def test_tables(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    put(*(tmp_path / row[0] for row in ROWS), tmp_path / "p/unlisted.png")
    write(tmp_path / name)
    wanted = {(path, label, split.replace("val", "validation")) for path, label, split, _ in ROWS}
    for path in (tmp_path, tmp_path / name):
        collection = read(path, group="thing")
        assert set(listed(collection)) == wanted
        groups = {
            name: group
            for chunk in collection.chunks()
            for name, group in zip(chunk.names, chunk.groups or [], strict=True)
        }
        assert groups == {"p/0.png": "x", "p/1.png": "x", "p/2.png": "y"}


def test_a_table_without_names_of_columns_and_one_for_each_split(tmp_path: Path) -> None:
    put(tmp_path / "0.png", tmp_path / "1.png")
    (tmp_path / "train.csv").write_text("0.png;0\n")
    (tmp_path / "test.csv").write_text("1.png;1\n")
    collection = read(tmp_path, classes=("cat", "dog"))
    assert sorted(listed(collection)) == [("0.png", "cat", "train"), ("1.png", "dog", "test")]


@pytest.mark.parametrize("place", ["../secret.png", "/etc/hosts.png", "out/secret.png"])
def test_a_table_cannot_read_files_outside_its_folder(tmp_path: Path, place: str) -> None:
    put(tmp_path / "secret.png", tmp_path / "mine/a.png")
    (tmp_path / "mine/out").symlink_to(tmp_path)
    (tmp_path / "mine/t.csv").write_text(f"path,label\na.png,x\n{place},y\n")
    with pytest.raises(DataError, match="is outside the collection"):
        listed(read(tmp_path / "mine"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\na.png,\n", "row 1 of .* has no label"),
        ("path,label,split\na.png,x,somewhere\n", "unknown split"),
        ("this,that\n1,2\n", "unknown form|lacks columns"),
        ('path,label\n"a.png,x\n', "damaged|has no label"),
        (b"path,label\n\xff\xfe,x\n", "damaged"),
    ],
)
def test_malformed_tables_are_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    for path in (tmp_path, tmp_path / "t.csv"):
        with pytest.raises(DataError, match=message):
            listed(read(path))


def test_parquet_with_embedded_pictures(tmp_path: Path) -> None:
    put(tmp_path / "x.png")
    picture = {"bytes": (tmp_path / "x.png").read_bytes(), "path": None}
    (tmp_path / "x.png").unlink()
    features = {"info": {"features": {"label": {"names": ["disc", "ring"], "_type": "ClassLabel"}}}}
    table = pa.table({"img": [picture] * 4, "label": [1, 0, 1, 1], "thing": ["a", "a", None, "b"]})
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        name = tmp_path / f"data/{split}-00000-of-00001.parquet"
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), name, row_group_size=3)
    collection = read(tmp_path, group="thing")
    assert collection.classes == ("disc", "ring")
    assert collection.counts == {"train": 4, "test": 4}
    assert Counter((label, split) for _, label, split in listed(collection))["ring", "test"] == 3
    assert all(content == picture["bytes"] for chunk in collection.chunks() for content in chunk.pictures)
    assert [group for chunk in collection.chunks() for group in chunk.groups or []] == 2 * ["a", "a", "", "b"]


def test_a_column_says_the_split_of_embedded_pictures(tmp_path: Path) -> None:
    splits = ["train", "test", "val", "Test"]
    columns = {"image": [b"a", b"b", b"c", b"d"], "label": ["x", "y", "x", "x"], "split": splits, "thing": list("pqrs")}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=2)
    collection = read(tmp_path / "t.parquet", group="thing")
    assert collection.counts == {"train": 1, "validation": 1, "test": 2}
    rows = {
        (name, collection.classes[label], chunk.split, content, group)
        for chunk in collection.chunks()
        for name, label, content, group in zip(
            chunk.names, chunk.labels, chunk.pictures, chunk.groups or [], strict=True
        )
    }
    assert rows == {
        ("t.parquet[0]", "x", "train", b"a", "p"),
        ("t.parquet[1]", "y", "test", b"b", "q"),
        ("t.parquet[2]", "x", "validation", b"c", "r"),
        ("t.parquet[3]", "x", "test", b"d", "s"),
    }
    pq.write_table(pa.table(columns | {"split": ["train", "test", None, "test"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"(?s)unknown split.*found: +None"):
        read(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").rename(tmp_path / "train.parquet")
    pq.write_table(pa.table(columns), tmp_path / "test.parquet")
    assert read(tmp_path).counts == {"train": 4, "test": 4}


def test_a_number_in_parquet_is_a_label_even_if_another_class_has_this_name(tmp_path: Path) -> None:
    names = sorted(map(str, range(12)))  # as Hugging Face's `datasets` sorts folders: 0, 1, 10, 11, 2, ...
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    table = pa.table({"image": [{"bytes": b"x", "path": None}] * 12, "label": range(12)})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "a.parquet")
    pq.write_table(table, tmp_path / "b.parquet")
    for collection in (read(tmp_path / "a.parquet"), read(tmp_path / "b.parquet", classes=names)):
        assert [label for _, label, _ in listed(collection)] == names
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": [0, -1]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"(?s)labels out of range.*found: +-1"):
        read(tmp_path / "b.parquet", classes=names)


def write_keras(folder: Path) -> Path:
    names = ("x_train", "y_train", "x_test", "y_test")
    arrays = (IMAGES[:4], LABELS[:4, None].astype(np.uint8), IMAGES[4:], LABELS[4:, None])
    np.savez_compressed(folder / "a.npz", **dict(zip(names, arrays, strict=True)))
    return folder / "a.npz"


def write_ours(folder: Path) -> Path:
    np.savez(
        folder / "a.npz",
        images=IMAGES[:4, ..., :1],
        labels=LABELS[:4],
        test_images=IMAGES[4:, ..., :1],
        test_labels=LABELS[4:],
    )
    return folder


def write_npy(folder: Path) -> Path:
    for name, array in (
        ("X_train", IMAGES[:4]),
        ("y_train", LABELS[:4]),
        ("X_test", IMAGES[4:]),
        ("y_test", LABELS[4:]),
    ):
        np.save(folder / f"{name}.npy", array)
    return folder


def write_idx(folder: Path) -> Path:
    for name, part in (("train", slice(0, 4)), ("t10k", slice(4, 6))):
        idx.write(folder / f"{name}-images-idx3-ubyte", IMAGES[part, ..., 0])
        idx.write(folder / f"{name}-labels-idx1-ubyte", LABELS[part])
    labels = folder / "t10k-labels-idx1-ubyte"
    (folder / f"{labels.name}.gz").write_bytes(gzip.compress(labels.read_bytes()))
    labels.unlink()
    return folder


@pytest.mark.parametrize("write", [write_keras, write_ours, write_npy, write_idx])
def test_arrays(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    collection = read(write(tmp_path), classes=("cat", "dog"))
    chunks = list(collection.chunks())
    assert [label for _, label, _ in listed(collection)] == ["cat", "dog"] * 3
    assert collection.counts == {"train": 4, "test": 2}
    assert collection.is_numbered
    pixels = np.concatenate([np.asarray(chunk.pictures) for chunk in chunks])
    assert (pixels == (IMAGES if pixels.ndim == 4 else IMAGES[..., 0])).all()
    assert read(write(tmp_path)).classes == ("0", "1")


def test_large_pictures_in_arrays_are_read_in_small_chunks(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((3, 2048, 2048, 3), np.uint8), labels=[0, 1, 0])
    chunks = read(tmp_path / "a.npz").chunks()
    assert [len(chunk.pictures) for chunk in chunks] == [2, 1]
    np.savez_compressed(tmp_path / "b.npz", images=np.zeros((1, 7072, 7072), np.uint8), labels=[0])
    with pytest.raises(DataError, match=r"too large(?s:.*)50,000,000 pixels"):
        read(tmp_path / "b.npz")


@pytest.mark.parametrize(
    "arrays",
    [
        {"x_train": IMAGES.astype(np.float32), "y_train": LABELS},
        {"x_train": IMAGES, "y_train": LABELS[:5]},
        {"x_train": IMAGES, "y_train": LABELS - 1},
        {"x_train": IMAGES, "y_train": np.eye(6)[LABELS]},
        {"x_train": IMAGES.transpose(0, 3, 1, 2), "y_train": LABELS},
        {"x_train": np.array([None] * 6), "y_train": LABELS},
        {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:, :4], "y_test": LABELS},
        {"something": IMAGES},
    ],
)
def test_arrays_that_are_not_pictures_and_labels_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    for path in (tmp_path / "a.npz", tmp_path):
        with pytest.raises(DataError):
            listed(read(path))


@pytest.mark.parametrize(
    ("path", "label", "found"),
    [("a\0.png", "x", "path"), ("a\ud800.png", "x", "path"), ("a.png", "x\ud800", "class")],
)
def test_names_that_are_not_text_are_refused(tmp_path: Path, path: str, label: str, found: str) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"path": path, "label": label}))
    with pytest.raises(DataError, match=f"row 1 of .* has a {found} that is not text"):
        read(tmp_path / "t.jsonl")


def test_a_folder_with_a_name_in_another_encoding_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "tea/0.png")
    try:
        put(tmp_path / os.fsdecode(b"caf\xe9") / "1.png")
    except OSError:
        pytest.skip("the file system has only names in UTF-8")
    with pytest.raises(DataError, match=r"not text(?s:.*)'caf\\udce9'"):
        read(tmp_path)


def test_names_must_be_those_of_the_collection(tmp_path: Path) -> None:
    put(tmp_path / "a/0.png", tmp_path / "b/1.png")
    assert read(tmp_path, classes=("b", "a", "c")).classes == ("b", "a", "c")
    with pytest.raises(DataError, match=r"(?s)not among the given names.*found: +b"):
        read(tmp_path, classes=("a", "c"))


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "missing")
    (tmp_path / "x.zip").touch()
    with pytest.raises(DataError, match="unknown form"):
        read(tmp_path / "x.zip")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="unknown form"):
        read(tmp_path)
