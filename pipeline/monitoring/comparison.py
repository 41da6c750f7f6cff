"""The batches in `data/incoming/` held against the training data, with what that came to kept for the next time.

A result is kept by the digests of all that it rests on: a scheduled look at batches that were seen before measures none
of their images and loads no model.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.batches.quarantine import read_digests
from pipeline.data import batches, decoders, features, table
from pipeline.data.batches import INCOMING, POINTER, Pair, read_batch
from pipeline.data.table import OFFICIAL, Dataset
from pipeline.errors import DataError
from pipeline.evaluation.metrics import class_probabilities
from pipeline.files import file_digest, read_kept, write_json
from pipeline.monitoring import drift
from pipeline.monitoring.drift import BatchDrift, Sample
from pipeline.params import MonitorParams
from pipeline.registry.champion import find_champion
from pipeline.registry.model_files import CannotBeJudged
from pipeline.tracking.outputs import DATASET, Outputs
from pipeline.workspace import STATE, main_repository

KEPT = STATE / "monitoring/comparisons"

Ask = Callable[[np.ndarray], np.ndarray]  # images uint8 [n, height, width] to confidences float64 [n]


@dataclass(frozen=True)
class Compared:
    """What came of the batches, in the order of their names."""

    batches: tuple[BatchDrift, ...]  # those that could be read
    digests: Mapping[str, str]  # MD5 of the content of those that are here, by name
    unreadable: Mapping[str, str]  # why, by name
    reference: str  # what they were compared with
    champion: str  # who was asked for confidences, or why nobody was


def compare_batches(workspace: Path, params: MonitorParams) -> Compared:
    """Hold each batch against the training data. One that cannot be read is noted, and the others go on.

    Raises:
        DataError: there are batches, and no training data to compare them with.
        TrackingError: the registry cannot be used.
    """
    incoming, keep = workspace / INCOMING, workspace / KEPT
    digests, unreadable = _find_batches(workspace)
    if not digests:
        return Compared((), {}, unreadable, "nothing", "nothing to ask about")
    training = _Training(workspace / DATASET / "train.parquet")
    oracle = _Oracle(workspace, training.dataset)
    batches, used = [], set()
    for name, digest in digests.items():
        kept = keep / _key(digest, training.identity, oracle.identity)
        result = read_kept(kept)
        if result is None:
            reference = training.describe(oracle.confidences)  # first: if this fails, it is no fault of the batch
            try:
                result = _compare(incoming / name, reference, training.dataset, oracle.ask)
            except OSError as error:
                unreadable[name] = error.strerror or str(error)
                continue
            kept = keep / _key(digest, training.identity, oracle.identity)  # another, if the champion cannot be asked
            write_json(kept, result)
        used.add(kept)
        if "unreadable" in result:
            unreadable[name] = result["unreadable"]
            continue
        comparisons = drift.from_json(result["comparisons"])
        batches.append(BatchDrift(name, result["images"], comparisons, drift.find_drifted(comparisons, params)))
    for path in set(keep.glob("*.json")) - used:
        path.unlink()
    return Compared(tuple(batches), digests, dict(sorted(unreadable.items())), str(training), oracle.standing)


class _Training:
    """The dataset's own training images, measured when the first batch that is new needs it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.dataset = table.read_dataset(path)
        self.identity, self._images = _identify(path)
        if not self._images:
            raise DataError(f"{path} has no images of the dataset's own", remedy="dvc repro ingest")

    def __str__(self) -> str:
        return f"the {self._images:,} training images of {self.dataset.name} that came with it"

    @cached_property
    def _sample(self) -> Sample:
        return _describe(_read_official(self._path), self.dataset, None)

    def describe(self, confidences: np.ndarray | None) -> Sample:
        """What a batch is compared with. confidences: float64 [m], of other images than those of the features."""
        return drift.with_confidences(self._sample, confidences)


class _Oracle:
    """The champion, asked how sure it is; loaded at the first question."""

    def __init__(self, workspace: Path, dataset: Dataset) -> None:
        self._dataset, self._split = dataset, Outputs(workspace).split("validation")
        self._champion = find_champion(workspace)
        if not self._champion:
            self._leave_out("there is no champion yet")
        elif not self._split.is_file():
            self._leave_out(f"there is no {self._split.name} to compare with")
        else:
            identity, images = _identify(self._split)
            self.standing = f"that of {self._champion}, on {images:,} validation images that came with the dataset"
            self.identity = self._champion.digest + identity
            if not images:
                self._leave_out("no validation image came with the dataset")

    def _leave_out(self, reason: str) -> None:
        self._champion, self.identity, self.standing = None, "", f"left out, because {reason}"

    @cached_property
    def ask(self) -> Ask | None:
        """The largest probability that the champion gives; None when it cannot be asked, as `standing` then says."""
        if not self._champion:
            return None
        try:
            answer = self._champion.create_predictor((self._dataset.height, self._dataset.width))
        except CannotBeJudged as error:
            self._leave_out(f"{self._champion} cannot be asked: {error.problem}")
            return None
        # An answer that is not a number is no confidence at all.
        return lambda images: np.nan_to_num(class_probabilities(answer(images)).max(axis=1), nan=0.0)

    @cached_property
    def confidences(self) -> np.ndarray | None:
        """On the dataset's own validation images: float64 [n]."""
        ask = self.ask
        return np.concatenate([ask(images) for images, _ in _read_official(self._split)]) if ask else None


def _compare(path: Path, reference: Sample, dataset: Dataset, ask: Ask | None) -> dict[str, Any]:
    """A batch beside the reference, as it is kept: without its name, and without a word on what is too large an effect.

    Raises:
        OSError: the batch went away, or is not ours to read: nothing to be kept.
    """
    try:
        batch = _describe(read_batch(path, dataset), dataset, ask)
    except DataError as error:
        # The cause says what is wrong; `read_batch` raises it anew with the batch's name, and how to mend it.
        cause = error.__cause__ if isinstance(error.__cause__, DataError) else error
        told = "; ".join(filter(None, [cause.problem, cause.found and f"found {cause.found}"]))
        return {"unreadable": told.replace(f"{path.parent}/", "")}
    return {"images": batch.images, "comparisons": drift.to_json(drift.compare(batch, reference))}


def _find_batches(workspace: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The digests of what has arrived, with a pointer or without, by name; and why of what is not here, or torn."""
    digests, unreadable = read_digests(main_repository(workspace), workspace / INCOMING)
    for pointer in (workspace / INCOMING).glob(f"[!.]*{POINTER}"):
        if not os.path.lexists(pointer.with_suffix("")):
            unreadable[pointer.stem] = "only its pointer is here: dvc pull"
    return dict(sorted(digests.items())), unreadable


def _identify(path: Path) -> tuple[str, int]:
    """A digest and the number of a table's official images, from its small columns: ids hold digests of the pixels."""
    digest, images = hashlib.sha256(repr(table.read_dataset(path)).encode()), 0
    for rows in table.stream_columns(path, ["id", "label", "source"]):
        columns = (rows.column(name).to_pylist() for name in ("id", "label", "source"))
        for id_, label, source in zip(*columns, strict=True):
            if source == OFFICIAL:
                digest.update(f"{id_} {label}\n".encode())
                images += 1
    return digest.hexdigest(), images


def _read_official(path: Path) -> Iterator[Pair]:
    """The images of a table that no batch brought, a row group in memory at a time."""
    for rows in table.stream(path):
        official = np.array([source == OFFICIAL for source in rows.sources.to_pylist()], bool)
        if official.any():
            yield rows.images[official], rows.labels[official]


def _describe(pairs: Iterable[Pair], dataset: Dataset, ask: Ask | None) -> Sample:
    """What is compared of some images, of which there is at least one, read once."""
    confidences = []

    def chunks() -> Iterator[features.Chunk]:
        for images, labels in pairs:
            if ask:
                confidences.append(ask(images))
            yield images, labels, table.strings([""] * len(labels))

    measured = features.measure(chunks())
    assert measured, "an empty batch is refused, and so is an empty reference"
    sample = drift.describe_images(measured, dataset.classes)
    return drift.with_confidences(sample, np.concatenate(confidences) if ask else None)


def _key(*digests: str) -> str:
    """The name of a result: by what was compared, and by the code that compares."""
    code = [file_digest(Path(str(module.__file__))) for module in (batches, decoders, drift, features)]
    return hashlib.sha256(" ".join([*digests, *code]).encode()).hexdigest() + ".json"
