"""Two versions on the images that a server answered: how often, and where, their answers differ.

Answers come from the traffic log. A version that did not answer an image, neither to the client nor in the shadow, is
asked now, if the log has the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.traffic import FEEDBACK, TRAFFIC, column_to_numpy, read_labels, read_traffic
from pipeline.errors import DataError, TrackingError
from pipeline.evaluation.comparison import Pairs
from pipeline.evaluation.metrics import class_probabilities
from pipeline.registry.load_version import CannotBeJudged, LoadedVersion, load_version
from pipeline.tracking.store import Store

if TYPE_CHECKING:
    import pyarrow as pa
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

COLUMNS = (
    "request_id", "index", "sha256", "probabilities", "shadow_sha256", "shadow_probabilities", "shape", "image",
)  # fmt: skip


@dataclass(frozen=True)
class TrafficComparison:
    """The answers of two versions to the same images."""

    classes: tuple[str, ...]  # the possible answers
    logged: int  # images in the log
    counts: np.ndarray  # int64 [classes, classes]: images by the answers of the first (rows) and the second version
    confidences: tuple[float, float]  # means
    labelled: Pairs | None  # of the images whose class was told later; None: there are none

    @property
    def images(self) -> int:
        """Number of images that both versions answered."""
        return int(self.counts.sum())

    @property
    def differing(self) -> int:
        """Number of images with different answers."""
        return self.images - int(np.trace(self.counts))

    def list_differences(self) -> list[tuple[str, str, int]]:
        """List the pairs of different answers with their number of images, the most frequent first."""
        pairs = [(self.counts[a, b], a, b) for a, b in np.argwhere(self.counts) if a != b]
        return [(self.classes[a], self.classes[b], int(count)) for count, a, b in sorted(pairs, key=lambda p: -p[0])]


def compare_on_traffic(
    store: Store,
    client: "MlflowClient",
    versions: "Sequence[ModelVersion]",
    root: Path,
    since: datetime,
    until: datetime,
) -> TrafficComparison:
    """Compare two versions on the traffic log of a main repository.

    Args:
        since, until: the period, times with a time zone.

    Raises:
        TrackingError: a version cannot be loaded.
        DataError: the versions have different answers, or no image of the log has an answer of both.
    """
    first, second = (_load(store, client, version) for version in versions)
    if first.classes != second.classes:
        raise DataError(
            "two versions with different classes cannot be compared on traffic",
            expected=", ".join(first.classes),
            found=", ".join(second.classes),
        )
    size, logged = len(first.classes), 0
    counts, sums = np.zeros((size, size), np.int64), np.zeros(2)
    labels, right = read_labels(root / FEEDBACK), [np.zeros((2, 0), bool)]
    for rows in read_traffic(root / TRAFFIC, since, until, COLUMNS):
        logged += rows.num_rows
        answers = np.stack([_answer(rows, model) for model in (first, second)])  # [2, n, classes]
        known = ~np.isnan(answers[:, :, 0]).any(axis=0)
        answers, predicted = answers[:, known], answers[:, known].argmax(axis=2)
        np.add.at(counts, (predicted[0], predicted[1]), 1)
        sums += answers.max(axis=2).sum(axis=1)
        true = _find_true(rows, labels, first)[known]
        right.append((predicted == true)[:, true >= 0])
    if not counts.sum():
        raise DataError(
            "no image in the traffic log has an answer of both versions",
            expected="images in the log (serve.keep_images: true), or answers of the other version in the shadow "
            "(serve.shadow: challenger)",
            found=f"{logged:,} images since {since:%Y-%m-%d %H:%M}",
        )
    means = sums / counts.sum()
    labelled = _count_pairs(*np.concatenate(right, axis=1))
    return TrafficComparison(first.classes, logged, counts, (float(means[0]), float(means[1])), labelled)


def describe_traffic(found: TrafficComparison) -> dict[str, Any]:
    """Describe a comparison for a program."""
    pairs = found.labelled
    return {
        "logged": found.logged,
        "images": found.images,
        "differing": found.differing,
        "differences": [{"first": one, "second": two, "images": n} for one, two, n in found.list_differences()],
        "confidences": list(found.confidences),
        "labelled": pairs and {"images": pairs.images, "gained": pairs.gained, "lost": pairs.lost, "p": pairs.p_value},
    }


@dataclass(frozen=True)
class _Model:
    sha256: str  # of model.tflite
    loaded: LoadedVersion

    @property
    def classes(self) -> tuple[str, ...]:
        return self.loaded.classes


def _load(store: Store, client: "MlflowClient", version: "ModelVersion") -> _Model:
    try:
        loaded = load_version(store, client, version)
    except CannotBeJudged as error:
        raise TrackingError(
            f"version {version.version} of {version.name} cannot be loaded", found=error.problem
        ) from None
    if loaded.contract is None:
        raise TrackingError(
            f"version {version.version} of {version.name} was never served: it has no model.tflite",
            remedy=f"pipeline export {version.version}",
        )
    return _Model(loaded.contract.litert_sha256, loaded)


def _answer(rows: "pa.Table", model: _Model) -> np.ndarray:
    """Return the probabilities of a model for the images of some rows, float [n, classes]; unknown ones are NaN."""
    found = np.full((rows.num_rows, len(model.classes)), np.nan)
    for digests, probabilities in (("sha256", "probabilities"), ("shadow_sha256", "shadow_probabilities")):
        own = np.array([digest == model.sha256 for digest in rows.column(digests).to_pylist()], bool)
        if own.any():
            found[own] = column_to_numpy(rows.take(np.flatnonzero(own)), probabilities)
    shape = list(model.loaded.shape)
    has_image = [image is not None for image in rows.column("image").to_pylist()]
    fits = np.array([sides == shape for sides in rows.column("shape").to_pylist()], bool) & np.array(has_image, bool)
    asked = np.flatnonzero(fits & np.isnan(found[:, 0]))
    if len(asked):
        pixels = b"".join(rows.column("image").take(asked).to_pylist())
        images = np.frombuffer(pixels, np.uint8).reshape(len(asked), *shape)
        found[asked] = class_probabilities(model.loaded.predict(images))
    return found


def _count_pairs(first: np.ndarray, second: np.ndarray) -> Pairs | None:
    """Count by which version is right, bool [n]."""
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    pairs = Pairs(both, neither, gained=int((second & ~first).sum()), lost=int((first & ~second).sum()))
    return pairs if pairs.images else None


def _find_true(rows: "pa.Table", labels: dict[tuple[str, int], Any], model: _Model) -> np.ndarray:
    """Return the right answers for some rows, int [n]; -1 where no class was told."""
    contract = model.loaded.contract
    assert contract is not None
    right = dict(zip(contract.classes, contract.create_task().answers(np.arange(len(contract.classes))), strict=True))
    keys = zip(rows.column("request_id").to_pylist(), rows.column("index").to_pylist(), strict=True)
    told = [labels.get(key) for key in keys]
    return np.array([int(right.get(label.label, -1)) if label else -1 for label in told], np.int64)
