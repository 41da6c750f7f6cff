"""Verdicts become lines of `data/corrections.csv`. All other lines of the file stay as they are."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.corrections import CORRECTIONS, read_corrections
from pipeline.data.removed_images import read_removed
from pipeline.data.table import SHA1_DIGITS, Dataset, label_column, stream_columns
from pipeline.errors import WorkspaceError
from pipeline.files import atomic_file
from pipeline.image_class_names import find_class
from pipeline.review.items import Item
from pipeline.review.pictures import TABLES
from pipeline.review.verdicts import REMOVED, Outcome, Verdict

MOST_REMOVED = 0.01  # share of a class that is removed without a question


@dataclass(frozen=True)
class Difference:
    """An image about which two people differ. Nothing is written about it."""

    image: str  # its row in the official order, or its id
    given: str
    opinions: tuple[tuple[str, str], ...]  # who, and the label in words


@dataclass(frozen=True)
class Changes:
    """The changes of `data/corrections.csv` that follow from verdicts."""

    text: str  # the new content of the file
    written: Counter[str]  # new and replaced lines: `relabelled`, `removed`
    dropped: int  # lines of the same reader, whose later verdict keeps the label
    differences: list[Difference]
    skipped_test: int  # test images, which are corrected only if that is asked for
    removed_test: int  # test images that new lines remove
    removed: dict[str, tuple[int, int]]  # by class: images that all lines remove, and images before


@dataclass
class _Lines:
    """The lines of the file by id, in their order, with their text."""

    rows: dict[str, list[str]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)  # as they are in the file; "" for the header


def plan_changes(
    workspace: Path,
    dataset: Dataset,
    outcomes: Sequence[Outcome],
    *,
    review: str,
    prefer: str | None = None,
    include_test: bool = False,
) -> Changes:
    """Plan the changes of `data/corrections.csv`. Nothing is written.

    Args:
        review: its name, for the column `why`.
        prefer: the person whose verdict or line counts where people differ.
        include_test: whether to correct test images, too.

    Raises:
        DataError: the file cannot be used.
        WorkspaceError: the dataset does not have an image.
    """
    path = workspace / CORRECTIONS
    read_corrections(path, dataset)  # refuses what cannot be edited
    before = path.read_bytes().decode()
    lines = _parse(before)
    facts, sizes = _read_facts(workspace, dataset, [*lines.rows, *(outcome.item.id for outcome in outcomes)])
    copies = _find_contradictions(outcomes, prefer)
    written: Counter[str] = Counter()
    differences, dropped, skipped_test, removed_test = [], 0, 0, 0
    for outcome in outcomes:
        item, verdict = outcome.item, outcome.settle(prefer)
        if item.split == "test" and not include_test:
            skipped_test += outcome.differs or (verdict is not None and verdict.verdict in ("relabel", "remove"))
            continue
        opinions = [(each.who, _name(each.target, dataset)) for each in outcome.verdicts if each.target is not None]
        if verdict is None or verdict.target is None:
            if outcome.differs:
                differences.append(_difference(item, dataset, opinions))
            continue
        if other := copies.get(item.id[:SHA1_DIGITS]):
            differences.append(_difference(item, dataset, other))
            continue
        if item.id not in facts:
            raise WorkspaceError(
                f"the image {item.id} is not in data/dataset",
                expected="the dataset that the list was made of",
                remedy="dvc repro ingest, or: pipeline review labels",
            )
        given, target = facts[item.id], verdict.target
        former = lines.rows.get(item.id)
        current = _read_label(former, dataset) if former else given
        if target == current:
            continue
        if former and verdict.who not in (former[3], prefer):
            if prefer != former[3]:
                line = (former[3], f"{_name(current, dataset)} in {CORRECTIONS}")
                differences.append(_difference(item, dataset, [*opinions, line]))
            continue
        if target == given:
            del lines.rows[item.id], lines.texts[item.id]
            dropped += 1
            continue
        label = "" if target == REMOVED else dataset.classes[target]
        why = f"review {review}: {item.reason}"
        lines.rows[item.id] = [item.id, dataset.classes[given], label, verdict.who, verdict.when, why]
        lines.texts[item.id] = _format(lines.rows[item.id])
        written["removed" if target == REMOVED else "relabelled"] += 1
        removed_test += target == REMOVED and item.split == "test"
    removed = Counter(facts[id_] for id_, row in lines.rows.items() if id_ in facts and not row[2])
    return Changes(
        "".join(lines.texts.values()),
        written,
        dropped,
        differences,
        skipped_test,
        removed_test,
        {dataset.classes[label]: (count, sizes[label]) for label, count in sorted(removed.items())},
    )


def find_large_removals(changes: Changes) -> list[str]:
    """Describe what to confirm: removal of a large share of a class, or of test images. Empty if nothing is new."""
    if not changes.written["removed"]:
        return []
    large = [
        f"{count:,} of {size:,} images of {name} are removed: more than {MOST_REMOVED:.0%}"
        for name, (count, size) in changes.removed.items()
        if count > MOST_REMOVED * size
    ]
    return large + ([f"{changes.removed_test:,} test images are removed"] if changes.removed_test else [])


def write_changes(workspace: Path, dataset: Dataset, changes: Changes) -> None:
    """Write `data/corrections.csv`, if anything changed.

    Raises:
        DataError: the new lines contradict each other. The file stays as it was.
    """
    path = workspace / CORRECTIONS
    if changes.text.encode() == path.read_bytes():
        return
    with atomic_file(path) as partial:
        partial.write_bytes(changes.text.encode())
        read_corrections(partial, dataset)


def _difference(item: Item, dataset: Dataset, opinions: Sequence[tuple[str, str]]) -> Difference:
    image = item.id if item.official_row is None else f"{item.split} {item.official_row}"
    return Difference(image, dataset.classes[item.given], tuple(opinions))


def _parse(text: str) -> _Lines:
    """Split the file into its records, which may contain line breaks. `read_corrections` has checked them."""
    raw = text.splitlines(keepends=True)
    if raw and not raw[-1].endswith(("\n", "\r")):
        raw[-1] += "\n"
    reader, found, start = csv.reader(io.StringIO(text, newline="")), _Lines(), 0
    ends = [(row, reader.line_num) for row in reader]
    for number, (row, end) in enumerate(ends):
        id_ = row[0] if number and row else "" if not number else f"empty line {number}"
        found.texts[id_] = "".join(raw[start:end])
        if number and row:
            found.rows[id_] = row
        start = end
    return found


def _format(row: list[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(row)
    return out.getvalue()


def _read_facts(workspace: Path, dataset: Dataset, ids: Sequence[str]) -> tuple[dict[str, int], Counter[int]]:
    """Return the labels before corrections by id, and the number of training images of each class.

    Images that the corrections removed count as well.
    """
    wanted = set(ids)
    removed = read_removed(workspace / TABLES["train"].parent)
    sizes = Counter(image.given for image in removed if image.split == "train")
    facts = {image.id: image.given for image in removed if image.id in wanted}
    for split, path in TABLES.items():
        for columns in stream_columns(workspace / path, ("id", "given")):
            given = label_column(columns, "given")
            if split == "train":
                sizes.update(given.tolist())
            for id_, label in zip(columns.column("id").to_pylist(), given.tolist(), strict=True):
                if id_ in wanted:
                    facts.setdefault(id_, label)
    return facts, sizes


def _find_contradictions(outcomes: Sequence[Outcome], prefer: str | None) -> dict[str, tuple[tuple[str, str], ...]]:
    """Find copies of an image whose verdicts give different labels: a correction holds for all copies."""
    by_pixels: dict[str, list[Verdict]] = {}
    for outcome in outcomes:
        verdict = outcome.settle(prefer)
        if verdict is not None:
            by_pixels.setdefault(verdict.id[:SHA1_DIGITS], []).append(verdict)
    return {
        pixels: tuple((verdict.who, f"{verdict.verdict} the copy {verdict.id[SHA1_DIGITS:]}") for verdict in verdicts)
        for pixels, verdicts in by_pixels.items()
        if len({verdict.target for verdict in verdicts}) > 1
    }


def _read_label(row: list[str], dataset: Dataset) -> int | None:
    """Return the label that a line gives; None if it names none of the classes."""
    if not row[2]:
        return REMOVED
    found = find_class(row[2], dataset.classes, dataset.classes_ko)
    return found.pop() if len(found) == 1 else None


def _name(label: int | None, dataset: Dataset) -> str:
    return "no class" if label is None else "remove" if label == REMOVED else dataset.classes[label]
