"""Labels of answered images, which come later."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from pipeline.data.traffic import Label, add_labels, read_labels


def label(request: str, name: str, index: int = 0) -> Label:
    return Label(request, index, name, "reader-1", "2026-03-03T12:00:00+00:00")


def test_the_latest_label_of_an_image_counts(tmp_path: Path) -> None:
    directory = tmp_path / "feedback"
    assert read_labels(directory) == {}
    add_labels(directory, [label("a", "가방"), label("a", "Shirt", 1)])
    add_labels(directory, [label("a", "Coat")])
    assert {key: found.label for key, found in read_labels(directory).items()} == {("a", 0): "Coat", ("a", 1): "Shirt"}


def test_a_name_with_a_line_separator_loses_no_label(tmp_path: Path) -> None:
    add_labels(tmp_path, [replace(label("a", "Coat"), who="reader\u2028\x851"), label("b", "Coat")])
    assert set(read_labels(tmp_path)) == {("a", 0), ("b", 0)}


def test_a_torn_line_is_skipped(tmp_path: Path) -> None:
    add_labels(tmp_path, [label("a", "가방"), label("b", "Coat")])
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        assert set(read_labels(tmp_path)) <= {("a", 0), ("b", 0)}
    file.write_bytes(whole[:-20])
    add_labels(tmp_path, [label("c", "Coat")])
    assert set(read_labels(tmp_path)) == {("a", 0), ("c", 0)}


def test_many_writers_mix_no_lines(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: add_labels(tmp_path, [label(str(number), "Coat")]), range(300)))
    assert len(read_labels(tmp_path)) == 300
