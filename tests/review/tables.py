"""Tables of images with wrong labels, as `ingest` writes them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data import table
from pipeline.review.images import TABLES

Labelled = tuple[np.ndarray, np.ndarray]  # images uint8 [n, height, width], labels


def write_tables(
    root: Path, dataset: table.Dataset, train: Labelled, test: Labelled, sources: Sequence[str] | None = None
) -> dict[str, list[str]]:
    """Write the tables of `data/dataset/`. Returns the ids of the images by split.

    Args:
        sources: of the training images; None: all are official.
    """
    ids: dict[str, list[str]] = {}
    for split, (images, labels) in (("train", train), ("test", test)):
        seen: Counter[bytes] = Counter()
        ids[split] = []
        for digest in table.pixel_digests(images):
            ids[split].append(f"{digest.hex()}-{seen[digest]}")
            seen[digest] += 1
        origins = sources if sources and split == "train" else [table.OFFICIAL] * len(labels)
        with table.writer(root / TABLES[split], dataset) as rows:
            rows.write(images, labels, table.strings(ids[split]), table.strings(origins))
    return ids


def flip_labels(labels: np.ndarray, count: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Give random images another random label. Returns all labels, and the rows of these images."""
    random = np.random.default_rng(seed)
    rows = random.choice(len(labels), count, replace=False)
    flipped = labels.copy()
    flipped[rows] = (labels[rows] + random.integers(1, classes, count)) % classes
    return flipped, rows


def confuse_labels(
    labels: np.ndarray, given: int, actual: int, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Label a share of the images of class `actual` as `given`. Returns all labels, and the rows of these images."""
    members = np.flatnonzero(labels == actual)
    rows = np.random.default_rng(seed).choice(members, round(share * len(members)), replace=False)
    confused = labels.copy()
    confused[rows] = given
    return confused, rows
