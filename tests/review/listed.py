"""A checkout with a small dataset and a list of images to review, without a run of the pipeline."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.data import table, tiny
from pipeline.data.catalog import load_entry
from pipeline.data.corrections import COLUMNS, CORRECTIONS
from pipeline.review.items import ITEMS, Item, review_directory, write_items
from pipeline.review.page import ReviewList, open_review
from tests.documentation import read_blocks

NAME = "labels"


def make_checkout(path: Path, images: int = 60, listed: int = 12, pairs: int = 2, classes: int = 10) -> ReviewList:
    """Write tables of `tiny`, an empty list of corrections, and a list of the first training images.

    Args:
        images: in the training split; 20 more are test images.
        listed: the number of images of the list.
        pairs: how many of these have the next listed image as a duplicate.
        classes: the number of classes. More than ten have no images.
    """
    dataset = load_entry("tiny").dataset
    more = range(10, classes)
    dataset = replace(
        dataset,
        classes=(*dataset.classes, *(f"Hat {number}" for number in more)),
        classes_ko=(*dataset.classes_ko, *(f"모자 {number}" for number in more)),
    )
    path.mkdir(parents=True, exist_ok=True)
    (path / "dvc.yaml").touch()
    ids: dict[str, list[str]] = {}
    for split, count, seed in (("train", images, 1), ("test", 20, 2)):
        pixels, labels = tiny.generate(count, seed)
        ids[split] = [f"{digest.hex()}-0" for digest in table.pixel_digests(pixels)]
        sources = table.strings([table.OFFICIAL] * count)
        with table.writer(path / f"data/dataset/{split}.parquet", dataset) as rows:
            rows.write(pixels, labels, table.strings(ids[split]), sources)
    (path / CORRECTIONS).write_text(",".join(COLUMNS) + "\n")
    _, labels = tiny.generate(images, 1)
    items = [_item(ids["train"], labels, row, is_pair=row < pairs) for row in range(listed)]
    directory = path / review_directory(NAME)
    directory.mkdir(parents=True)
    write_items(directory / ITEMS, items)
    return open_review(path, NAME)


def read_commands(section: str) -> list[list[str]]:
    """Return the commands `pipeline` in the blocks of a section of docs/labels.md, as arguments of a process."""
    blocks = read_blocks("docs/labels.md", section)
    split = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [[sys.executable, "-m", "pipeline.cli", *words[1:]] for words in split if words[0] == "pipeline"]


def _item(ids: list[str], labels: np.ndarray, row: int, *, is_pair: bool) -> Item:
    given = int(labels[row])
    suggested = (given + 1) % 10
    reason = "the models suggest another class"
    return Item(ids[row], row, given, suggested, 0.01 * row, 0.9, reason, (ids[row + 1],) if is_pair else ())
