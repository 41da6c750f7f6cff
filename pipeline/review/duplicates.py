"""Exact and near duplicates among the training and test images, also across the splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import table
from pipeline.data.imports.decoding import ROWS, measure_rows
from pipeline.data.imports.near_duplicates import find_pairs
from pipeline.data.table import SHA1_DIGITS
from pipeline.review.images import TABLES, Images


@dataclass(frozen=True)
class Pair:
    """Two images that show the same picture. Rows count the training images first, then the test images."""

    first: int
    second: int
    difference: float  # root mean square difference of the pixels, in grey values of 255; 0: exact copies


def find_duplicates(train: Images, test: Images, scratch: Path) -> list[Pair]:
    """Find the pairs of duplicates, nearest first. Of several exact copies, each is paired with the first one.

    Near duplicates are those of `pipeline.data.imports.near_duplicates`.

    Args:
        scratch: a file for all pixels, which exists only during the call. Images are compared in any order.
    """
    digests = [id_[:SHA1_DIGITS] for id_ in (*train.ids, *test.ids)]
    first_of: dict[str, int] = {}
    pairs = [
        Pair(first_of[digest], row, 0.0)
        for row, digest in enumerate(digests)
        if first_of.setdefault(digest, row) != row
    ]
    scratch.parent.mkdir(parents=True, exist_ok=True)
    try:
        pixels = _write_pixels(scratch, len(digests), train.dataset.shape)
        # In this process: others may not see the file, and must not be forked after the import of TensorFlow.
        measured = [measure_rows((str(scratch), pixels.shape, row)) for row in range(0, len(pixels), ROWS)]
        thumbnails, spread = (
            np.concatenate([getattr(part, column) for part in measured]) for column in ("thumbnails", "spread")
        )
        found = find_pairs(pixels, np.array(list(first_of.values())), thumbnails, spread)
    finally:
        scratch.unlink(missing_ok=True)
    columns = (column.tolist() for column in found)
    return [*pairs, *(Pair(*pair) for pair in zip(*columns, strict=True))]


def group_twins(count: int, pairs: Sequence[Pair], groups: Sequence[str]) -> np.ndarray:
    """Return a number for each of the first `count` images that it shares with its duplicates and its group: int64 [n].

    Args:
        groups: the group of each image; empty without groups.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = [(pair.first, pair.second) for pair in pairs if pair.second < count]
    first_of: dict[str, int] = {}
    edges += [(first_of.setdefault(group, row), row) for row, group in enumerate(groups)]
    first, second = np.array(edges, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(first), bool), (first, second)), (count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _write_pixels(path: Path, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Write the pixels of both tables to a file, and return a view of it: uint8 [count, *shape]."""
    pixels = np.memmap(path, np.uint8, "w+", shape=(count, *shape))
    row = 0
    for file in TABLES.values():
        dataset = table.read_dataset(file)
        for rows in table.stream_columns(file, ["image"]):
            images = table.image_column(rows, dataset)
            pixels[row : row + len(images)] = images
            row += len(images)
    pixels.flush()
    return pixels
