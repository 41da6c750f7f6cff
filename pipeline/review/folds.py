"""Out-of-fold predictions: every image is predicted by a model that was not trained on it or on a duplicate of it.

Each finished fold is kept in the directory of the review, and a fold in training has a checkpoint there: a review that
was killed continues where it was.
"""

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import image_background, table
from pipeline.data.table import Dataset
from pipeline.errors import ModelError, PipelineError, WorkspaceError
from pipeline.files import atomic_file
from pipeline.params import Params, TrainParams, TrainSettings
from pipeline.partitions import map_partitions
from pipeline.process_lifetime import end_with_input
from pipeline.review.images import TABLES
from pipeline.tracking.processes import this_process

if TYPE_CHECKING:
    from pipeline.models.inputs import Source

MB = 10**6
CODE = tuple(Path(file) for file in (__file__, table.__file__, image_background.__file__))  # besides pipeline/models
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
    reporter = _Reporter(report)
    work = [
        _Fold(
            number, folds, dataset, labels, params.train, settings, directory / f"{key}-{number}", with_test, reporter
        )
        for number in range(folds.count)
    ]
    missing = [fold for fold in work if not fold.predictions.exists()]
    computed = map_partitions(_compute_fold, missing, workers=1)  # in this process, or on a cluster
    for fold in work:
        if fold in missing:
            next(computed)
        with np.load(fold.predictions) as kept:
            train[fold.images] = kept["train"]
            test += [kept["test"]] if with_test else []
        fold.report(settings.epochs, float(np.mean(train[fold.images].argmax(axis=1) == labels[fold.images])))
    return Predictions(train, np.mean(test, axis=0) if with_test else None)


def describe_machine() -> dict[str, Any]:
    """Return the properties of this machine that change the weights."""
    from pipeline.models.backend import inspect_machine

    return asdict(inspect_machine())


@dataclass(frozen=True)
class _Reporter:
    """A function that gets the progress. On a worker of a cluster, it does nothing."""

    function: Callable[[Progress], None]

    def __call__(self, progress: Progress) -> None:
        self.function(progress)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Reporter, (_ignore,)


def _ignore(progress: Progress) -> None:
    """Do nothing."""


@dataclass(frozen=True, eq=False)
class _Fold:
    """The work on one fold, for `predict`."""

    number: int
    folds: Folds
    dataset: Dataset
    labels: np.ndarray
    params: TrainParams
    settings: TrainSettings
    stem: Path  # of its files
    with_test: bool
    reporter: _Reporter
    machine: dict[str, Any] = field(default_factory=describe_machine)  # whose properties are in the key
    process: str = field(default_factory=this_process)

    @property
    def images(self) -> np.ndarray:
        """Bool [n], the training images of the fold."""
        return self.folds.fold == self.number

    @property
    def predictions(self) -> Path:
        return self.stem.with_name(f"{self.stem.name}.npz")

    @property
    def checkpoint(self) -> Path:
        return self.stem.with_name(f"{self.stem.name}.checkpoint.npz")

    def report(self, epoch: int, accuracy: float | None = None) -> None:
        self.reporter(Progress(self.number + 1, self.folds.count, epoch, self.settings.epochs, accuracy))


def _compute_fold(fold: _Fold) -> None:
    """Train the model of a fold, and write the predictions.

    A worker of a cluster starts a process for it: the initial weights depend on Python's random numbers, of which the
    threads of Dask take some.

    Raises:
        ModelError: the process failed.
    """
    fold.report(0)
    if fold.process == this_process():
        _train_and_write(fold)
        return
    with subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stderr
        with suppress(BrokenPipeError):
            child.stdin.write(pickle.dumps(fold))
            child.stdin.flush()  # and it stays open: the process ends with this one
        shown = child.stderr.read().decode(errors="replace")
    if child.returncode:
        raise ModelError(f"fold {fold.number + 1} failed on a worker, with exit code {child.returncode}", found=shown)


def _train_and_write(fold: _Fold) -> None:
    if fold.machine != (here := describe_machine()):
        raise WorkspaceError(
            "this worker would train other weights than the machine of the review",
            expected=str(fold.machine),
            found=str(here),
            remedy="use workers of one kind, or run the review without a cluster",
        )
    arrays = _train_fold(fold)
    with atomic_file(fold.predictions) as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # NumPy's stub takes them for `allow_pickle`
    fold.checkpoint.unlink(missing_ok=True)


def describe_settings(params: Params, dataset: Dataset) -> dict[str, Any]:
    """Return the parameters that determine the models of a review."""
    train = params.train
    named = {"preset": train.preset, "seed": train.seed, "class_weights": train.class_weights}
    return named | {"memory_limit_mb": train.memory_limit_mb} | asdict(_resolve_views(train.settings, dataset))


def _resolve_views(settings: TrainSettings, dataset: Dataset) -> TrainSettings:
    """Return the settings without mirror images if a mirrored image of the dataset does not keep its class."""
    flip = settings.flip and dataset.flip
    return replace(settings, flip=flip, tta=settings.tta if flip or settings.tta != "flip" else "none")


def _train_fold(fold: _Fold) -> dict[str, np.ndarray]:
    """Train the model of a fold, and return its probabilities for the fold's images and for the test images."""
    from pipeline.models import backend, inference, networks, tasks, training
    from pipeline.models.checkpoints import Checkpoint

    dataset, labels, folds, params, settings = fold.dataset, fold.labels, fold.folds, fold.params, fold.settings
    others = ~fold.images
    memory = params.memory_limit_mb * MB
    source, chooser = (_open(dataset, others & (folds.chooses_epoch == chooses), memory) for chooses in (False, True))
    if not chooser.shape[0]:  # fewer images than folds times CHOICE_OF_EPOCH
        chooser = source
    task = tasks.create_task("sparse_categorical_crossentropy", dataset.classes)
    balanced = params.class_weights == "balanced"
    counts = np.bincount(labels[others], minlength=len(dataset.classes))
    backend.make_repeatable(params.seed)
    precision = backend.choose_precision(settings.precision, backend.inspect_machine())
    network = networks.create_network(settings, task, dataset.shape, precision)
    networks.whiten(network, source.sample)
    ground = image_background.ground_of(dataset, next(chooser.blocks()).images)
    epochs = training.train(
        network,
        task,
        source,
        chooser,
        settings,
        seed=params.seed,
        checkpoint=Checkpoint(fold.checkpoint),
        class_weights=tasks.balance_classes(np.maximum(counts, 1)) if balanced else None,
        ground=ground,
    )
    for epoch in epochs:
        fold.report(epoch.epoch)
    viewed = networks.average_views(network, settings.tta, flip=settings.flip, ground=ground)
    answer = inference.create_predictor(viewed)
    arrays = {"train": np.concatenate([answer(images) for images in _stream(TABLES["train"], fold.images)])}
    if fold.with_test:
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


if __name__ == "__main__":
    given = pickle.load(sys.stdin.buffer)
    end_with_input()
    try:
        _train_and_write(given)
    except PipelineError as error:
        sys.exit(str(error))
