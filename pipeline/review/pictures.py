"""The pictures of a review: those of its list, their duplicates, and typical examples of the classes."""

import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.table import Dataset, Rows, read_dataset, stream
from pipeline.review.images import TABLES
from pipeline.review.items import Item, Split, as_key

EXAMPLES = 6  # of each class beside an image
EXAMPLE_PIXELS = 96  # the largest side of an example; larger ones are reduced
_FEATURE_PIXELS = 32  # the largest side of an image for the comparison


@dataclass(frozen=True)
class Picture:
    """An image of the dataset, as a page shows it."""

    pixels: np.ndarray  # uint8 [height, width] or [height, width, 3]
    label: int
    split: Split


def find_pictures(ids: Collection[str], tables: Mapping[Split, Path] = TABLES) -> dict[str, Picture]:
    """Read the images with some ids from the tables of the dataset. Ids that no table has are left out.

    Returns:
        the images by `Item.key`: a copy in the test split is an image of its own.
    """
    wanted, found = set(ids), {}
    for split, path in tables.items():
        for rows in stream(path) if wanted else ():
            for place, id_ in _find(rows, wanted):
                pixels = rows.images[place].copy()  # a view would keep the whole row group in memory
                found[as_key(split, id_)] = Picture(pixels, int(rows.labels[place]), split)
    return found


def find_examples(
    items: Sequence[Item], pictures: Mapping[str, Picture], table: Path = TABLES["train"]
) -> dict[tuple[str, int], list[str]]:
    """Find the training images of an item's given and suggested class that are nearest to it, by their pixels.

    Images of the list are left out: their labels are in doubt.

    Returns:
        the ids of at most `EXAMPLES` images, nearest first, by the item's key and the class.
    """
    dataset, listed = read_dataset(table), {item.key for item in items}
    shown = [item for item in items if item.key in pictures]
    if not shown:
        return {}
    queries = _features(np.stack([pictures[item.key].pixels for item in shown]), dataset)
    asking = {
        label: np.flatnonzero([label in (item.given, item.suggested) for item in shown])
        for label in range(len(dataset.classes))
    }
    nearest = {
        label: (np.full((len(rows), EXAMPLES), np.inf, np.float32), np.full((len(rows), EXAMPLES), "", object))
        for label, rows in asking.items()
        if len(rows)
    }
    for rows in stream(table):
        ids = np.array(rows.ids.to_pylist(), object)
        usable = np.array([id_ not in listed for id_ in ids])
        for label, (distances, found) in nearest.items():
            members = np.flatnonzero(usable & (rows.labels == label))
            if not len(members):
                continue
            measured = _distances(queries[asking[label]], _features(rows.images[members], dataset))
            best = np.argpartition(measured, min(EXAMPLES, len(members)) - 1, axis=1)[:, :EXAMPLES]
            merged = np.concatenate([distances, np.take_along_axis(measured, best, 1)], axis=1)
            names = np.concatenate([found, ids[members][best]], axis=1)
            order = np.argsort(merged, axis=1, kind="stable")[:, :EXAMPLES]
            nearest[label] = np.take_along_axis(merged, order, 1), np.take_along_axis(names, order, 1)
    return {
        (shown[row].key, label): [id_ for id_ in found[place] if id_]
        for label, (_, found) in nearest.items()
        for place, row in enumerate(asking[label])
    }


def encode_png(pixels: np.ndarray, largest: int | None = None) -> bytes:
    """Encode an image as PNG.

    Args:
        pixels: uint8 [height, width] or [height, width, 3].
        largest: reduce it so that no side is longer; None keeps its size.
    """
    from PIL import Image

    image = Image.fromarray(pixels)
    if largest:
        image.thumbnail((largest, largest))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _find(rows: Rows, wanted: Collection[str]) -> Iterable[tuple[int, str]]:
    return ((place, id_) for place, id_ in enumerate(rows.ids.to_pylist()) if id_ in wanted)


def _features(images: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Return every few pixels of images as float32 [n, …]: enough to compare them."""
    step = math.ceil(max(dataset.height, dataset.width) / _FEATURE_PIXELS)
    return images[:, ::step, ::step].reshape(len(images), -1).astype(np.float32)


def _distances(queries: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return squared distances less those of the queries from zero, which order alike: float32 [queries, members]."""
    return np.square(members).sum(1)[None] - 2 * queries @ members.T
