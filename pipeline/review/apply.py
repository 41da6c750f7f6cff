"""Verdicts become lines of `data/corrections.csv`. All other lines of the file stay as they are."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.corrections import CORRECTIONS, TEST_PREFIX, read_corrections
from pipeline.data.removed_images import read_removed
from pipeline.data.table import Dataset, label_column, stream_columns
from pipeline.errors import WorkspaceError
from pipeline.files import atomic_file
from pipeline.image_class_names import find_class
from pipeline.review.images import TABLES
from pipeline.review.items import Item, as_key
from pipeline.review.verdicts import REMOVED, Outcome, Verdict

MOST_REMOVED = 0.01  # share of a class that is removed without a question


@dataclass(frozen=True)
class Difference:
    """An image about which two people differ. Nothing is written about it."""

    image: str  # its row in the official order, or its id
    given: str
    opinions: tuple[tuple[str, str], ...]  # who, and the label in words


@dataclass
class _Lines:
    """The lines of the file by id, in their order, with their text."""

    rows: dict[str, list[str]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)  # as they are in the file; "" for the header


@dataclass
class Changes:
    """The changes of `data/corrections.csv` that follow from the verdicts of a review."""

    text: str = ""  # the new content of the file
    written: Counter[str] = field(default_factory=Counter)  # new and replaced lines: `relabelled`, `removed`
    dropped: int = 0  # lines of the same reader, whose later verdict keeps the label
    differences: list[Difference] = field(default_factory=list)
    skipped_test: int = 0  # test images, which are corrected only if that is asked for
    removed_test: int = 0  # test images that new lines remove
    removed: dict[str, tuple[int, int]] = field(default_factory=dict)  # of a class: removed by all lines, before


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
    lines = _parse(path.read_bytes().decode())
    facts, sizes = _read_facts(workspace, dataset, [*lines.rows, *(outcome.item.key for outcome in outcomes)])
    contradicting = _find_contradictions(outcomes, prefer)
    changes = Changes()
    for outcome in outcomes:
        item, verdict = outcome.item, outcome.settle(prefer)
        if item.split == "test" and not include_test:
            changes.skipped_test += outcome.differs or (
                verdict is not None and verdict.target not in (None, item.given)
            )
            continue
        opinions = [(each.who, _name(each.target, dataset)) for each in outcome.verdicts if each.target is not None]
        if outcome.differs and verdict is None:
            changes.differences.append(_difference(item, dataset, opinions))
        if verdict is None or verdict.target is None:
            continue
        if copies := contradicting.get(_without_copy(item.key)):
            changes.differences.append(_difference(item, dataset, copies))
            continue
        if item.key not in facts:
            raise WorkspaceError(
                f"the image {item.id} is not in data/dataset",
                expected="the dataset that the list was made of",
                remedy="dvc repro ingest, or: pipeline review labels",
            )
        former = [row for id_, row in lines.rows.items() if _without_copy(id_) == _without_copy(item.key)]
        current = _read_label(former[0], dataset) if former else facts[item.key]
        if verdict.target == current or (former and prefer == former[0][3] != verdict.who):
            continue
        if len(former) > 1 or (former and verdict.who not in (former[0][3], prefer)):
            line = (former[0][3], f"{_name(current, dataset)} in {CORRECTIONS}")
            changes.differences.append(_difference(item, dataset, [*opinions, line]))
            continue
        if former and former[0][0] == item.key and verdict.target == facts[item.key]:
            del lines.rows[item.key], lines.texts[item.key]
            changes.dropped += 1
            continue
        # The line of a copy holds for this image, too.
        id_, given = former[0][:2] if former else (item.key, dataset.classes[facts[item.key]])
        label = "" if verdict.target == REMOVED else dataset.classes[verdict.target]
        lines.rows[id_] = [id_, given, label, verdict.who, verdict.when, f"review {review}: {item.reason}"]
        lines.texts[id_] = _format(lines.rows[id_])
        changes.written["relabelled" if label else "removed"] += 1
        changes.removed_test += not label and item.split == "test"
    removed = Counter(
        facts[id_] for id_, row in lines.rows.items() if id_ in facts and not _is_test(id_) and not row[2]
    )
    changes.removed = {dataset.classes[label]: (count, sizes[label]) for label, count in sorted(removed.items())}
    changes.text = "".join(lines.texts.values())
    return changes


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
    raw = io.StringIO(text, newline="").readlines()  # lines as the CSV reader counts them
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
    facts = {key: image.given for image in removed if (key := as_key(image.split, image.id)) in wanted}
    for split, path in TABLES.items():
        for columns in stream_columns(workspace / path, ("id", "given")):
            given = label_column(columns, "given")
            if split == "train":
                sizes.update(given.tolist())
            for id_, label in zip(columns.column("id").to_pylist(), given.tolist(), strict=True):
                if (key := as_key(split, id_)) in wanted:
                    facts[key] = label
    return facts, sizes


def _is_test(id_: str) -> bool:
    return id_.startswith(TEST_PREFIX)


def _without_copy(id_: str) -> str:
    """Return an id without the number of the copy. A correction holds for all copies of an image in a split."""
    return id_.rpartition("-")[0]


def _find_contradictions(outcomes: Sequence[Outcome], prefer: str | None) -> dict[str, tuple[tuple[str, str], ...]]:
    """Find copies of an image whose verdicts give different labels: a correction holds for all copies."""
    by_pixels: dict[str, list[Verdict]] = {}
    for outcome in outcomes:
        if (verdict := outcome.settle(prefer)) is not None:
            by_pixels.setdefault(_without_copy(outcome.item.key), []).append(verdict)
    return {
        pixels: tuple((each.who, f"{each.verdict} copy {each.id.rpartition('-')[2]}") for each in verdicts)
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
