"""Recognise the form of a collection of labelled pictures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.data.sources import arrays, tables
from pipeline.data.sources.collection import Collection, find_split
from pipeline.data.sources.folders import ClassLevel, Listing, list_files, read_folders
from pipeline.errors import DataError

FORMS = (
    "a folder of pictures for each class (also within train/ and test/), a table (CSV, TSV, JSON lines, Parquet) of "
    "paths and classes, Parquet with embedded pictures, an .npz file, pairs of .npy files, or pairs of idx files"
)


@dataclass(frozen=True)
class Reading:
    """Options for reading a collection."""

    classes: Sequence[str] | None = None  # their names in the order of the labels
    group: str | None = None  # the column of a table that names the group of each picture
    class_level: ClassLevel | None = None  # the level of nested folders that names the class


def open_collection(path: Path, reading: Reading) -> Collection:
    """Recognise a collection. Pictures are not decoded yet.

    Raises:
        DataError: the form is unknown or ambiguous, or a file is damaged.
        OSError: a file or folder cannot be read.
    """
    if path.is_dir():
        return _open_folder(path, reading)
    if not path.is_file():
        raise DataError(f"{path} does not exist", expected=FORMS)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _without_groups(path, reading, arrays.read_npz(path, reading.classes))
    if suffix in tables.SUFFIXES:
        return _open_tables({path: None}, path.parent, reading)
    raise DataError(f"{path} has an unknown form", expected=FORMS)


def _open_folder(root: Path, reading: Reading) -> Collection:
    listing = list_files(root)
    files = {
        "/".join((*parts, name)): root.joinpath(*parts, name)
        for parts, names in listing.others.items()
        for name in names
    }
    if found := _find_tables(root, listing, files, reading.group):
        collection = _open_tables(found, root, reading)
        return replace(collection, left_out=_count_strays(listing, files, set(found)))
    if listing.pictures:
        return _without_groups(root, reading, read_folders(root, listing, reading.classes, reading.class_level))
    by_name = {path.name: path for path in files.values()}
    npz = [path for path in files.values() if path.suffix.lower() == ".npz"]
    used: set[Path]
    if npy := arrays.find_npy(by_name):
        used, collection = {path for pair in npy for path in pair}, arrays.read_npy(npy, root, reading.classes)
    elif pairs := arrays.find_idx(by_name):
        used, collection = {path for pair in pairs for path in pair}, arrays.read_idx(pairs, root, reading.classes)
    elif len(npz) == 1:
        used, collection = set(npz), arrays.read_npz(npz[0], reading.classes)
    else:
        raise DataError(
            f"{root} has an unknown form",
            expected=FORMS,
            found=f"{len(files)} files, none of which is a picture" if files else "no files",
        )
    left_out = _count_strays(listing, files, used)
    return replace(_without_groups(root, reading, collection), left_out=left_out)


def _find_tables(root: Path, listing: Listing, files: dict[str, Path], group: str | None) -> dict[Path, str | None]:
    """Return the tables of a folder that list or contain pictures, with the split in the name of each.

    Raises:
        DataError: there are several, and their names are not those of splits.
    """
    found = {}
    for path in files.values():
        is_parquet = path.suffix.lower() == ".parquet"
        is_near = path.parent == root or is_parquet
        if is_near and path.suffix.lower() in tables.SUFFIXES and _is_table(path, is_parquet):
            found[path] = find_split(path.stem.split("-")[0].split("_")[0])
    if len(found) > 1 and None in found.values():
        embedded = all(path.suffix.lower() == ".parquet" and tables.find_embedded(path) for path in found)
        if not embedded or len(set(found.values())) > 1:
            raise DataError(
                f"{root} has several tables",
                expected="one table, or one for each split with a name such as train.csv",
                found=", ".join(str(path.relative_to(root)) for path in list(found)[:5]),
                remedy="import one table by its path",
            )
    return found


def _is_table(path: Path, is_parquet: bool) -> bool:
    return bool((is_parquet and tables.find_embedded(path)) or tables.find_columns(path, None))


def _open_tables(files: dict[Path, str | None], root: Path, reading: Reading) -> Collection:
    embedded = [path.suffix.lower() == ".parquet" and bool(tables.find_embedded(path)) for path in files]
    read = tables.read_embedded if all(embedded) else tables.read_tables
    if len(files) == 1:  # the split is in a column; without one, all pictures are training pictures
        files = dict.fromkeys(files)
    return read(files, root, reading.classes, reading.group)


def _without_groups(path: Path, reading: Reading, collection: Collection) -> Collection:
    if reading.group is not None:
        raise DataError(
            f"cannot use the column {reading.group!r} for groups: {path} has no columns",
            expected="a table with columns for paths, classes and groups",
            remedy="leave out --group",
        )
    return collection


def _count_strays(listing: Listing, files: dict[str, Path], used: set[Path]) -> Counter[str]:
    kinds = Counter(f"{path.suffix.lower() or path.name} files" for path in files.values() if path not in used)
    return listing.left_out + kinds
