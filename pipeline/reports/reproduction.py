"""Whether a version was made again: its outputs then and now, how far its answers agree, and what to call that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

# What separates rounding from another training, in the test answers of the `mlp` preset on Fashion-MNIST: the same
# training on one, two, three and four threads against trainings with other seeds (docs/reproduction.md has the table).
MIN_SAME_ANSWERS = 0.96  # share of the images
MAX_MEAN_DISTANCE = 0.04  # total variation distance of an image's probabilities (0 to 1), mean over the images

MODEL = "models/model.keras"
SHOWN_FILES = 4
TEXT = (".csv", ".json", ".md")

Outcome = Literal["identical", "equivalent", "not reproduced"]


@dataclass(frozen=True)
class Difference:
    """An output that is not what it was."""

    path: str
    recorded: str  # digest
    found: str  # digest; `missing` where there is none
    how: str  # in words, as far as it can be seen


@dataclass(frozen=True)
class StageResult:
    """What became of a stage in a reproduction."""

    stage: str
    outcome: Literal["ran", "restored", "failed", "not reached"]  # restored: its recorded outputs, by their digests
    seconds: float = 0.0
    differences: tuple[Difference, ...] = ()
    compared: bool = True  # whether the record says what its outputs were


@dataclass(frozen=True)
class Agreement:
    """How far two models answer alike about the same images."""

    images: int
    same_answers: float  # share of the images
    mean_distance: float  # total variation distance of the probabilities, mean over the images
    largest_distance: float

    @property
    def within_tolerance(self) -> bool:
        return self.same_answers >= MIN_SAME_ANSWERS and self.mean_distance <= MAX_MEAN_DISTANCE

    def __str__(self) -> str:
        return (
            f"{self.same_answers:.2%} of {self.images:,} test images get the same answer (tolerance: "
            f"{MIN_SAME_ANSWERS:.0%} or more), and probabilities differ by {self.mean_distance:.4f} on average "
            f"(tolerance: {MAX_MEAN_DISTANCE} or less)"
        )


@dataclass(frozen=True)
class Verdict:
    """What a reproduction came to."""

    outcome: Outcome
    reason: str  # in words
    stages: tuple[StageResult, ...]
    agreement: Agreement | None = None  # None: there was nothing to compare, or no need

    @property
    def first_difference(self) -> tuple[str, Difference] | None:
        """The first stage whose output differs, and that output."""
        return next(((stage.stage, stage.differences[0]) for stage in self.stages if stage.differences), None)


def judge(stages: Sequence[StageResult], agreement: Agreement | None, causes: Sequence[str]) -> Verdict:
    """What to call a reproduction.

    A model that differs is equivalent only if something that may change the last bits is known to differ too. Without
    such a cause, what changed it is not in the record, however close the answers are.

    Args:
        stages: those up to `evaluate`, in order.
        agreement: of the answers about the test images; None when they cannot be compared.
        causes: what differs in the libraries, the processor and its use.
    """
    results = tuple(stages)
    first = next(((result, result.differences[0]) for result in results if result.differences), None)
    train = next(result for result in results if result.stage == "train")
    if train.outcome == "ran" and all(difference.path != MODEL for difference in train.differences):
        others = [f"{result.stage} ({result.differences[0].how})" for result in results if result.differences]
        aside = f"; other outputs differ: {', '.join(others)}" if others else ""
        return Verdict("identical", f"the model file is the same, byte for byte{aside}", results)
    if failed := next((result for result in results if result.outcome == "failed"), None):
        return Verdict("not reproduced", f"{failed.stage} failed", results)
    assert first  # the model differs
    where = f"{first[0].stage} is the first stage whose output differs: {first[1].path} ({first[1].how})"
    if agreement and agreement.within_tolerance and causes:
        reason = f"the model file differs, its answers agree: {agreement}. Found as the reason: {'; '.join(causes)}"
        return Verdict("equivalent", reason, results, agreement)
    found = f"Differs too: {'; '.join(causes)}" if causes else "Libraries, processor and threads are as recorded"
    answers = f"{agreement}. " if agreement else ""
    return Verdict("not reproduced", f"{where}. {answers}{found}", results, agreement)


def compare_predictions(recorded: Path, found: Path) -> Agreement | None:
    """The agreement of two `predictions.parquet`; None where they are not about the same images and classes."""
    if not (recorded.is_file() and found.is_file()):
        return None
    one, other = (pq.read_table(path, columns=["id", "probabilities"]) for path in (recorded, found))
    if not one["id"].equals(other["id"]) or one["probabilities"].type != other["probabilities"].type:
        return None
    before, now = (_probabilities(table["probabilities"]) for table in (one, other))
    distances = np.abs(before - now).sum(axis=1) / 2
    return Agreement(
        images=len(before),
        same_answers=float((before.argmax(axis=1) == now.argmax(axis=1)).mean()),
        mean_distance=float(distances.mean()),
        largest_distance=float(distances.max()),
    )


def find_causes(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """What differs between two machines and environments, each a mapping from a name to a value, in words."""
    names = sorted(recorded.keys() & found.keys())
    return [f"{name}: {_contrast(recorded[name], found[name])}" for name in names if recorded[name] != found[name]]


def describe_difference(recorded: Path, found: Path) -> str:
    """In what a file or a directory differs from what it was; `recorded` may be gone, then its digest is all there is.

    For a text, that is its first line that differs.
    """
    if not found.exists():
        return "it was not made"
    if not recorded.exists():
        return "its digest differs"
    if recorded.is_file():
        return _describe_file(recorded, found)
    before, now = _files(recorded), _files(found)
    changed = [name for name in sorted(before & now) if (recorded / name).read_bytes() != (found / name).read_bytes()]
    parts = [
        *(f"{name} is missing" for name in sorted(before - now)),
        *(f"{name} is new" for name in sorted(now - before)),
        *(f"{name}: {_describe_file(recorded / name, found / name)}" for name in sorted(changed, key=_texts_first)),
    ]
    more = [f"and {len(parts) - SHOWN_FILES} more files"] if len(parts) > SHOWN_FILES else []
    return "; ".join(parts[:SHOWN_FILES] + more)


def _probabilities(column: Any) -> np.ndarray:
    """A column of lists of one length as float64 [n, classes]."""
    array = column.combine_chunks()
    return np.asarray(array.flatten(), np.float64).reshape(len(array), -1)


def _contrast(recorded: str, found: str) -> str:
    """Two values; of two lists of words only what one has and the other has not."""
    one, other = recorded.split(), found.split()
    if max(len(one), len(other)) < 2:
        return f"{recorded} then, {found} now"
    lost, gained = [word for word in one if word not in other], [word for word in other if word not in one]
    return ", ".join([*(f"without {word}" for word in lost), *(f"with {word}" for word in gained)])


def _describe_file(recorded: Path, found: Path) -> str:
    if found.suffix not in TEXT:
        return "other bytes"
    before, now = (path.read_text(encoding="utf-8", errors="replace").splitlines() for path in (recorded, found))
    for number, (old, new) in enumerate(zip(before, now, strict=False), start=1):
        if old != new:
            return f"line {number} was {old.strip()!r}, is {new.strip()!r}"
    return f"{len(before)} lines then, {len(now)} now"


def _files(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def _texts_first(name: str) -> tuple[bool, str]:
    return Path(name).suffix not in TEXT, name
