"""A batch from the traffic of a server: the images that were kept or sent again, with the labels that came later."""

import csv
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from pipeline.data import features, table
from pipeline.data.batches import INCOMING, POINTER
from pipeline.data.table import Dataset
from pipeline.data.traffic import FEEDBACK, TRAFFIC, Label, add_labels, picture_path, read_labels, read_traffic
from pipeline.errors import DataError
from pipeline.files import PRIVATE, read_cached_json, write_json
from pipeline.image_class_names import find_class, list_classes

if TYPE_CHECKING:
    from pipeline.batches.inspection import Known

TAKEN = FEEDBACK / "taken.json"  # batch: the answered images in it, as pairs of request id and index
Key = tuple[str, int]  # request id, and index of the image in the request


@dataclass(frozen=True)
class Labelled:
    """Labelled images of the traffic."""

    keys: tuple[Key, ...]  # of the images below
    images: np.ndarray  # uint8 [n, *shape]
    labels: np.ndarray  # uint16 [n]
    left_out: Mapping[str, int]  # reason: number of labels without an image in the batch


def read_label_file(path: Path, dataset: Dataset, who: str) -> list[Label]:
    """Read labels from a CSV file with the columns `request_id`, `label` and, for requests of many images, `index`.

    Args:
        who: who vouches for the labels.

    Raises:
        DataError: the file is missing or malformed, or a label is not a class. Names the line.
    """
    expected, labels = "columns request_id, label and, if wanted, index", []
    now = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            if not {"request_id", "label"} <= set(rows.fieldnames or ()):
                raise DataError(f"{path} has other columns", expected=expected, found=", ".join(rows.fieldnames or ()))
            for row in rows:
                index, request = row.get("index") or "0", (row["request_id"] or "").strip().lower()
                found = find_class(row["label"] or "", dataset.classes, dataset.classes_ko)
                if not request or not index.isdecimal() or len(found) != 1:
                    raise DataError(
                        f"{path} has a bad label in line {rows.line_num}",
                        expected=f"a request id, one of {list_classes(dataset.classes)}, and a whole number as index",
                        found=f"request_id {request!r}, label {row['label']!r}, index {index!r}",
                    )
                labels.append(Label(request, int(index), dataset.classes[found.pop()], who, now))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", expected=f"a CSV file with {expected}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8", expected=expected, found=str(error)) from None
    return labels


def collect(root: Path, dataset: Dataset, known: "Known", labels: Mapping[Key, Label]) -> Labelled:
    """Join labels with images by request id and index.

    Leaves out images that an earlier batch of the traffic has, that are in the data already, and copies.

    Args:
        root: the main repository.
        known: the images of the data.
        labels: those of `.pipeline/feedback/`, and others.

    Raises:
        DataError: a file of the traffic log, or a stored picture, is damaged.
    """
    taken = _read_taken(root)
    wanted = {key: label for key, label in labels.items() if key not in taken}
    numbers_of = {name: number for number, name in enumerate(dataset.classes)}
    keys, images, numbers, found = [], [], [], 0
    left_out = Counter({"in an earlier batch": len(labels) - len(wanted)})
    for key, image in _find_images(root, wanted):
        found += 1
        if image.shape != dataset.shape:
            left_out["of another size"] += 1
        elif wanted[key].label not in numbers_of:
            left_out["of a class that the dataset does not have"] += 1
        else:
            keys.append(key)
            images.append(image)
            numbers.append(numbers_of[wanted[key].label])
    left_out["without a kept image"] = len(wanted) - found
    pixels, classes = np.array(images, np.uint8).reshape(-1, *dataset.shape), np.array(numbers, np.uint16)
    chosen = _choose(pixels, classes, known, left_out)
    counts = {reason: count for reason, count in left_out.items() if count}
    return Labelled(tuple(keys[place] for place in chosen), pixels[chosen], classes[chosen], counts)


def merge(stored: Mapping[Key, Label], new: Sequence[Label]) -> dict[Key, Label]:
    """Return the stored labels with new ones, which replace them. The stored pictures stay."""
    merged = dict(stored)
    for label in new:
        key = label.request_id, label.index
        merged[key] = replace(label, has_picture=key in stored and stored[key].has_picture)
    return merged


def write_batch(path: Path, labelled: Labelled) -> None:
    """Write the images and labels as an .npz file."""
    np.savez(path, images=labelled.images, labels=labelled.labels)


def record(root: Path, batch: str, labelled: Labelled, new: Sequence[Label]) -> None:
    """Record what a batch has taken, and store new labels that are not stored yet."""
    stored = read_labels(root / FEEDBACK)
    changed = [
        label for key, label in merge(stored, new).items() if key not in stored or stored[key].label != label.label
    ]
    if changed:
        add_labels(root / FEEDBACK, changed)
    if labelled.keys:
        batches = read_cached_json(root / TAKEN) or {}
        write_json(root / TAKEN, batches | {batch: [list(key) for key in labelled.keys]}, mode=PRIVATE)


def _read_taken(root: Path) -> set[Key]:
    """Return the images in batches of the traffic that still exist."""
    batches = read_cached_json(root / TAKEN) or {}
    kept = [keys for name, keys in batches.items() if (root / INCOMING / f"{name}{POINTER}").is_file()]
    return {(request_id, index) for keys in kept for request_id, index in keys}


def _find_images(root: Path, labels: Mapping[Key, Label]) -> Iterator[tuple[Key, np.ndarray]]:
    """Yield the images of labels: those that were sent again, and those that the traffic log kept."""
    rest = set(labels)
    for key, label in labels.items():
        path = picture_path(root / FEEDBACK, *key)
        if label.has_picture and path.is_file():
            rest.discard(key)
            yield key, _read_png(path)
    if not rest:
        return
    far = timedelta(days=36_500)
    now = datetime.now(UTC)
    for rows in read_traffic(root / TRAFFIC, now - far, now + far, ["request_id", "index", "image", "shape"]):
        kept = rows.filter(pc.is_valid(rows.column("image")))
        for request_id, index, image, shape in zip(*(column.to_pylist() for column in kept.columns), strict=True):
            if (request_id, index) in rest:
                rest.discard((request_id, index))
                yield (request_id, index), np.frombuffer(image, np.uint8).reshape(shape)


def _read_png(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            return np.asarray(image)
    except OSError as error:
        raise DataError(f"{path} is damaged", found=str(error), remedy=f"rm {shlex.quote(str(path))}") from None


def _choose(images: np.ndarray, labels: np.ndarray, known: "Known", left_out: Counter[str]) -> list[int]:
    """Choose images that are not in the data yet, each once, and none with two labels. Counts the others."""
    if not len(images):
        return []
    measured = features.measure([(images, labels, table.strings([""] * len(images)))])
    assert measured, "there are images"
    sources = [*known.train.values(), *known.test.values()]
    is_known = table.are_among(measured.digest, np.concatenate([source.digest for source in sources] or [np.empty(0)]))
    conflicting = features.find_conflicts(measured.digest, labels)
    seen: set[int] = set()
    chosen = []
    for place, digest in enumerate(measured.digest.tolist()):
        if is_known[place]:
            left_out["in the data already"] += 1
        elif conflicting[place]:
            left_out["with two different labels"] += 1
        elif digest in seen:
            left_out["equal to another one"] += 1
        else:
            chosen.append(place)
            seen.add(digest)
    return chosen
