"""Readers of tables of pictures and labels: CSV, TSV, JSON lines and Parquet, also with embedded pictures."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.decoders import IMAGE_SUFFIXES, decoding
from pipeline.data.sources.collection import (
    CHUNK,
    TRAIN,
    Chunk,
    Collection,
    find_labels,
    find_split,
    number_labels,
)
from pipeline.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
# Names of columns, in the order of preference. Case, spaces and underscores are ignored.
PATHS = ("path", "file", "filename", "filepath", "imagepath", "imagefile", "image", "img", "picture", "name")
LABELS = ("label", "class", "category", "classname", "labelname", "target", "finelabel", "y")
SPLIT = ("split", "subset", "set", "partition", "usage")
EXPECTED = f"columns for the picture ({', '.join(PATHS[:3])}, …) and its class ({', '.join(LABELS[:3])}, …)"
_MOST_CELL = 2**17  # characters; the limit of the csv module


@dataclass(frozen=True)
class Columns:
    """The names of the columns of a table."""

    picture: str
    label: str
    split: str | None
    group: str | None


@dataclass
class _Rows:
    """The rows of one or more tables, in their order."""

    paths: list[str]
    labels: list[str]
    splits: list[str]
    groups: list[str]


def find_columns(path: Path, group: str | None) -> Columns | None:
    """Return the columns of a table of pictures. None if it has no columns for pictures and labels.

    Args:
        group: the column with the groups; None if there is none.

    Raises:
        DataError: the file is damaged, or lacks the column `group`.
    """
    names = read_header(path)
    plain = {name.lower().replace("_", "").replace(" ", ""): name for name in reversed(names)}
    picture, label, split = (
        next((plain[name] for name in wanted if name in plain and plain[name] != group), None)
        for wanted in (PATHS, LABELS, SPLIT)
    )
    if picture is None or label is None:
        return None
    if group is not None and group not in names:
        raise DataError(f"{path} has no column {group!r} for the groups", expected=f"one of {', '.join(names)}")
    return Columns(picture, label, split, group)


def read_tables(
    files: Mapping[Path, str | None], root: Path, classes: Sequence[str] | None = None, group: str | None = None
) -> Collection:
    """Read a collection whose tables list the paths of its pictures, relative to the tables.

    Args:
        files: the tables and their splits; None if a column has the split, or if all pictures are training pictures.
        root: the directory that must contain the pictures.
        classes: their names in the order of the labels; None takes those of the tables.
        group: the column with the groups.

    Raises:
        DataError: a table is damaged or lacks columns, a cell is empty, or a path leads out of `root`.
    """
    rows = _Rows([], [], [], [])
    for file, split in files.items():
        columns = find_columns(file, group)
        if columns is None:
            raise DataError(f"{file} lacks columns", expected=EXPECTED, found=", ".join(read_header(file)))
        _append(rows, file, columns, split)
    names, labels = find_labels(classes, set(rows.labels), next(iter(files)))
    numbers = np.fromiter((labels[label] for label in rows.labels), np.int64, len(rows.labels))
    order = sorted(range(len(numbers)), key=rows.splits.__getitem__)  # a chunk is of one split

    def chunks() -> Iterator[Chunk]:
        inside = _Inside(root)
        for split, members in _by_split(order, rows.splits):
            for start in range(0, len(members), CHUNK):
                part = members[start : start + CHUNK]
                places = [rows.paths[row] for row in part]
                yield Chunk(
                    [os.path.relpath(place, root) for place in places],
                    [inside.require(place) for place in places],
                    numbers[part],
                    split,
                    [rows.groups[row] for row in part] if group else None,
                )

    form = "a table of pictures and their classes" if len(files) == 1 else "tables of pictures and their classes"
    return Collection(form, names, Counter(rows.splits), chunks)


def _by_split(order: Sequence[int], splits: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    members: dict[str, list[int]] = {}
    for row in order:
        members.setdefault(splits[row], []).append(row)
    yield from members.items()


class _Inside:
    """Refuses paths that lead out of a directory, by `..`, as absolute paths, or through links."""

    def __init__(self, root: Path) -> None:
        self._root, self._checked = root.resolve(), set[str]()

    def require(self, place: str) -> Path:
        folder = os.path.dirname(place)
        if folder not in self._checked:
            if not Path(folder).resolve().is_relative_to(self._root):
                raise DataError(
                    f"{place} is outside the collection",
                    expected=f"pictures in {self._root}",
                    remedy="copy them there, or import the folder that contains both",
                )
            self._checked.add(folder)
        return Path(place)


def _append(rows: _Rows, file: Path, columns: Columns, split: str | None) -> None:
    folder = os.path.abspath(file.parent)
    for number, row in enumerate(read_rows(file), 1):
        path, label = _cell(row, columns.picture), _cell(row, columns.label)
        if not path or not label:
            raise DataError(
                f"row {number} of {file} has no {columns.label if path else columns.picture}",
                expected="a picture and a class in every row",
            )
        if not (_is_text(path) and _is_text(label)):
            raise DataError(
                f"row {number} of {file} has a {'class' if _is_text(path) else 'path'} that is not text",
                expected="characters that UTF-8 can store, other than NUL",
                found=ascii(label if _is_text(path) else path),
            )
        word = _cell(row, columns.split) if columns.split and not split else split or TRAIN
        found = find_split(word)
        if not found:
            raise DataError(
                f"row {number} of {file} has an unknown split", expected="train, validation or test", found=repr(word)
            )
        rows.paths.append(os.path.normpath(os.path.join(folder, path)))
        rows.labels.append(label)
        rows.splits.append(found)
        if columns.group:
            rows.groups.append(_cell(row, columns.group))


def _cell(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if isinstance(value, float) and value.is_integer():  # a column of numbers with gaps
        value = int(value)
    return "" if value is None else str(value).strip()


def _is_text(value: str) -> bool:
    """Return False for lone surrogates and NUL, which JSON can escape."""
    return "\0" not in value and value.encode(errors="replace").decode() == value


def read_header(path: Path) -> list[str]:
    """Return the names of a table's columns."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        with decoding(path, "a Parquet file"), pq.ParquetFile(path) as parquet:
            return list(parquet.schema_arrow.names)
    if suffix in (".jsonl", ".ndjson"):
        first = next(read_rows(path), {})
        return list(first)
    return _sniff(path)[0]


def read_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a table, one at a time.

    Raises:
        DataError: it is damaged.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _read_parquet_rows(path)
    elif suffix in (".jsonl", ".ndjson"):
        yield from _read_json_lines(path)
    else:
        yield from _read_csv_rows(path)


def _read_json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                with decoding(path, "a JSON object in every line", problem=f"is damaged in line {number}"):
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"a {type(row).__name__}")
                yield row


def _sniff(path: Path) -> tuple[list[str], str, bool]:
    """Return the columns of a CSV or TSV file, its separator, and True if its first line names them.

    In a file without column names, the columns are path, class and, optionally, split.
    """
    with decoding(path, "a CSV file in UTF-8"), path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline(_MOST_CELL)
        separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
        names = next(csv.reader([first], delimiter=separator), [])
    if names and names[0].lower().endswith(IMAGE_SUFFIXES):
        return [*PATHS[:1], *LABELS[:1], *SPLIT[:1]][: len(names)], separator, False
    return [name.strip() for name in names], separator, True


def _read_csv_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    names, separator, is_named = _sniff(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        while True:
            with decoding(path, "a CSV file in UTF-8", problem=f"is damaged in line {reader.line_num + 1}"):
                cells = next(reader, None)
            if cells is None:
                return
            if cells and not (is_named and reader.line_num == 1):
                yield dict(zip(names, cells, strict=False))


def _read_parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with decoding(path, "a Parquet file"):
        parquet = pq.ParquetFile(path)
    with parquet:
        wanted = [field.name for field in parquet.schema_arrow if not pa.types.is_nested(field.type)]
        for group in range(parquet.num_row_groups):
            with decoding(path, "a Parquet file"):
                table = parquet.read_row_group(group, columns=wanted)
            yield from table.to_pylist()


# Parquet with embedded pictures, as the dataset hubs write it.


def find_embedded(path: Path) -> Columns | None:
    """Return the columns of a Parquet file whose pictures are embedded. None if it has none."""
    with decoding(path, "a Parquet file"), pq.ParquetFile(path) as parquet:
        schema = parquet.schema_arrow
    plain = {name.lower().replace("_", ""): name for name in reversed(schema.names)}
    pictures = [name for name in PATHS if name in plain and is_embedded(schema.field(plain[name]).type)]
    labels = [name for name in LABELS if name in plain]
    split = next((plain[name] for name in SPLIT if name in plain), None)
    return Columns(plain[pictures[0]], plain[labels[0]], split, None) if pictures and labels else None


def is_embedded(kind: pa.DataType) -> bool:
    """Return True for a column of encoded pictures: binary values, or structs with `bytes`."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def read_embedded(
    files: Mapping[Path, str | None], root: Path, classes: Sequence[str] | None = None, group: str | None = None
) -> Collection:
    """Read a collection whose Parquet files contain encoded pictures: a struct with `bytes`, or binary values.

    The names of the classes are in the metadata that Hugging Face's `datasets` writes, or are the labels themselves.

    Args:
        files: the Parquet files and their splits; None means that a column says it, or training.
        root: the directory that the names of pictures are relative to.
        classes: their names in the order of the labels; None takes those of the metadata.
        group: the column with the groups.

    Raises:
        DataError: a file is damaged or lacks columns.
    """
    first = next(iter(files))
    found: set[Any] = set()
    counts: Counter[str] = Counter()
    columns = {}
    for file, split in files.items():
        columns[file] = column = _require_embedded(file, split, group)
        for table in _stream_parquet(file, [column.label, *([column.split] if column.split else [])]):
            found |= {value for value in table.column(column.label).unique().to_pylist() if value is not None}
            counts.update(_read_splits(table, column, split, file))
    given = classes or _names_in_metadata(first, columns[first].label)
    if given and all(type(value) is int for value in found):
        names, labels = number_labels(given, found, first)
    else:
        names, labels = find_labels(classes, set(map(str, found)), first)

    def chunks() -> Iterator[Chunk]:
        for file, split in files.items():
            column = columns[file]
            wanted = [column.picture, column.label, *filter(None, (column.split, column.group))]
            row = 0
            for table in _stream_parquet(file, wanted):
                pictures = [embedded_bytes(value) for value in table.column(column.picture).to_pylist()]
                numbers = [
                    _number(value, labels, f"{file}[{row + place}]")
                    for place, value in enumerate(table.column(column.label).to_pylist())
                ]
                groups = table.column(column.group).to_pylist() if column.group else None
                source = file.relative_to(root) if file != root else Path(file.name)
                for of_part, members in _by_split(range(len(table)), _read_splits(table, column, split, file)):
                    yield Chunk(
                        [f"{source}[{row + member}]" for member in members],
                        [pictures[member] for member in members],
                        np.array([numbers[member] for member in members], np.int64),
                        of_part,
                        None
                        if groups is None
                        else ["" if groups[member] is None else str(groups[member]) for member in members],
                    )
                row += len(pictures)

    return Collection("Parquet with embedded pictures", names, counts, chunks)


def _read_splits(table: pa.Table, columns: Columns, split: str | None, file: Path) -> list[str]:
    """Return the split of each row: that of the file, or that of the column."""
    if not columns.split:
        return [split or TRAIN] * len(table)
    words = {word: find_split(str(word)) for word in table.column(columns.split).unique().to_pylist()}
    if unknown := [word for word, found in words.items() if not found]:
        raise DataError(f"{file} has an unknown split", expected="train, validation or test", found=repr(unknown[0]))
    return [words[word] or TRAIN for word in table.column(columns.split).to_pylist()]


def _require_embedded(file: Path, split: str | None, group: str | None) -> Columns:
    found = find_embedded(file)
    names = read_header(file)
    if found is None:
        raise DataError(f"{file} lacks columns", expected=EXPECTED, found=", ".join(names))
    if group is not None and group not in names:
        raise DataError(f"{file} has no column {group!r} for the groups", expected=f"one of {', '.join(names)}")
    return Columns(found.picture, found.label, None if split or found.split == group else found.split, group)


def embedded_bytes(value: Any) -> bytes:
    """Return the encoded picture in a value of such a column. Empty if there is none."""
    content = value.get("bytes") if isinstance(value, dict) else value
    return content or b""  # the decoder refuses empty content and names the picture


def _number(value: Any, labels: Mapping[str, int], name: str) -> int:
    if value is None:
        raise DataError(f"{name} has no class", expected="a class in every row")
    return labels[str(value)]


def _stream_parquet(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    """Yield columns of a Parquet file, at most `CHUNK` rows at a time."""
    with decoding(path, "a Parquet file"):
        parquet = pq.ParquetFile(path)
    with parquet:
        batches = parquet.iter_batches(CHUNK, columns=columns)
        while True:
            with decoding(path, "a Parquet file"):
                batch = next(batches, None)
            if batch is None:
                return
            yield pa.Table.from_batches([batch])


def _names_in_metadata(path: Path, column: str) -> list[str] | None:
    """Return the names of the classes that Hugging Face's `datasets` stores, in the order of the labels.

    Format: {"info": {"features": {COLUMN: {"_type": "ClassLabel", "names": […]}}}}.
    """
    with decoding(path, "a Parquet file"), pq.ParquetFile(path) as parquet:
        content = (parquet.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(content)["info"]["features"][column]["names"] if content else None
    except (ValueError, LookupError, TypeError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
