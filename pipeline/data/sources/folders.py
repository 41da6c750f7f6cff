"""Reader of a folder of pictures for each class, also with folders for splits and nested folders.

The folders above a picture name its split and its class. Folders that contain all pictures are skipped. Names such as
`train` and `test` are splits. The first of the other folders is the class.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.data.decoders import IMAGE_SUFFIXES
from pipeline.data.sources.collection import CHUNK, TRAIN, Chunk, Collection, find_labels, find_split
from pipeline.errors import DataError

ClassLevel = Literal["first", "last"]
EXPECTED = "a folder of pictures for each class, also within train/ and test/"

STRAYS = ("Thumbs.db", "desktop.ini", "__MACOSX")  # files that operating systems create in folders

Parts = tuple[str, ...]  # names of folders


@dataclass
class Listing:
    """The regular files below a directory. Links are not followed."""

    pictures: dict[Parts, list[str]] = field(default_factory=dict)  # sorted file names, by folder
    others: dict[Parts, list[str]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)  # by kind


def list_files(root: Path) -> Listing:
    """List a directory and all below it.

    Raises:
        OSError: a folder cannot be read.
    """
    listing = Listing()
    _list(root, (), listing)
    return listing


def _list(directory: Path, parts: Parts, listing: Listing) -> None:
    with os.scandir(directory) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    pictures: list[str] = []
    for entry in entries:
        name = entry.name
        if name.startswith(".") or name in STRAYS:
            listing.left_out["hidden files and files of the operating system"] += 1
        elif entry.is_symlink():
            listing.left_out["links"] += 1
        elif entry.is_dir(follow_symlinks=False):
            _list(directory / name, (*parts, name), listing)
        elif not entry.is_file(follow_symlinks=False):
            listing.left_out["devices, pipes and sockets"] += 1
        elif name.lower().endswith(IMAGE_SUFFIXES):
            pictures.append(name)
        else:
            listing.others.setdefault(parts, []).append(name)
    if pictures:
        listing.pictures[parts] = pictures


def read_folders(
    root: Path, listing: Listing, classes: Sequence[str] | None = None, level: ClassLevel | None = None
) -> Collection:
    """Read a collection with a folder for each class.

    Args:
        listing: of `root`.
        classes: their names in the order of the labels; None sorts the names of the folders.
        level: the level of nested folders that names the class. None takes the first, and refuses folders of which both
            the first and the last level could be meant.

    Raises:
        DataError: pictures are outside the folders of the classes, or it is not clear which folders are the classes.
    """
    meanings = _interpret(root, list(listing.pictures), level)
    found = {name for _, name in meanings.values()}
    for name in sorted(found):
        if name.encode(errors="replace").decode() != name:
            raise DataError(
                f"{root} has a folder whose name is not text",
                expected="names in UTF-8",
                found=ascii(name),
                remedy="rename the folder",
            )
    names, labels = find_labels(classes, found, root)
    counts: Counter[str] = Counter()
    for folder, (split, _) in meanings.items():
        counts[split] += len(listing.pictures[folder])

    def chunks() -> Iterator[Chunk]:
        for folder, files in listing.pictures.items():
            split, name = meanings[folder]
            directory, prefix = root.joinpath(*folder), "/".join(folder)
            for start in range(0, len(files), CHUNK):
                part = files[start : start + CHUNK]
                yield Chunk(
                    [f"{prefix}/{file}" for file in part],
                    [directory / file for file in part],
                    np.full(len(part), labels[name]),
                    split,
                )

    strays = Counter(Path(name).suffix.lower() or name for files in listing.others.values() for name in files)
    left_out = listing.left_out + Counter({f"{kind} files": number for kind, number in strays.items()})
    return Collection("a folder for each class", names, counts, chunks, left_out)


def _interpret(root: Path, folders: list[Parts], level: ClassLevel | None) -> Mapping[Parts, tuple[str, str]]:
    """Return the split and the class of each folder that has pictures.

    Raises:
        DataError: see `read_folders`.
    """
    rest = {folder: folder for folder in folders}
    splits: dict[Parts, str] = {}
    while rest:
        first = {parts[:1] for parts in rest.values()}
        if () in first:
            break
        found = {find_split(parts[0]) for parts in rest.values()}
        if not splits and None not in found and any(len(parts) > 1 for parts in rest.values()):
            splits = {folder: find_split(parts[0]) or TRAIN for folder, parts in rest.items()}
        elif len(first) > 1 or any(len(parts) == 1 for parts in rest.values()):
            break
        rest = {folder: parts[1:] for folder, parts in rest.items()}
    is_flat = not splits and all(len(parts) == 1 and find_split(parts[0]) for parts in rest.values())
    outside = sorted("/".join(folder) or "." for folder, parts in rest.items() if not parts or is_flat)
    if not rest or outside:
        raise DataError(
            f"{root} has pictures outside the folders of the classes" if outside else f"{root} has no pictures",
            expected=EXPECTED,
            found=f"pictures in {', '.join(outside[:5])}" if outside else "",
        )
    _refuse_mixture(root, rest)
    if not splits:
        rest, splits = _find_inner_splits(rest)
    if level is None:
        _require_clear_level(root, rest)
    return {folder: (splits.get(folder, TRAIN), parts[-1 if level == "last" else 0]) for folder, parts in rest.items()}


def _refuse_mixture(root: Path, rest: Mapping[Parts, Parts]) -> None:
    """Refuse `train/` beside other folders: it could be a split or a class."""
    first = {parts[0] for parts in rest.values()}
    named = {name for name in first if find_split(name)}
    below = {parts[0] for parts in rest.values() if len(parts) > 1}
    if named & below and named != first:
        raise DataError(
            f"{root} has folders for splits and other folders beside them",
            expected=EXPECTED,
            found=f"{', '.join(sorted(named))} beside {', '.join(sorted(first - named)[:5])}",
            remedy="move the other folders away",
        )


def _find_inner_splits(rest: dict[Parts, Parts]) -> tuple[dict[Parts, Parts], dict[Parts, str]]:
    """Find splits one level below the classes: `CLASS/train/`."""
    if not all(len(parts) > 1 and find_split(parts[1]) for parts in rest.values()):
        return rest, {}
    splits = {folder: find_split(parts[1]) or TRAIN for folder, parts in rest.items()}
    return {folder: (parts[0], *parts[2:]) for folder, parts in rest.items()}, splits


def _require_clear_level(root: Path, rest: Mapping[Parts, Parts]) -> None:
    """Refuse nested folders if all first-level folders have the same subfolders: either level could be the classes."""
    below: dict[str, set[str]] = {}
    for parts in rest.values():
        below.setdefault(parts[0], set()).add(parts[-1] if len(parts) > 1 else "")
    if len(below) > 1 and all(names == next(iter(below.values())) for names in below.values()):
        inner = sorted(next(iter(below.values())))
        if len(inner) > 1:
            raise DataError(
                f"cannot find the classes in {root}: either of two levels of folders could be the classes",
                expected="one level of folders, or the option --class-level",
                found=f"{', '.join(sorted(below)[:5])}; in each of them {', '.join(inner[:5])}",
                remedy="add --class-level first or --class-level last",
            )
