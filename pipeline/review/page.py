"""The page of a review: what it shows, and the page as one self-contained file."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.data.corrections import TEST_PREFIX
from pipeline.data.table import Dataset, read_dataset
from pipeline.errors import WorkspaceError
from pipeline.files import atomic_file
from pipeline.review.images import TABLES
from pipeline.review.items import ITEMS, REVIEWS, Item, read_items, review_directory
from pipeline.review.pictures import EXAMPLE_PIXELS, Picture, encode_png, find_examples, find_pictures
from pipeline.review.verdicts import FORMAT, VERDICTS, collect_outcomes, read_verdicts

STATIC = Path(__file__).parent / "static"
EXPORTED_PIXELS = 512  # the largest side of a picture in the self-contained file


@dataclass(frozen=True)
class ReviewList:
    """A list of images to look at, the dataset it is of, and the file with the verdicts."""

    name: str
    dataset: Dataset
    items: list[Item]
    verdicts: Path


@dataclass(frozen=True)
class Page:
    """Content of the page of a review."""

    review: ReviewList
    items: Sequence[Item]  # the first ones of the list
    pictures: Mapping[str, Picture]  # of the items, their duplicates, and the examples
    examples: Mapping[tuple[str, int], list[str]]

    @cached_property
    def keys(self) -> list[str]:
        """The keys of the pictures. The page names a picture by its place among them."""
        return list(self.pictures)

    def encode(self, place: int, largest: int | None = None) -> bytes:
        """Return a picture as PNG. An example is reduced.

        Args:
            place: its place among `keys`.
            largest: the largest side of a picture that is no example; None keeps its size.
        """
        key = self.keys[place]
        return encode_png(self.pictures[key].pixels, largest if key in self._shown_large else EXAMPLE_PIXELS)

    def find_twins(self, item: Item) -> list[str]:
        """Return the keys of an item's duplicates. An exact copy in the other split has the id of the item."""
        keys = (
            [key for key in (id_, TEST_PREFIX + id_) if key in self.pictures and key != item.key] for id_ in item.twins
        )
        return [found[0] for found in keys if found]

    @cached_property
    def _shown_large(self) -> set[str]:
        return {key for item in self.items for key in (item.key, *self.find_twins(item))}

    def describe(self, who: str, *, served: bool) -> dict[str, Any]:
        """Return what the script of the page reads.

        Args:
            who: the reader. In a self-contained file, the reader writes the name.
            served: whether verdicts are sent to a server; else the reader saves them to a file.
        """
        places = {id_: place for place, id_ in enumerate(self.keys)}
        kept = read_verdicts(self.review.verdicts, self.items) if served else []
        outcomes = {outcome.item.key: outcome for outcome in collect_outcomes(self.items, kept)}

        def describe_item(item: Item) -> dict[str, Any]:
            outcome = outcomes.get(item.key)
            return {
                "id": item.key,
                "picture": places[item.key],
                "row": item.official_row,
                "split": item.split,
                "given": item.given,
                "suggested": item.suggested,
                "score": item.score,
                "confidence": item.confidence,
                "reason": item.reason,
                "twins": [
                    {"id": key, "picture": places[key], "label": twin.label, "split": twin.split}
                    for key in self.find_twins(item)
                    if (twin := self.pictures[key])
                ],
                "examples": {
                    label: [places[id_] for id_ in self.examples.get((item.key, label), [])]
                    for label in (item.given, item.suggested)
                },
                "differs": outcome is not None and outcome.differs,
                "others": [
                    {"who": verdict.who, "verdict": verdict.verdict, "label": verdict.label}
                    for verdict in (outcome.verdicts if outcome else ())
                    if verdict.who != who
                ],
            }

        dataset = self.review.dataset
        return {
            "format": FORMAT,
            "review": self.review.name,
            "dataset": dataset.name,
            "classes": dataset.classes,
            "classes_ko": dataset.classes_ko,
            "height": dataset.height,
            "width": dataset.width,
            "who": who,
            "served": served,
            "items": [describe_item(item) for item in self.items],
            "log": [
                {"id": verdict.id, "verdict": verdict.verdict, "label": verdict.label}
                for verdict in kept
                if verdict.who == who
            ],
        }


def open_review(workspace: Path, name: str | None) -> ReviewList:
    """Open a review.

    Args:
        name: None for the one whose list is the newest.

    Raises:
        WorkspaceError: there is none.
    """
    lists = sorted((workspace / REVIEWS).glob(f"*/{ITEMS}"), key=lambda path: path.stat().st_mtime)
    names = [path.parent.name for path in lists]
    if not names or (name is not None and name not in names):
        raise WorkspaceError(
            f"there is no review {name}" if name else "there is no list of labels to review",
            expected=f"one of {', '.join(sorted(names))}" if names else "",
            remedy="pipeline review labels",
        )
    chosen = name or names[-1]
    directory = workspace / review_directory(chosen)
    dataset = read_dataset(workspace / TABLES["train"])
    return ReviewList(chosen, dataset, read_items(directory / ITEMS), directory / VERDICTS)


def compose_page(workspace: Path, review: ReviewList, first: int) -> Page:
    """Collect what the page of a review shows.

    Args:
        first: how many images it shows of those with a doubtful label, and how many of the duplicates.

    Raises:
        WorkspaceError: the dataset has no image of the list.
    """
    tables = {split: workspace / path for split, path in TABLES.items()}
    doubtful = [item for item in review.items if not item.twins]
    shown = doubtful[:first] + [item for item in review.items if item.twins][:first]
    own = find_pictures({id_ for item in shown for id_ in (item.id, *item.twins)}, tables)
    items = [item for item in shown if item.key in own]  # others were removed since
    if review.items and not items:
        raise WorkspaceError(
            f"no image of the list {review.name} is in data/dataset",
            expected="the dataset that the list was made of",
            remedy="pipeline review labels",
        )
    examples = find_examples(items, own, tables["train"])
    others = find_pictures({id_ for ids in examples.values() for id_ in ids} - own.keys(), tables)
    return Page(review, items, own | others, examples)


def export_page(page: Page, path: Path) -> None:
    """Write the page as one file that needs no server and no network. It sends nothing."""
    data = page.describe("", served=False)
    encoded = (page.encode(place, EXPORTED_PIXELS) for place in range(len(page.keys)))
    data["pictures"] = ["data:image/png;base64," + base64.b64encode(png).decode() for png in encoded]
    style, script = ((STATIC / name).read_text(encoding="utf-8") for name in ("review.css", "review.js"))
    hashes = {"style": _hash(style), "script": _hash(script)}
    policy = (
        f"default-src 'none'; img-src data:; style-src '{hashes['style']}'; script-src '{hashes['script']}'; "
        "base-uri 'none'; form-action 'none'"
    )
    text = (STATIC / "review.html").read_text(encoding="utf-8")
    content = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")  # no tag can end the element
    for mark, replacement in {
        "<!-- policy -->": f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<link rel="stylesheet" href="review.css">': f"<style>{style}</style>",
        "<!-- data -->": f'<script type="application/json" id="data">{content}</script>',
        '<script src="review.js"></script>': f"<script>{script}</script>",
    }.items():
        text = text.replace(mark, replacement, 1)
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
