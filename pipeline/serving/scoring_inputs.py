"""Inputs of batch scoring: folders, tables and arrays of pictures without labels, divided into partitions."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data import idx, table
from pipeline.data.batch_formats import IMAGES
from pipeline.data.decoders import decoding, open_npy, open_npz, read_names
from pipeline.data.sources import tables
from pipeline.data.sources.arrays import PAIRS
from pipeline.data.sources.folders import list_files
from pipeline.data.table import Dataset
from pipeline.errors import DataError
from pipeline.serving.scoring_partitions import Files, NpyRows, Partition, Pixels, RowGroups

ROWS, PICTURES = 32_768, 4_096  # in a partition of arrays, of encoded pictures
PARTITION_BYTES = 2**27  # of pixels, the most in a partition of arrays
FORMS = (
    "a folder of pictures or of Parquet files; a table of paths (CSV, TSV, JSON lines, Parquet); Parquet with embedded "
    "pictures, or a table of this pipeline; an .npy, .npz or idx file of uint8 arrays"
)
NAMES = tuple(dict.fromkeys(images for images, _ in PAIRS))  # of the array with the pictures in an .npz file

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ScoringInput:
    """Pictures to score."""

    form: str  # for messages
    rows: int
    fingerprint: str  # SHA-256 of the names, sizes and times of the files. Reading all contents would take as long
    partitions: Callable[[], Iterator[Partition]]  # the same ones every time
    left_out: Counter[str] = field(default_factory=Counter)  # files that are not read, by kind


def open_input(path: Path, shape: Shape) -> ScoringInput:
    """Recognise an input. Pictures are not decoded yet.

    Args:
        shape: of the images that the model takes. It is the shape of pixels in Parquet that does not state one.

    Raises:
        DataError: the form is unknown, a file is damaged, or there are no pictures.
        OSError: a file or folder cannot be read.
    """
    if path.is_dir():
        found = _open_folder(path, shape)
    elif not path.is_file():
        raise DataError(f"{path} does not exist", expected=FORMS)
    elif path.suffix.lower() == ".parquet":
        found = _open_parquet([path], shape)
    elif path.suffix.lower() in tables.SUFFIXES:
        found = _open_table(path)
    else:
        found = _open_arrays(path)
    if not found.rows:
        raise DataError(f"{path} has no pictures", expected=FORMS, found=_describe(found.left_out))
    return found


def _describe(left_out: Counter[str]) -> str:
    return ", ".join(f"{number:,} {kind}" for kind, number in left_out.most_common(5)) or "nothing"


def _open_folder(root: Path, shape: Shape) -> ScoringInput:
    listing = list_files(root)
    others = {"/".join((*parts, name)): name for parts, names in listing.others.items() for name in names}
    if not listing.pictures:
        files = [root / name for name in sorted(others) if name.lower().endswith(".parquet")]
        return (
            _open_parquet(files, shape) if files else ScoringInput("a folder", 0, "", lambda: iter(()), _kinds(others))
        )
    folders = [("/".join(parts), names) for parts, names in sorted(listing.pictures.items())]

    def names() -> Iterator[str]:
        for folder, files in folders:
            yield from (f"{folder}/{file}" if folder else file for file in files)

    def partitions() -> Iterator[Partition]:
        for ids in _batched(names(), PICTURES):
            paths = [f"{root}/{name}" for name in ids]
            yield Files([name.encode(errors="surrogateescape").decode(errors="replace") for name in ids], paths)

    fingerprint, rows = _fingerprint((name, root / name) for name in names())
    return ScoringInput("a folder of pictures", rows, fingerprint, partitions, listing.left_out + _kinds(others))


def _kinds(names: Iterable[str]) -> Counter[str]:
    return Counter(f"{Path(name).suffix.lower() or Path(name).name} files" for name in names)


def _open_table(path: Path) -> ScoringInput:
    """Open a table of paths, relative to the table. A column `id` names the rows; else the paths do."""
    folder, names = path.parent, tables.read_header(path)
    picture, identity = _find_column(names, tables.PATHS), _find_column(names, ("id",))
    if picture is None:
        raise DataError(
            f"{path} has no column of paths", expected=f"one of {', '.join(tables.PATHS)}", found=", ".join(names)
        )

    def rows() -> Iterator[tuple[str, str]]:
        for number, row in enumerate(tables.read_rows(path), 1):
            place = str(row.get(picture) or "").strip()
            name = str(row[identity]) if identity and row.get(identity) is not None else place or f"row {number}"
            yield name, str(folder / place) if place else ""

    def partitions() -> Iterator[Partition]:
        for part in _batched(rows(), PICTURES):
            ids, places = zip(*part, strict=True)
            yield Files(ids, places)

    listed = ((identity, Path(place)) for identity, place in rows())
    fingerprint, count = _fingerprint(chain([(path.name, path)], listed))
    return ScoringInput("a table of paths", count - 1, fingerprint, partitions)


def _open_parquet(files: Sequence[Path], shape: Shape) -> ScoringInput:
    partitions: list[Partition] = []
    form, row = "", 0
    for file in files:
        with decoding(file, "a Parquet file"), pq.ParquetFile(file) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
        picture, identity = _find_column(schema.names, tables.PATHS), _find_column(schema.names, ("id",))
        kind = schema.field(picture).type if picture else None
        if kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            if len(files) == 1:
                return _open_table(file)
            kind = None
        dataset = _find_pixels(file, schema, kind, shape)
        if picture is None or kind is None or (dataset is None and not tables.is_embedded(kind)):
            raise DataError(
                f"{file} has no column of pictures",
                expected=f"{', '.join(tables.PATHS)}, with encoded pictures, paths, or {math.prod(shape):,} bytes",
                found=", ".join(f"{one.name} ({one.type})" for one in schema),
            )
        form = "a table of pixels" if dataset else "Parquet with embedded pictures"
        if identity and not pa.types.is_string(schema.field(identity).type):
            identity = None
        limit = min(ROWS, max(1, PARTITION_BYTES // math.prod(dataset.shape))) if dataset else PICTURES
        for groups in _join_groups(
            [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], limit
        ):
            partitions.append(RowGroups(file, groups, row, picture, identity, dataset))
            row += sum(metadata.row_group(group).num_rows for group in groups)
    fingerprint, _ = _fingerprint((file.name, file) for file in files)
    return ScoringInput(form, row, fingerprint, lambda: iter(partitions))


def _find_pixels(file: Path, schema: pa.Schema, kind: pa.DataType | None, shape: Shape) -> Dataset | None:
    """Return the dataset of a column of pixels, which has their shape. None if the column is another one."""
    if kind is None or not pa.types.is_fixed_size_binary(kind):
        return None
    with suppress(DataError):  # if it is not a table of this pipeline
        return table.read_dataset(file)
    if kind.byte_width != math.prod(shape):
        return None
    return Dataset("", shape[0], shape[1], (), (), flip=False, channels=shape[2] if len(shape) == 3 else 1)


def _join_groups(sizes: Sequence[int], limit: int) -> Iterator[tuple[int, ...]]:
    """Join neighbouring row groups as long as they have at most `limit` rows together."""
    joined: list[int] = []
    for group, size in enumerate(sizes):
        if joined and sum(sizes[one] for one in joined) + size > limit:
            yield tuple(joined)
            joined = []
        joined.append(group)
    if joined:
        yield tuple(joined)


def _open_arrays(path: Path) -> ScoringInput:
    fingerprint, _ = _fingerprint([(path.name, path)])
    if path.suffix.lower() == ".npy":
        with open_npy(path) as array:
            shape = array.shape
            _require_pictures(path, shape, array.dtype, fortran=array.fortran)
        rows = _count_rows(shape)

        def slices() -> Iterator[Partition]:
            for start in range(0, shape[0], rows):
                yield NpyRows(path, start, min(start + rows, shape[0]))

        return ScoringInput("an .npy file", shape[0], fingerprint, slices)
    if path.suffix.lower() == ".npz":
        stored = read_names(path)
        named = [name for name in NAMES if name in stored]
        if len(named) != 1:
            raise DataError(
                f"cannot find the pictures in {path}",
                expected=f"one of the arrays {', '.join(NAMES)}",
                found=", ".join(sorted(stored)[:8]),
            )
        with open_npz(path, named[0]) as (array,):
            shape = array.shape
            _require_pictures(path, shape, array.dtype, fortran=array.fortran)

        def read() -> Iterator[np.ndarray]:
            with open_npz(path, named[0]) as (array,):
                for start in range(0, shape[0], _count_rows(shape)):
                    yield array.read(min(_count_rows(shape), shape[0] - start))

        return ScoringInput("an .npz file", shape[0], fingerprint, lambda: _number(read()))
    if path.name.removesuffix(".gz").endswith(IMAGES):
        shape = idx.read_shape(path, 3)
        return ScoringInput(
            "an idx file", shape[0], fingerprint, lambda: _number(idx.stream(path, 3, _count_rows(shape)))
        )
    raise DataError(f"{path} has an unknown form", expected=FORMS)


def _number(arrays: Iterator[np.ndarray]) -> Iterator[Partition]:
    row = 0
    for pixels in arrays:
        yield Pixels(pixels, row)
        row += len(pixels)


def _count_rows(shape: Shape) -> int:
    return max(1, min(ROWS, PARTITION_BYTES // max(1, math.prod(shape[1:]))))


def _require_pictures(path: Path, shape: Shape, dtype: np.dtype, *, fortran: bool) -> None:
    has_pictures = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if dtype != np.uint8 or not has_pictures or fortran or not all(shape[1:]):
        raise DataError(
            f"{path} is not an array of pictures",
            expected="uint8 [n, height, width] or [n, height, width, 1 or 3] in C order",
            found=f"{dtype} {list(shape)}{' in Fortran order' * fortran}",
        )


def _find_column(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    plain = {name.lower().replace("_", "").replace(" ", ""): name for name in reversed(names)}
    return next((plain[name] for name in wanted if name in plain), None)


def _batched(values: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while part := list(islice(values, size)):
        yield part


def _fingerprint(files: Iterable[tuple[str, Path]]) -> tuple[str, int]:
    """Return the SHA-256 of the names, sizes and times of files, and their number. files: name and path."""
    digest, count = hashlib.sha256(), 0
    for name, path in files:
        try:
            facts = path.stat(follow_symlinks=False)
            about = f"{facts.st_size} {facts.st_mtime_ns}"
        except (OSError, ValueError):
            about = "cannot be read"
        digest.update(f"{name}\0{about}\n".encode(errors="surrogateescape"))
        count += 1
    return digest.hexdigest(), count
