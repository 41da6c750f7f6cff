"""`data/corrections.csv`: labels that people corrected, and images that they removed.

Columns: `id` of an image; `given` and `label`, the class before and after, by name or number; `who`, `when`, `why`. An
empty `label` removes the image. A correction holds for all copies of the image in the training data. The test split is
corrected only by an id that starts with `test/`, and such an id corrects only the test split. The labels as given stay
in the table, because the split's thresholds are drawn on them: a correction moves no other image.
"""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.data.applied_corrections import Applied
from pipeline.data.table import SHA1_DIGITS, Dataset
from pipeline.errors import DataError, remedy_for_committed
from pipeline.image_class_names import find_class

CORRECTIONS = Path("data/corrections.csv")
COLUMNS = ["id", "given", "label", "who", "when", "why"]
TEST_PREFIX = "test/"  # of the id of a test image
SHOWN = 5


@dataclass
class Corrections:
    """The corrections of a dataset. Counts those that were applied."""

    dataset: Dataset
    given: dict[str, str]  # by id
    labels: dict[str, str]  # by the id without the number of the copy
    people: dict[str, str]  # likewise
    found: set[str] = field(default_factory=set)  # ids
    of_test: set[str] = field(default_factory=set)  # ids without the prefix that test images have
    applied: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)  # images by split, given, label, who

    def apply(self, split: str, ids: Sequence[str], given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Correct some labels. Call it for all images.

        Args:
            split: `train` or `test`.
            given: integers [n].

        Returns:
            the corrected labels, uint16 [n], and whether each image is kept, bool [n].

        Raises:
            DataError: a correction names no class, or another one than the image's.
        """
        labels, kept = given.astype(np.uint16), np.ones(len(given), bool)
        if not self.labels:
            return labels, kept
        is_test = split == "test"
        for row, image in enumerate(ids):
            if is_test and image in self.given:
                self.of_test.add(image)
            id_ = TEST_PREFIX + image if is_test else image
            if id_ in self.given:
                self.found.add(id_)
                self._require_given(id_, int(given[row]))
            key = _without_copy(id_)
            if key not in self.labels:
                continue
            written, before, after = self.labels[key], self.dataset.classes[given[row]], ""
            if written:
                labels[row] = self._find_label(id_, written)
                after = self.dataset.classes[labels[row]]
            else:
                kept[row] = False
            self.applied[split, before, after, self.people[key]] += 1
        return labels, kept

    def list_applied(self) -> list[Applied]:
        """Count the images that were corrected so far, by split, classes and person."""
        return [Applied(*key, images) for key, images in sorted(self.applied.items())]

    def require_found(self, *, windowed: bool) -> str:
        """Check that each correction is of an image, and return a line about them; empty if there are none.

        If no correction is of an image of this dataset, all are those of another one. So is one whose `given` is not a
        class of this dataset.

        Args:
            windowed: whether a window left images out. Their corrections have no image.

        Raises:
            DataError: names the ids that no image has, or that only test images have.
        """
        if only_test := sorted(self.of_test - self.found) if not windowed else []:
            raise DataError(
                f"{len(only_test)} corrections in {CORRECTIONS} are of images of the test split",
                expected=f"the id of a training image, or to correct the test split too: {TEST_PREFIX}{only_test[0]}",
                found=f"{', '.join(only_test[:SHOWN])}{', …' if only_test[SHOWN:] else ''}",
                remedy=f"write {TEST_PREFIX} before these ids, or remove their lines from {CORRECTIONS}",
            )
        classes = self.dataset.classes, self.dataset.classes_ko
        missing = [id_ for id_, name in self.given.items() if id_ not in self.found and find_class(name, *classes)]
        if missing and self.found and not windowed:
            raise DataError(
                f"{len(missing)} corrections in {CORRECTIONS} are of no image of {self.dataset.name}",
                expected="the id of an image in data/dataset",
                found=f"{', '.join(missing[:SHOWN])}{', …' if missing[SHOWN:] else ''}",
                remedy=f"correct these ids, or remove their lines from {CORRECTIONS}",
            )
        if not self.given:
            return ""
        others = len(self.given) - len(self.found)
        return f"corrections: {len(self.found)} applied" + (f", {others} of no image here" if others else "")

    def _require_given(self, id_: str, label: int) -> None:
        written = self.given[id_]
        if label not in find_class(written, self.dataset.classes, self.dataset.classes_ko):
            raise DataError(
                f"the correction of {id_} in {CORRECTIONS} is of another label",
                expected=f"given: {self.dataset.classes[label]}, the image's label",
                found=repr(written),
                remedy=f"look at the image again, and correct or remove its line in {CORRECTIONS}",
            )

    def _find_label(self, id_: str, written: str) -> int:
        found = find_class(written, self.dataset.classes, self.dataset.classes_ko)
        if len(found) != 1:
            raise DataError(
                f"the correction of {id_} in {CORRECTIONS} does not name a class",
                expected=f"the name or the number of one of {', '.join(self.dataset.classes)}; empty: remove the image",
                found=repr(written),
                remedy=f"correct its label in {CORRECTIONS}",
            )
        return found.pop()


def read_corrections(path: Path, dataset: Dataset) -> Corrections:
    """Read the corrections. Their ids and labels are checked when they are applied.

    Raises:
        DataError: the file is missing, has other columns, or corrects an image twice.
    """
    corrections = Corrections(dataset, {}, {}, {})
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except FileNotFoundError:
        raise DataError(f"{path} is missing", remedy=remedy_for_committed(path)) from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8", found=str(error), remedy=f"correct {path}") from None
    if not rows or rows[0] != COLUMNS:
        found = ",".join(rows[0]) if rows else "an empty file"
        raise DataError(f"{path} has other columns", expected=",".join(COLUMNS), found=found, remedy=f"correct {path}")
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        if len(row) != len(COLUMNS) or not re.fullmatch(rf"({TEST_PREFIX})?[0-9a-f]{{40}}-\d+", row[0]):
            raise DataError(
                f"line {number} of {path} is not a correction",
                expected=f"{','.join(COLUMNS)}, with an id such as {'0' * SHA1_DIGITS}-0",
                found=",".join(row),
                remedy=f"correct {path}",
            )
        id_, given, label, who = row[:4]
        key = _without_copy(id_)
        if id_ in corrections.given or corrections.labels.setdefault(key, label) != label:
            raise DataError(f"line {number} of {path} corrects {id_} again", remedy=f"keep one of its lines in {path}")
        corrections.given[id_] = given
        corrections.people.setdefault(key, who)
    return corrections


def _without_copy(id_: str) -> str:
    """Return an id without the number of the copy: all copies of an image have the same."""
    return id_[: SHA1_DIGITS + (len(TEST_PREFIX) if id_.startswith(TEST_PREFIX) else 0)]
