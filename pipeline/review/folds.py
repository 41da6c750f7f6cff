"""Out-of-fold predictions: every image is predicted by a model that was not trained on it or on a duplicate of it.

Each finished fold is kept in the directory of the review, and a fold in training has a checkpoint there: a review that
was killed continues where it was.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import table
from pipeline.data.image_background import ground_of
from pipeline.data.table import Dataset
from pipeline.files import atomic_file
from pipeline.params import Params, TrainSettings
from pipeline.review.images import TABLES

if TYPE_CHECKING:
    from pipeline.models.inputs import Source

MB = 10**6
CHOICE_OF_EPOCH = 10  # one of so many of the other folds' images chooses the best epoch, as the validation split does


@dataclass(frozen=True)
class Folds:
    """The division of the training images into folds."""

    fold: np.ndarray  # int64 [n], from 0
    chooses_epoch: np.ndarray  # bool [n], in the other folds' trainings

    @property
    def count(self) -> int:
        return int(self.fold.max()) + 1


@dataclass(frozen=True)
class Progress:
    """The progress of a review."""

    fold: int  # from 1
    folds: int
    epoch: int  # finished, from 1; 0: none yet
    epochs: int
    accuracy: float | None  # of the whole fold, after its last epoch


@dataclass(frozen=True)
class Predictions:
    """Probabilities by models that were not trained on the images."""

    train: np.ndarray  # float32 [n, classes]
    test: np.ndarray | None  # float32 [m, classes], the mean over the models of all folds


def divide(labels: np.ndarray, groups: np.ndarray, count: int, seed: int) -> Folds:
    """Divide images into folds with about equal shares of each class. A group stays in one fold.

    Args:
        labels: integers [n]. A group counts for the class of its first image.
        groups: integers [n], as from `group_twins`.
        count: number of folds.
        seed: of the order in which the groups of a class are dealt to the folds.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(first))
    order = order[np.argsort(labels[first][order], kind="stable")]
    place = np.empty(len(first), np.int64)
    place[order] = np.arange(len(first))
    place = place[group]
    return Folds(place % count, place // count % CHOICE_OF_EPOCH == 0)


def predict(
    dataset: Dataset,
    labels: np.ndarray,
    folds: Folds,
    params: Params,
    directory: Path,
    key: str,
    report: Callable[[Progress], None],
    *,
    with_test: bool,
) -> Predictions:
    """Train a model for each fold on the other folds, and predict the fold's images.

    The models always distinguish all classes of the dataset, because their labels are under review.

    Args:
        labels: uint16 [n], in the order of the table.
        directory: keeps the files `KEY-FOLD.npz`. Those of other keys are deleted.
        key: digest of everything that determines the predictions.
        with_test: also predict the test images.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for other in directory.iterdir():
        if not other.name.startswith(key):
            other.unlink()
    train = np.zeros((len(labels), len(dataset.classes)), np.float32)
    test: list[np.ndarray] = []
    settings = _resolve_views(params.train.settings, dataset)
    for fold in range(folds.count):
        of_fold, file = folds.fold == fold, directory / f"{key}-{fold}.npz"

        def report_epoch(epoch: int, accuracy: float | None = None, fold: int = fold) -> None:
            report(Progress(fold + 1, folds.count, epoch, settings.epochs, accuracy))

        if not file.exists():
            report_epoch(0)
            checkpoint = directory / f"{key}-{fold}.checkpoint.npz"
            arrays = _train_fold(dataset, labels, folds, fold, params, settings, checkpoint, report_epoch, with_test)
            with atomic_file(file) as partial, partial.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]  # NumPy's stub takes them for `allow_pickle`
            checkpoint.unlink(missing_ok=True)
        with np.load(file) as kept:
            train[of_fold] = kept["train"]
            test += [kept["test"]] if with_test else []
        report_epoch(settings.epochs, float(np.mean(train[of_fold].argmax(axis=1) == labels[of_fold])))
    return Predictions(train, np.mean(test, axis=0) if with_test else None)


def describe_settings(params: Params, dataset: Dataset) -> dict[str, Any]:
    """Return the parameters that determine the models of a review."""
    train = params.train
    named = {"preset": train.preset, "seed": train.seed, "class_weights": train.class_weights}
    return named | {"memory_limit_mb": train.memory_limit_mb} | asdict(_resolve_views(train.settings, dataset))


def _resolve_views(settings: TrainSettings, dataset: Dataset) -> TrainSettings:
    """Return the settings without mirror images if a mirrored image of the dataset does not keep its class."""
    flip = settings.flip and dataset.flip
    return replace(settings, flip=flip, tta=settings.tta if flip or settings.tta != "flip" else "none")


def _train_fold(
    dataset: Dataset,
    labels: np.ndarray,
    folds: Folds,
    fold: int,
    params: Params,
    settings: TrainSettings,
    checkpoint: Path,
    report_epoch: Callable[[int], None],
    with_test: bool,
) -> dict[str, np.ndarray]:
    """Train the model of a fold, and return its probabilities for the fold's images and for the test images."""
    from pipeline.models import backend, inference, networks, tasks, training
    from pipeline.models.checkpoints import Checkpoint

    others = folds.fold != fold
    memory = params.train.memory_limit_mb * MB
    source, chooser = (_open(dataset, others & (folds.chooses_epoch == chooses), memory) for chooses in (False, True))
    if not chooser.shape[0]:  # fewer images than folds times CHOICE_OF_EPOCH
        chooser = source
    task = tasks.create_task("sparse_categorical_crossentropy", dataset.classes)
    balanced = params.train.class_weights == "balanced"
    counts = np.bincount(labels[others], minlength=len(dataset.classes))
    backend.make_repeatable(params.train.seed)
    precision = backend.choose_precision(settings.precision, backend.inspect_machine())
    network = networks.create_network(settings, task, dataset.shape, precision)
    networks.whiten(network, source.sample)
    ground = ground_of(dataset, next(chooser.blocks()).images)
    epochs = training.train(
        network,
        task,
        source,
        chooser,
        settings,
        seed=params.train.seed,
        checkpoint=Checkpoint(checkpoint),
        class_weights=tasks.balance_classes(np.maximum(counts, 1)) if balanced else None,
        ground=ground,
    )
    for epoch in epochs:
        report_epoch(epoch.epoch)
    viewed = networks.average_views(network, settings.tta, flip=settings.flip, ground=ground)
    answer = inference.create_predictor(viewed)
    arrays = {"train": np.concatenate([answer(images) for images in _stream(TABLES["train"], folds.fold == fold)])}
    if with_test:
        everything = np.ones(table.count_rows(TABLES["test"]), bool)
        arrays["test"] = np.concatenate([answer(images) for images in _stream(TABLES["test"], everything)])
    return arrays


def _open(dataset: Dataset, chosen: np.ndarray, memory: int) -> "Source":
    """Open some training images: in memory if all fit into `memory` bytes, otherwise streamed. chosen: bool [n]."""
    from pipeline.models.inputs import Examples, Stream

    path = TABLES["train"]
    groups = table.RowGroups(path)
    masks = np.split(chosen, np.cumsum(groups.sizes)[:-1])
    numbers = [number for number, mask in enumerate(masks) if mask.any()]

    def read(number: int) -> tuple[np.ndarray, np.ndarray]:
        images, labels = groups.read(numbers[number])
        mask = masks[numbers[number]]
        return images[mask], labels[mask]

    if np.prod((len(chosen), *dataset.shape)) <= memory:
        parts = [read(number) for number in range(len(numbers))]
        none = np.empty((0, *dataset.shape), np.uint8), np.empty(0, np.uint16)
        images, labels = (np.concatenate(column) for column in zip(none, *parts, strict=True))
        return Examples(images, labels)
    return Stream([int(masks[number].sum()) for number in numbers], read, dataset.shape, memory)


def _stream(path: Path, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """Yield some images of a table: uint8 [n, *shape]. chosen: bool [rows of the table]."""
    dataset, first = table.read_dataset(path), 0
    for rows in table.stream_columns(path, ["image"]):
        images = table.image_column(rows, dataset)
        yield images[chosen[first : first + len(images)]]
        first += len(images)
