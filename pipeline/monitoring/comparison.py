"""Comparison of the batches in `data/incoming/` with the training data, with a cache of the results.

The key of a cached result is a digest of all its inputs. If all batches are in the cache, a scheduled run measures no
images and loads no model.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.batches.incoming import read_digests
from pipeline.data import batches, decoders, features, table
from pipeline.data.batch_formats import Pair, read_batch
from pipeline.data.batches import INCOMING, POINTER
from pipeline.data.table import OFFICIAL, Dataset
from pipeline.errors import DataError
from pipeline.evaluation.metrics import class_probabilities
from pipeline.files import file_digest, read_cached_json, write_json
from pipeline.monitoring import drift
from pipeline.monitoring.drift import BatchDrift, Sample
from pipeline.monitoring.params import MonitorParams
from pipeline.registry.champion import find_champion
from pipeline.registry.load_version import CannotBeJudged
from pipeline.tracking.stage_outputs import DATASET, Outputs
from pipeline.workspace import STATE, main_repository

CACHE = STATE / "monitoring/comparisons"

Confidence = Callable[[np.ndarray], np.ndarray]  # images uint8 [n, *shape] to largest probabilities float64 [n]


@dataclass(frozen=True)
class ComparedBatches:
    """Results of all batches."""

    batches: tuple[BatchDrift, ...]  # readable batches, sorted by name, the latest last
    digests: Mapping[str, str]  # batch name: MD5 of the content
    unreadable: Mapping[str, str]  # batch name: reason
    reference: str  # the data that they were compared with
    champion: str  # the champion that gave the confidences, or why there are none


def compare_batches(workspace: Path, params: MonitorParams) -> ComparedBatches:
    """Compare each batch with the training data. List unreadable batches and continue with the others.

    Raises:
        DataError: there are batches, but no training data to compare them with.
        TrackingError: the registry cannot be used.
    """
    digests, unreadable = _find_batches(workspace)
    if not digests:
        return ComparedBatches((), {}, unreadable, "nothing", "not needed without batches")
    training = TrainingData(workspace / DATASET / "train.parquet")
    champion = _ChampionConfidence(workspace, training.dataset)
    compared, used = [], set()
    for name, digest in digests.items():
        cached = workspace / CACHE / _key(digest, training.digest, champion.digest)
        result = read_cached_json(cached)
        if result is None:
            reference = drift.with_confidences(training.sample, champion.reference)  # its errors are not the batch's
            try:
                result = _compare(workspace / INCOMING / name, reference, training.dataset, champion.confidence)
            except OSError as error:
                unreadable[name] = error.strerror or str(error)
                continue
            cached = workspace / CACHE / _key(digest, training.digest, champion.digest)  # without an unusable champion
            write_json(cached, result)
        used.add(cached)
        if "unreadable" in result:
            unreadable[name] = result["unreadable"]
            continue
        comparisons = drift.from_json(result["comparisons"])
        compared.append(BatchDrift(name, result["images"], comparisons, drift.find_drifted(comparisons, params)))
    for path in set((workspace / CACHE).glob("*.json")) - used:
        path.unlink()
    unreadable = dict(sorted(unreadable.items()))
    return ComparedBatches(tuple(compared), digests, unreadable, training.description, champion.description)


class TrainingData:
    """The dataset's own training images, measured when the first new batch needs them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.dataset = table.read_dataset(path)
        self.digest, images = _digest_official(path)
        self.description = f"the {images:,} training images of {self.dataset.name} that came with it"
        if not images:
            raise DataError(f"{path} has no images that came with the dataset", remedy="dvc repro ingest")

    @cached_property
    def sample(self) -> Sample:
        """The reference for a batch, without confidences."""
        return measure(read_official(self._path), self.dataset, None)


class _ChampionConfidence:
    """The champion's largest probabilities; its model is loaded when the first image needs it."""

    def __init__(self, workspace: Path, dataset: Dataset) -> None:
        self._dataset, self._split = dataset, Outputs(workspace).split("validation")
        self._champion = find_champion(workspace)
        if not self._champion:
            self._leave_out("there is no champion yet")
        elif not self._split.is_file():
            self._leave_out(f"there is no {self._split.name} to compare with")
        else:
            digest, images = _digest_official(self._split)
            self.digest = self._champion.digest + digest
            self.description = f"that of {self._champion}, on {images:,} validation images that came with the dataset"
            if not images:
                self._leave_out("no validation image came with the dataset")

    def _leave_out(self, reason: str) -> None:
        self._champion, self.digest, self.description = None, "", f"left out, because {reason}"

    @cached_property
    def confidence(self) -> Confidence | None:
        """None if the champion cannot be used; `description` then gives the reason."""
        if not self._champion:
            return None
        try:
            predict = self._champion.create_predictor(self._dataset.shape)
        except CannotBeJudged as error:
            self._leave_out(f"{self._champion} cannot be used: {error.problem}")
            return None
        # NaN counts as confidence 0.
        return lambda images: np.nan_to_num(class_probabilities(predict(images)).max(axis=1), nan=0.0)

    @cached_property
    def reference(self) -> np.ndarray | None:
        """Confidences of the dataset's own validation images: float64 [n]. None without a champion."""
        if (confidence := self.confidence) is None:
            return None
        return np.concatenate([confidence(images) for images, _ in read_official(self._split)])


def _compare(path: Path, reference: Sample, dataset: Dataset, confidence: Confidence | None) -> dict[str, Any]:
    """Compare a batch with the reference. The result does not depend on the batch's name or the thresholds.

    Raises:
        OSError: the batch was removed, or its permissions forbid reading. Do not cache this.
    """
    try:
        batch = measure(read_batch(path, dataset), dataset, confidence)
    except DataError as error:
        # Use the cause: `read_batch` wraps it in an error with the batch's name and a remedy.
        cause = error.__cause__ if isinstance(error.__cause__, DataError) else error
        reason = "; ".join(filter(None, [cause.problem, cause.found and f"found {cause.found}"]))
        return {"unreadable": reason.replace(f"{path.parent}/", "")}
    return {"images": batch.images, "comparisons": drift.to_json(drift.compare(batch, reference))}


def _find_batches(workspace: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Find the batches, with or without a pointer. Returns digests and reasons for unreadable ones, by name."""
    digests, unreadable = read_digests(main_repository(workspace), workspace / INCOMING)
    for pointer in (workspace / INCOMING).glob(f"[!.]*{POINTER}"):
        if not os.path.lexists(pointer.with_suffix("")):
            unreadable[pointer.stem] = "only its pointer is here: dvc pull"
    return dict(sorted(digests.items())), unreadable


def _digest_official(path: Path) -> tuple[str, int]:
    """Digest and count a table's official images. Reads small columns only: ids contain pixel digests."""
    digest, images = hashlib.sha256(repr(table.read_dataset(path)).encode()), 0
    for rows in table.stream_columns(path, ["id", "label", "source"]):
        columns = (rows.column(name).to_pylist() for name in ("id", "label", "source"))
        for id_, label, source in zip(*columns, strict=True):
            if source == OFFICIAL:
                digest.update(f"{id_} {label}\n".encode())
                images += 1
    return digest.hexdigest(), images


def read_official(path: Path) -> Iterator[Pair]:
    """Yield the images of a table that came with the dataset, one row group in memory at a time."""
    for rows in table.stream(path):
        official = np.array([source == OFFICIAL for source in rows.sources.to_pylist()], bool)
        if official.any():
            yield rows.images[official], rows.labels[official]


def measure(pairs: Iterable[Pair], dataset: Dataset, confidence: Confidence | None) -> Sample:
    """Measure images for a comparison, in one pass. There must be at least one image."""
    confidences = []

    def chunks() -> Iterator[features.Chunk]:
        for images, labels in pairs:
            if confidence:
                confidences.append(confidence(images))
            yield images, labels, table.strings([""] * len(labels))

    measured = features.measure(chunks())
    assert measured, "an empty batch is refused, and so is an empty reference"
    sample = drift.describe_images(measured, dataset.classes)
    return drift.with_confidences(sample, np.concatenate(confidences) if confidence else None)


def _key(*digests: str) -> str:
    """File name of a cached result: a digest of the compared data and the comparing code."""
    code = [file_digest(Path(str(module.__file__))) for module in (batches, decoders, drift, features)]
    return hashlib.sha256(" ".join([*digests, *code]).encode()).hexdigest() + ".json"
