"""The list of a review: images that a person should look at, in the order of looking at them.

A review has a directory in `.pipeline/review/`. The list is its file `items.json`.
"""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pipeline.data.corrections import TEST_PREFIX
from pipeline.errors import WorkspaceError
from pipeline.files import read_json, write_json
from pipeline.workspace import STATE

REVIEWS = STATE / "review"
ITEMS = "items.json"

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Item:
    """An image to look at. Each image is in a list at most once."""

    id: str
    official_row: int | None  # in the order of the official training (or test) images, from 0; None: from a batch
    given: int  # its label now, corrections included
    suggested: int  # the most probable class according to models that were not trained on it, or its twin's label
    score: float  # quality of the label, 0 to 1; the lower, the more suspect
    confidence: float  # probability of the suggested class
    reason: str  # a short sentence for the reader
    twins: tuple[str, ...] = ()  # ids of its exact and near duplicates, nearest first
    split: Split = "train"  # the table in data/dataset/ that has the image

    @property
    def key(self) -> str:
        """The id of the image in `data/corrections.csv`: a copy in the test split has its own."""
        return as_key(self.split, self.id)


def as_key(split: str, id_: str) -> str:
    """Return the id of an image in `data/corrections.csv`."""
    return TEST_PREFIX + id_ if split == "test" else id_


def review_directory(name: str) -> Path:
    """Return the directory of a review, relative to the checkout.

    Raises:
        WorkspaceError: the name cannot be that of a directory.
    """
    if not re.fullmatch(r"\w[\w.-]{0,62}", name):
        raise WorkspaceError(
            f"{name!r} cannot be the name of a review",
            expected="letters, digits, `-`, `_` and `.`, at most 63",
            remedy="choose another name with --name",
        )
    return REVIEWS / name


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write the list of a review."""
    write_json(path, [asdict(item) for item in items])


def read_items(path: Path) -> list[Item]:
    """Read the list of a review.

    Raises:
        WorkspaceError: there is none, or the file is damaged.
    """
    try:
        return [Item(**record | {"twins": tuple(record["twins"])}) for record in read_json(path)]
    except FileNotFoundError:
        raise WorkspaceError(f"there is no list of labels to review: {path}", remedy="pipeline review labels") from None
    except (ValueError, KeyError, TypeError):
        raise WorkspaceError(
            f"{path} is damaged", expected="a list of images", remedy="pipeline review labels"
        ) from None
