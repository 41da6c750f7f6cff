"""Model files of registered versions, and their predictions for the workspace's test images.

If the version was evaluated on the same split, its run has the predictions. Otherwise the model file is downloaded and
predicts again.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data import table
from pipeline.errors import DataError, TrackingError
from pipeline.evaluation.comparison import shared_classes
from pipeline.evaluation.metrics import class_probabilities
from pipeline.evaluation.predictions import PREDICTIONS, Predictions, read_predictions
from pipeline.files import file_digest
from pipeline.image_class_names import list_classes
from pipeline.registry.load_version import CannotBeJudged, load_version, read_classes
from pipeline.tracking.queries import find_or_none
from pipeline.tracking.stage_outputs import Outputs
from pipeline.tracking.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

    from pipeline.models.latency import Latency

EVALUATED_TAG = "data.test"  # of a run: MD5 of the split that it was evaluated on


def predictions_of(
    store: Store, client: "MlflowClient", version: "ModelVersion", outputs: Outputs, reference: Predictions
) -> Predictions:
    """Return the predictions of a version for the workspace's test images.

    Args:
        reference: another model's predictions for them. Only ids, labels and classes are used.

    Returns:
        the predictions for the images of the classes that the version knows.

    Raises:
        CannotBeJudged: it knows fewer than two of the classes, its image size differs, or neither its predictions nor
            its model file exist.
    """
    test, recorded = recorded_predictions(client, version)
    if recorded and test == file_digest(outputs.split("test"), "md5"):
        _require_shared_classes(recorded.classes, reference.classes)
        if sorted(zip(recorded.ids, recorded.labels.tolist(), strict=True)) == sorted(
            zip(reference.ids, reference.labels.tolist(), strict=True)
        ):
            return recorded.in_order_of(reference.ids)
    return _predict(store, client, version, outputs, reference)


def predictions_of_both(
    store: Store, client: "MlflowClient", versions: "tuple[ModelVersion, ModelVersion]", outputs: Outputs
) -> tuple[str, Predictions, Predictions]:
    """Return the MD5 of a test split, and the predictions of two versions for it.

    It is the split that both were evaluated on, or else the workspace's.

    Raises:
        TrackingError: one of them cannot be judged on these images.
    """
    (test, first), (other, second) = (recorded_predictions(client, version) for version in versions)
    if first and second and test == other:
        return test, first, second
    reference = read_predictions(outputs.evaluation / PREDICTIONS)
    found = []
    for version in versions:
        try:
            found.append(predictions_of(store, client, version, outputs, reference))
        except CannotBeJudged as error:
            raise TrackingError(
                f"cannot compare version {version.version} of {version.name}: it has no predictions for these images",
                expected="recorded predictions for the present test images, or a model that can predict them",
                found=error.problem,
                remedy="pipeline versions, then: pipeline compare champion ANOTHER",
            ) from None
    return file_digest(outputs.split("test"), "md5"), found[0], found[1]


def measure_latencies(
    store: Store, client: "MlflowClient", versions: "tuple[ModelVersion, ModelVersion]", outputs: Outputs
) -> "list[Latency]":
    """Measure the latency of the models of two versions on this machine.

    Raises:
        TrackingError: a model file cannot be loaded.
    """
    from pipeline.models.latency import measure

    images, _ = table.read_images(outputs.split("test"))
    models = []
    for version in versions:
        try:
            models.append(load_version(store, client, version).predict_unpadded)
        except CannotBeJudged as error:
            problem = f"cannot measure the latency of version {version.version} of {version.name}"
            raise TrackingError(problem, found=error.problem) from None
    return measure(models, images)


def recorded_predictions(client: "MlflowClient", version: "ModelVersion") -> tuple[str, Predictions | None]:
    """Load the MD5 of the test split and the predictions from a version's run. Returns "" and None if they are gone."""
    run = find_or_none(client.get_run, version.run_id) if version.run_id else None
    return read_run_predictions(client, run) if run else ("", None)


def read_run_predictions(client: "MlflowClient", run: "Run") -> tuple[str, Predictions | None]:
    """Load the MD5 of the test split and the predictions from a run. Returns "" and None if they are gone."""
    path = f"evaluation/{PREDICTIONS}"
    if path not in [entry.path for entry in client.list_artifacts(run.info.run_id, "evaluation")]:
        return "", None
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(client.download_artifacts(run.info.run_id, path, scratch))
        try:
            return run.data.tags.get(EVALUATED_TAG, ""), read_predictions(file)
        except DataError:
            return "", None


def _predict(
    store: Store, client: "MlflowClient", version: "ModelVersion", outputs: Outputs, reference: Predictions
) -> Predictions:
    classes = read_classes(store, client, version)
    _require_shared_classes(classes, reference.classes)
    images, _ = table.read_images(outputs.split("test"))
    print(f"version {version.version} was evaluated on other test images: predicting with its model file", flush=True)
    loaded = load_version(store, client, version)
    loaded.require_shape(images.shape[1:])
    probabilities = class_probabilities(loaded.predict(images)).astype(np.float32)
    ids = table.read_ids(outputs.split("test"))
    if classes == reference.classes:
        return replace(reference, ids=ids, probabilities=probabilities).in_order_of(reference.ids)
    names = [reference.classes[label] for label in reference.in_order_of(ids).labels]
    rows = [row for row, name in enumerate(names) if name in classes]
    return Predictions(
        classes=classes,
        ids=[ids[row] for row in rows],
        labels=np.array([classes.index(names[row]) for row in rows], np.uint16),
        probabilities=probabilities[rows],
    )


def _require_shared_classes(champion: tuple[str, ...], challenger: tuple[str, ...]) -> None:
    try:
        shared_classes(champion, challenger)
    except DataError:
        raise CannotBeJudged(f"it was made for other classes ({list_classes(champion) or 'unknown'})") from None
