"""Reference for the traffic of a server: the training images, and the serving model's answers to images.

The answers are those to the validation images that came with the dataset, because no model was trained on them. Only
the outlier score is fitted to training images.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import features, table
from pipeline.data.drift_features import drift_features
from pipeline.data.table import Dataset
from pipeline.evaluation.metrics import class_probabilities
from pipeline.monitoring.accuracy_estimate import AccuracyEstimate, fit_accuracy_estimate
from pipeline.monitoring.comparison import Pair, TrainingData, read_official
from pipeline.monitoring.drift import Sample, count_classes
from pipeline.monitoring.outliers import EXPECTED, OutlierScore, fit_outlier_score
from pipeline.registry.load_version import CannotBeJudged, LoadedVersion, load_version
from pipeline.registry.registration import current_name
from pipeline.tracking.logged_models import EXPORTED_TAG
from pipeline.tracking.queries import find_or_none
from pipeline.tracking.stage_outputs import DATASET, Outputs
from pipeline.tracking.store import explained, locate, open_store

MOST_FITTED = 10_000  # training images that the outlier score is fitted to


@dataclass(frozen=True)
class Answers:
    """A model's answers to images, with the features of the images."""

    values: Mapping[str, np.ndarray]  # feature: float64 [n]
    probabilities: np.ndarray  # float64 [n, classes]; zeros for an image whose answer is not a number
    labels: np.ndarray  # uint16 [n], labels of the dataset

    @property
    def predicted(self) -> np.ndarray:
        """The most probable classes: int [n]."""
        return self.probabilities.argmax(axis=1)

    @property
    def confidences(self) -> np.ndarray:
        """The largest probabilities: float64 [n]."""
        return self.probabilities.max(axis=1)

    def matrix(self) -> np.ndarray:
        """The features as float64 [n, features]."""
        return np.stack(list(self.values.values()), axis=1)


@dataclass(frozen=True)
class ModelReference:
    """The serving model's answers to the validation images, and what was fitted to them."""

    classes: tuple[str, ...]  # possible answers
    labels: tuple[str, ...]  # classes of the dataset, which labels name
    answer_of: np.ndarray  # uint16 [labels], the right answer for each label
    predicted: Mapping[str, int]  # images by predicted class
    confidences: np.ndarray  # float64 [n]
    outlier_score: OutlierScore
    outlier_scores: np.ndarray  # float64 [n]
    outlier_threshold: float  # beyond it is a share of `outliers.EXPECTED` of them
    accuracy: AccuracyEstimate


@dataclass(frozen=True)
class Reference:
    """Reference for traffic."""

    dataset: Dataset
    features: Sample  # of the training images that came with the dataset
    model: ModelReference | None  # None: the model's answers are left out
    description: str  # of the images and the model, or why the model is left out


def build_reference(workspace: Path, version: str, sha256: str) -> Reference:
    """Measure the training images, and ask the serving model about the validation images.

    Args:
        version: of the registered model, as logged.
        sha256: of its `model.tflite`, as logged.

    Raises:
        DataError: there are no training images in the workspace.
        TrackingError: the registry cannot be used.
    """
    training = TrainingData(workspace / DATASET / "train.parquet")
    try:
        model = _ask_model(workspace, training.dataset, version, sha256)
    except (CannotBeJudged, FileNotFoundError) as error:
        reason = error.problem if isinstance(error, CannotBeJudged) else f"{error.filename} is missing"
        described = f"{training.description}. The model's answers are left out, because {reason}"
        return Reference(training.dataset, training.sample, None, described)
    described = (
        f"{training.description}, and the answers of version {version} to {len(model.confidences):,} validation images"
    )
    return Reference(training.dataset, training.sample, model, described)


def _ask_model(workspace: Path, dataset: Dataset, version: str, sha256: str) -> ModelReference:
    loaded = _load(workspace, version, sha256)
    loaded.require_shape(dataset.shape)
    outputs = Outputs(workspace)
    for split in (outputs.split("train"), outputs.split("validation")):
        if not split.is_file():
            raise CannotBeJudged(f"{split.relative_to(workspace)} is missing")
    validation = _answer(loaded, read_official(outputs.split("validation")))
    training = _answer(loaded, _sample(outputs.split("train")))
    if validation is None or training is None:
        raise CannotBeJudged("no validation image came with the dataset")
    score = fit_outlier_score(training.matrix(), training.probabilities)
    scores = score(validation.matrix(), validation.probabilities)
    assert loaded.contract, "checked by `_load`"
    task = loaded.contract.create_task()
    if loaded.contract.classes != dataset.classes:
        raise CannotBeJudged(f"the model was made for other classes than those of {dataset.name}")
    return ModelReference(
        classes=task.classes,
        labels=dataset.classes,
        answer_of=task.answers(np.arange(len(dataset.classes))),
        predicted=count_classes(validation.predicted, task.classes),
        confidences=validation.confidences,
        outlier_score=score,
        outlier_scores=scores,
        outlier_threshold=float(np.quantile(scores, 1 - EXPECTED, method="higher")),
        accuracy=fit_accuracy_estimate(validation.confidences, validation.predicted == task.answers(validation.labels)),
    )


def _load(workspace: Path, version: str, sha256: str) -> LoadedVersion:
    """Load the version that the log names, if its exported model is the one that answered."""
    store, name = locate(workspace), current_name(workspace)
    if store.database and not store.database.exists():
        raise CannotBeJudged("nothing is registered yet")
    client = open_store(store)
    with explained(store):
        registered = find_or_none(client.get_model_version, name, version)
        if registered is None:
            raise CannotBeJudged(f"{name} has no version {version}")
        if registered.tags.get(EXPORTED_TAG) != sha256:
            raise CannotBeJudged(f"another model.tflite than that of version {version} of {name} answered")
        return load_version(store, client, registered)


def _sample(split: Path) -> Iterable[Pair]:
    """Yield at most `MOST_FITTED` images of a split, evenly spread over it."""
    step, first = -(-table.count_rows(split) // MOST_FITTED), 0
    for rows in table.stream(split):
        chosen = slice(-first % step, None, step)
        if len(rows.labels[chosen]):
            yield rows.images[chosen], rows.labels[chosen]
        first += len(rows)


def _answer(loaded: LoadedVersion, pairs: Iterable[Pair]) -> Answers | None:
    answers: list[np.ndarray] = []

    def chunks() -> Iterable[features.Chunk]:
        for images, labels in pairs:
            images = np.ascontiguousarray(images)
            probabilities = class_probabilities(loaded.predict(images)).astype(np.float32)  # as logged
            answers.append(np.nan_to_num(probabilities.astype(np.float64), nan=0.0))
            yield images, labels, table.strings([""] * len(labels))

    measured = features.measure(chunks())
    return Answers(drift_features(measured), np.concatenate(answers), measured.label) if measured else None
