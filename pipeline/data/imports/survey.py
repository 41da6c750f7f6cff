"""Survey a collection before anything is written: decode it, and find copies, near duplicates and the test split."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.data.decoders import PICTURE
from pipeline.data.imports.decoding import Form, Measured, Pictures, Sample, decode, limit_names, measure, sample
from pipeline.data.imports.near_duplicates import LARGEST_GROUP, find_near_duplicates
from pipeline.data.imports.selection import (
    choose_test_split,
    divide_groups,
    find_copies,
    name_groups,
    require_apart,
    require_classes,
)
from pipeline.data.imports.size import choose_size, parse_size
from pipeline.data.sources.collection import TEST, TRAIN, VALIDATION, Collection
from pipeline.data.sources.recognise import Reading, open_collection
from pipeline.errors import DataError

Color = Literal["auto", "rgb", "grey"]
Resizing = Literal["fit", "crop"]
CHANNELS: dict[str, int | None] = {"auto": None, "rgb": 3, "grey": 1}


@dataclass(frozen=True)
class Options:
    """Options of an import."""

    reading: Reading = field(default_factory=Reading)
    size: str | None = None  # None: see `choose_size`
    color: Color = "auto"
    resizing: Resizing = "fit"
    test_fraction: float = 0.15
    skip_bad: bool = False  # leave out unreadable and contradictory pictures


@dataclass(frozen=True)
class Survey:
    """A collection as it will be imported."""

    collection: Collection
    sample: Sample
    form: Form  # with the channels that were found
    pictures: Pictures  # all readable ones; rows below refer to them
    measured: Measured
    is_kept: np.ndarray  # bool [n]
    is_test: np.ndarray  # bool [n], of the kept pictures
    groups: list[str] | None  # a name for each picture, empty without a group; None if there are no groups
    repeated: int  # copies of training pictures, left out
    repeated_tests: int  # training pictures that are copies of test pictures, left out
    contradictory: list[str]  # equal pictures with different labels, left out
    near_duplicates: int  # pictures that have a near duplicate
    near_tests: int  # training pictures that are near duplicates of pictures in the collection's own test split
    left_apart: int  # pairs of near duplicates in different groups

    @property
    def has_test(self) -> bool:
        """Return True if the test split is the collection's own."""
        return self.collection.counts[TEST] > 0

    def count(self, test: bool) -> np.ndarray:
        """Count the kept pictures of each class in the training or the test split: int64 [classes]."""
        chosen = self.is_kept & (self.is_test == test)
        return np.bincount(self.pictures.labels[chosen], minlength=len(self.pictures.classes))


def survey(
    path: Path, options: Options, scratch: Path, progress: Callable[[str, int], Callable[[int], None]]
) -> Survey:
    """Decode and examine a collection.

    Args:
        scratch: an empty directory for the decoded pixels.
        progress: called at each step with its name and number of pictures. Returns a function that takes the number of
            pictures done since its last call.

    Raises:
        DataError: the collection cannot be imported. The message names the pictures, the classes or the option.
    """
    collection = open_collection(path, options.reading)
    total = sum(collection.counts.values())
    if not total:
        raise DataError(f"{path} has no pictures", expected="labelled pictures")
    if len(collection.classes) < 2:
        raise DataError(f"{path} has one class", expected="at least two", found=", ".join(collection.classes))
    channels = CHANNELS[options.color]
    found = sample(collection, channels)
    if options.size is None and not found.sizes:
        raise DataError(f"cannot read any of the {total:,} pictures in {path}", expected=PICTURE)
    size = parse_size(options.size) if options.size else choose_size(found.sizes)
    form = Form(size, channels, options.resizing, found.ground)
    pictures = decode(collection, form, scratch, progress("decoding", total))
    _require_readable(pictures, options.skip_bad)
    has_colours = pictures.pixels.ndim == 4
    ground = found.ground if has_colours else found.ground[:1]
    form = replace(
        form, channels=3 if has_colours else 1, ground=ground * 3 if has_colours and len(ground) == 1 else ground
    )
    measured = measure(pictures.pixels, progress("looking for copies", len(pictures.names)))
    copies = find_copies(measured.digests, pictures.labels, pictures.is_test)
    contradictory = [pictures.names[row] for rows in copies.contradictions for row in rows]
    _require_agreement(pictures, copies.contradictions, options.skip_bad)
    near = find_near_duplicates(pictures.pixels, np.flatnonzero(copies.is_kept), measured.thumbnails, measured.spread)
    near_rows = np.bincount(near.group, minlength=len(near.group))[near.group] > 1
    kept = np.flatnonzero(copies.is_kept)
    given = None if pictures.groups is None else [pictures.groups[row] for row in kept]
    require_apart(given or [], pictures.is_test[kept])
    names = name_groups(given, divide_groups(near.group[kept], pictures.is_test[kept]), measured.digests[kept])
    groups = None
    if names is not None:
        groups = [""] * len(pictures.names)
        for row, name in zip(kept.tolist(), names, strict=True):
            groups[row] = name
    is_test = pictures.is_test.copy()
    near_tests = 0
    if collection.counts[TEST]:
        tested = set(near.group[near_rows & is_test].tolist())
        near_tests = int((near_rows & ~is_test & np.isin(near.group, list(tested))).sum())
    else:
        is_test[kept] = choose_test_split(
            measured.digests[kept], pictures.labels[kept], names, pictures.classes, options.test_fraction
        )
    require_classes(pictures.labels[kept], is_test[kept], pictures.classes)
    return Survey(
        collection=collection,
        sample=found,
        form=form,
        pictures=pictures,
        measured=measured,
        is_kept=copies.is_kept,
        is_test=is_test,
        groups=groups,
        repeated=copies.repeated,
        repeated_tests=copies.repeated_tests,
        contradictory=contradictory,
        near_duplicates=int(near_rows.sum()),
        near_tests=near_tests,
        left_apart=near.left_apart,
    )


def _require_readable(pictures: Pictures, skip_bad: bool) -> None:
    if pictures.unreadable and not skip_bad:
        raise DataError(
            f"cannot read {len(pictures.unreadable):,} pictures",
            expected=PICTURE,
            found=limit_names(pictures.unreadable),
            remedy="repair or remove them, or leave them out with --skip-bad",
        )
    if not pictures.names:
        raise DataError("cannot read any picture", expected=PICTURE, found=limit_names(pictures.unreadable))


def _require_agreement(pictures: Pictures, contradictions: list[list[int]], skip_bad: bool) -> None:
    if contradictions and not skip_bad:
        shown = [
            " = ".join(f"{pictures.names[row]} ({pictures.classes[pictures.labels[row]]})" for row in rows[:4])
            for rows in contradictions
        ]
        raise DataError(
            f"{len(contradictions):,} pictures occur in more than one class",
            expected="one class for equal pictures",
            found=limit_names(shown),
            remedy="keep each picture in one class only, or leave all of them out with --skip-bad",
        )


def describe(found: Survey) -> dict[str, str]:
    """Describe the collection, and how it will be imported: texts by topic."""
    collection, form = found.collection, found.form
    facts = {
        "found": f"{collection.form}: {sum(collection.counts.values()):,} pictures, {len(collection.classes)} classes"
    }
    if collection.left_out:
        facts["left out"] = ", ".join(f"{number:,} {kind}" for kind, number in collection.left_out.most_common())
    facts["size"] = _describe_size(found)
    facts["colour"] = "colour" if form.channels == 3 else "grey"
    facts["background"] = "grey value " + str(form.ground[0]) if len(set(form.ground)) == 1 else f"RGB {form.ground}"
    facts["test split"] = _describe_splits(collection)
    if bad := [*found.pictures.unreadable, *found.contradictory]:
        facts["skipped"] = limit_names(bad).replace(" " * 12, "")
    if found.repeated or found.repeated_tests:
        facts["exact copies"] = (
            f"{found.repeated:,} left out; {found.repeated_tests:,} copies of test pictures left out of training"
        )
    if found.near_duplicates:
        facts["near duplicates"] = (
            f"{found.near_duplicates:,} pictures, in groups of at most {LARGEST_GROUP} that stay in one split"
        )
    if found.near_tests:
        facts["warning"] = (
            f"{found.near_tests:,} training pictures are near duplicates of test pictures: "
            "the test accuracy may be too high"
        )
    if found.left_apart:
        facts["note"] = (
            f"{found.left_apart:,} pairs of near duplicates may be in different splits; to prevent this, use --group"
        )
    return facts


def _describe_size(found: Survey) -> str:
    height, width = found.form.size
    heights, widths = zip(*(found.sample.sizes or {found.form.size: 1}), strict=True)
    own = f"{min(heights)} x {min(widths)}"
    if len(found.sample.sizes) > 1:
        own += f" to {max(heights)} x {max(widths)}"
    if not found.pictures.resized:
        return f"{height} x {width} pixels (height x width)"
    how = "padded with the background" if found.form.resizing == "fit" else "edges cut off"
    return f"{height} x {width} pixels; {found.pictures.resized:,} pictures of {own} are resized, {how}"


def _describe_splits(collection: Collection) -> str:
    counts = collection.counts
    own = f"{counts[TEST]:,} pictures, as given" if counts[TEST] else "none given: chosen by a hash of the pictures"
    if not counts[VALIDATION]:
        return own
    return (
        f"{own}; the {counts[VALIDATION]:,} validation pictures join the {counts[TRAIN]:,} training pictures, from "
        "which the stage `split` draws a new validation split"
    )
