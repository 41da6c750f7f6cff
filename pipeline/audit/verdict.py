"""The verdict on a reproduction: identical, equivalent or not reproduced, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.errors import DataError
from pipeline.evaluation.predictions import read_predictions
from pipeline.tracking.stage_outputs import EXPORTED_MODEL, INT8_MODEL, MODEL

# Limits between rounding and a different training. Measured on the test predictions of the `mlp` preset: the
# same training on one to four threads, and trainings with other seeds (numbers in docs/reproduction.md).
MIN_SAME_PREDICTIONS = 0.96  # share of the images
MAX_MEAN_DISTANCE = 0.04  # total variation distance of an image's probabilities (0 to 1), mean over the images

SHOWN_FILES = 4
TEXT = (".csv", ".json", ".md")

StageOutcome = Literal["ran", "restored", "failed", "not reached"]  # restored: its recorded outputs were used


@dataclass(frozen=True)
class Difference:
    """An output that differs from the recorded one."""

    path: str
    recorded: str  # digest
    found: str  # digest, or `missing`
    how: str  # description: the first line that differs, or missing files


@dataclass(frozen=True)
class ReproducedStage:
    """The outcome of a stage in a reproduction, with its outputs."""

    stage: str
    outcome: StageOutcome
    differences: tuple[Difference, ...] = ()
    compared: bool = False  # False: it did not run, or the record does not have its outputs


@dataclass(frozen=True)
class Agreement:
    """Agreement of the predictions of two models for the same images."""

    images: int
    same_predictions: float  # share of the images
    mean_distance: float  # total variation distance of the probabilities, mean over the images

    @property
    def within_tolerance(self) -> bool:
        return self.same_predictions >= MIN_SAME_PREDICTIONS and self.mean_distance <= MAX_MEAN_DISTANCE

    def __str__(self) -> str:
        return (
            f"{self.same_predictions:.2%} of {self.images:,} test predictions are the same (tolerance: "
            f"{MIN_SAME_PREDICTIONS:.0%} or more), and probabilities differ by {self.mean_distance:.4f} on average "
            f"(tolerance: {MAX_MEAN_DISTANCE} or less)"
        )


@dataclass(frozen=True)
class Verdict:
    """The result of a reproduction."""

    outcome: Literal["identical", "equivalent", "not reproduced"]
    reason: str
    stages: tuple[ReproducedStage, ...]
    agreement: Agreement | None = None  # None: not needed, or there is nothing to compare


def decide_verdict(stages: Sequence[ReproducedStage], agreement: Agreement | None, causes: Sequence[str]) -> Verdict:
    """Determine the verdict of a reproduction. It is identical if the model files are: the rest follows from them.

    A different model is equivalent only if there is a known cause that may change the last bits. Otherwise a cause that
    was not recorded changed the model, however close the predictions are.

    Args:
        stages: those up to `evaluate`, in order.
        agreement: of the test predictions; None if they cannot be compared.
        causes: differences in libraries, processor and threads.
    """
    stages = tuple(stages)
    differing = [(stage.stage, stage.differences[0]) for stage in stages if stage.differences]
    train = next(stage for stage in stages if stage.stage == "train")
    model_files = (MODEL, EXPORTED_MODEL, INT8_MODEL)
    if train.outcome == "ran" and not any(difference.path in model_files for difference in train.differences):
        others = ", ".join(f"{stage} ({difference.how})" for stage, difference in differing)
        others = f"; other outputs differ: {others}" if others else ""
        return Verdict("identical", f"the model file is the same, byte for byte{others}", stages)
    if failed := [stage.stage for stage in stages if stage.outcome == "failed"]:
        return Verdict("not reproduced", f"{failed[0]} failed", stages)
    if agreement and agreement.within_tolerance and causes:
        reason = f"the model file differs, but the predictions agree: {agreement}. Known causes: {'; '.join(causes)}"
        return Verdict("equivalent", reason, stages, agreement)
    stage, difference = differing[0]
    reason = f"{stage} is the first stage whose output differs: {difference.path} ({difference.how})"
    found = f"Also different: {'; '.join(causes)}" if causes else "Libraries, processor and threads are as recorded"
    reason = ". ".join([reason, *([str(agreement)] if agreement else []), found])
    return Verdict("not reproduced", reason, stages, agreement)


def compare_predictions(recorded: Path, found: Path) -> Agreement | None:
    """Compare two `predictions.parquet`. Returns None if one is missing, or their images or classes differ."""
    try:
        one, other = read_predictions(recorded), read_predictions(found)
    except DataError:
        return None
    if one.ids != other.ids or one.classes != other.classes:
        return None
    distances = np.abs(one.probabilities - other.probabilities).sum(axis=1, dtype=np.float64) / 2
    return Agreement(len(one.ids), float((one.predicted == other.predicted).mean()), float(distances.mean()))


def find_causes(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Describe the differences between two machines and environments, in the facts that are known for both."""
    names = [name for name in sorted(recorded.keys() & found.keys()) if recorded[name] != found[name]]
    return [f"{name}: {_contrast(name, recorded[name], found[name])}" for name in names]


def describe_difference(recorded: Path, found: Path) -> str:
    """Describe how a file or a directory differs from the recorded one. Only the digest of the latter may be known."""
    if not found.exists():
        return "missing"
    if not recorded.exists():
        return "its digest differs"
    if recorded.is_file():
        return _describe_file(recorded, found)
    names = {path.relative_to(root) for root in (recorded, found) for path in root.rglob("*") if path.is_file()}
    texts_first = sorted(names, key=lambda name: (name.suffix not in TEXT, name))
    parts = [f"{name}: {how}" for name in texts_first if (how := _describe_file(recorded / name, found / name))]
    more = [f"and {len(parts) - SHOWN_FILES} more files"] if len(parts) > SHOWN_FILES else []
    return "; ".join(parts[:SHOWN_FILES] + more)


def _contrast(name: str, recorded: str, found: str) -> str:
    if not name.endswith("features"):
        return f"{recorded} recorded, {found} now"
    lost = [f"without {feature}" for feature in recorded.split() if feature not in found.split()]
    gained = [f"with {feature}" for feature in found.split() if feature not in recorded.split()]
    return ", ".join(lost + gained)


def _describe_file(recorded: Path, found: Path) -> str:
    """Describe how a file differs. Returns an empty text if it does not."""
    if not (recorded.exists() and found.exists()):
        return "new" if found.exists() else "missing"
    if recorded.read_bytes() == found.read_bytes():
        return ""
    if found.suffix not in TEXT:
        return "its bytes differ"
    before, now = (path.read_text(encoding="utf-8", errors="replace").splitlines() for path in (recorded, found))
    for number, (old, new) in enumerate(zip(before, now, strict=False), start=1):
        if old != new:
            return f"line {number} was {old.strip()!r}, is {new.strip()!r}"
    return f"{len(before)} lines recorded, {len(now)} now"
