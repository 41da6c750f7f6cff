"""Train the network on the train split and keep the epoch that is best on the validation split."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.data import table
from pipeline.data.image_background import Ground, ground_of
from pipeline.image_class_names import list_classes
from pipeline.models.cluster import this_worker
from pipeline.params import Params, TrainParams, TrainSettings
from pipeline.stages.entrypoint import execute
from pipeline.workspace import STATE, lock, main_repository

if TYPE_CHECKING:
    import numpy as np

    from pipeline.models.backend import keras
    from pipeline.models.checkpoints import Checkpoint
    from pipeline.models.distribution import Strategy
    from pipeline.models.inputs import Source
    from pipeline.models.tasks import Task
    from pipeline.models.training import Epoch, Progress

TRAIN, VALIDATION = Path("data/splits/train.parquet"), Path("data/splits/validation.parquet")
MODELS, REPORT = Path("models"), Path("reports/training")
PINS = Path("pins.txt")
LOCK_WAIT_SECONDS = 15
PROGRESS_SECONDS = 5  # between two lines about an epoch
FEW_STEPS = 100  # of a training; fewer hardly change the initial weights
MB = 10**6
COMPILER_FLAGS = ("XLA_FLAGS", "TF_XLA_FLAGS", "ONEDNN_MAX_CPU_ISA")  # they may change bits


@dataclass(frozen=True)
class Preparation:
    """A prepared training."""

    dataset: table.Dataset
    task: "Task"
    class_weights: "np.ndarray | None"
    network: "keras.Model"  # with its initial weights
    training: "Source"
    validation: "Source"
    ground: Ground
    settings: TrainSettings
    strategy: "Strategy"
    resolved: dict[str, Any]  # params and derived values that determine the result
    local: dict[str, Any]  # properties of the machine that change bits; not in any output


def run(params: Params) -> None:
    """Write the model, in two formats with their contract, and the report of its training. MLflow records each epoch.

    Of several workers only the chief writes and records; the others compute their shares of its batches.
    """
    # Imported here, so that `execute` watches over the process during the seconds that this takes.
    from pipeline.evaluation.training_report import write_training
    from pipeline.models import archive, export, training
    from pipeline.tracking.stage_runs import TrainingFacts, training_run

    worker = this_worker()
    writes = worker is None or worker.chief
    prepared = prepare(params)
    task, settings, images = prepared.task, prepared.settings, prepared.training.shape[0]
    terminal = _Terminal(settings.epochs, images)
    terminal.start(prepared)
    checkpoint = _find_checkpoint(prepared.resolved | prepared.local, read_only=not writes)
    epochs = training.train(
        prepared.network,
        task,
        prepared.training,
        prepared.validation,
        settings,
        seed=params.train.seed,
        checkpoint=checkpoint,
        class_weights=prepared.class_weights,
        ground=prepared.ground,
        strategy=prepared.strategy,
        report=terminal.print_progress,
    )
    if not writes:
        for epoch in epochs:
            terminal.print_epoch(epoch)
        return

    inputs = {"train": TRAIN, "validation": VALIDATION}
    settings_of_files = {"quantize": params.train.quantize} if params.train.quantize != "none" else {}
    described = prepared.resolved | settings_of_files  # the checkpoint's key leaves them out: the weights are the same
    facts = TrainingFacts(prepared.dataset.name, described, inputs, prepared.local)
    with _training_lock(checkpoint), training_run(facts) as tracked:
        history = []
        for epoch in epochs:
            history.append(epoch)
            tracked.log_epoch(epoch.epoch, epoch.metrics())
            terminal.print_epoch(epoch)
        best = training.find_best(history)
        print(f"best on validation: epoch {best.epoch}, {_describe_best(best)}", flush=True)
        _, steps = training.plan_batches(images, settings, prepared.strategy.num_replicas_in_sync)
        exported = archive.export(prepared.network, settings, task, steps * settings.epochs, ground=prepared.ground)
        _write_model(prepared, exported, params.train)
        write_training(REPORT, [asdict(epoch) for epoch in history], described | {"best_epoch": best.epoch})
        tracked.complete(MODELS / export.KERAS_FILE, REPORT.parent)
        checkpoint.remove()


def prepare(params: Params) -> Preparation:
    """Open the splits, and create the network of the parameters."""
    from pipeline.models import backend, distribution, networks, tasks, training

    strategy = distribution.create_strategy(params.train.data_parallel)
    dataset, seed = table.read_dataset(TRAIN), params.train.seed
    settings = _resolve_views(params.train.settings, dataset)
    images, validation = _open_sources(dataset, params.train.memory_limit_mb * MB)
    task = tasks.create_task(params.train.loss, dataset.classes, params.dataset.positive_classes)
    class_weights = _weigh_classes(task) if params.train.class_weights == "balanced" else None
    machine = backend.inspect_machine()
    precision = backend.choose_precision(settings.precision, machine)
    backend.make_repeatable(seed)
    # Checked before weights are created: with different shapes, the workers would wait for each other forever.
    distribution.require_agreement(f"seed {seed}, {task.loss}, {settings}", strategy)
    with distribution.replicated(strategy):
        network = networks.create_network(settings, task, dataset.shape, precision)
    networks.whiten(network, images.sample)

    resolved = {"preset": params.train.preset, "seed": seed, "loss": task.loss, "classes": task.classes}
    resolved |= {"memory_limit_mb": params.train.memory_limit_mb, "data_parallel": params.train.data_parallel}
    if class_weights is not None:  # otherwise absent: the report of such a training is as it was before the key
        resolved["class_weights"] = params.train.class_weights
    resolved |= asdict(settings) | asdict(networks.measure_cost(network))
    local = asdict(machine) | {"computed_in": precision, "replicas": strategy.num_replicas_in_sync}
    local |= {"xla": training.uses_xla(settings, strategy)}
    ground = ground_of(dataset, next(validation.blocks()).images)
    return Preparation(
        dataset, task, class_weights, network, images, validation, ground, settings, strategy, resolved, local
    )


def _weigh_classes(task: "Task") -> "np.ndarray":
    """Return the weight of each class of the task, by the training images: float32 [classes]."""
    import numpy as np

    from pipeline.models.tasks import balance_classes

    counts = np.zeros(len(task.classes), np.int64)
    for rows in table.stream_columns(TRAIN, ["label"]):
        counts += np.bincount(task.answers(table.label_column(rows, "label")), minlength=len(counts))
    return balance_classes(counts)


def _describe_best(epoch: "Epoch") -> str:
    balanced = epoch.validation_balanced_accuracy
    return f"accuracy {epoch.validation_accuracy:.4f}" + (f", balanced {balanced:.4f}" if balanced is not None else "")


def _write_model(prepared: Preparation, network: "keras.Model", params: TrainParams) -> None:
    """Write the files of the model, after a check of its answers on the validation images."""
    from pipeline.models import export, networks

    dataset, validation = prepared.dataset, prepared.validation
    mode, max_drop = params.quantize, params.quantize_max_drop  # both read, whatever they are: the stage declares both
    quantization = None
    if mode == "int8":
        labelled = ((block.images, block.labels) for block in validation.blocks())
        count = min(export.REPRESENTATIVE_IMAGES, networks.sample_size(dataset.shape))
        representative = prepared.training.sample(count)
        quantization = export.Quantization(representative, labelled, max_drop)
    resizing: Literal["fit", "crop"] = "crop" if dataset.resizing == "crop" else "fit"
    subject = export.Subject(dataset.name, dataset.classes, dataset.classes_ko, prepared.ground, resizing)
    images = (block.images for block in validation.blocks())
    export.write_model(MODELS, network, prepared.task, images, subject, quantization)


def _resolve_views(settings: TrainSettings, dataset: table.Dataset) -> TrainSettings:
    """Return the settings without mirror images if a mirrored image of the dataset does not keep its class."""
    flip = settings.flip and dataset.flip
    return replace(settings, flip=flip, tta=settings.tta if flip or settings.tta != "flip" else "none")


def _open_sources(dataset: table.Dataset, memory: int) -> tuple["Source", "Source"]:
    """Open train and validation split: in memory if their images fit into `memory` bytes, otherwise streamed."""
    from pipeline.models.inputs import Examples, Stream

    shape = dataset.shape
    images = table.count_rows(TRAIN) + table.count_rows(VALIDATION)
    if images * math.prod(shape) <= memory:
        return Examples(*table.read_images(TRAIN)), Examples(*table.read_images(VALIDATION))
    train, validation = table.RowGroups(TRAIN), table.RowGroups(VALIDATION)
    return Stream(train.sizes, train.read, shape, memory), Stream(validation.sizes, validation.read, shape, memory)


def _find_checkpoint(determinants: dict[str, Any], *, read_only: bool) -> "Checkpoint":
    """Return the checkpoint of this training. The file may not exist.

    It is in the main repository and not a DVC output, because DVC deletes the outputs before a stage runs.
    """
    import numpy as np

    import pipeline.models
    from pipeline import files
    from pipeline.models.backend import keras, tf
    from pipeline.models.checkpoints import Checkpoint, derive_key

    installed = [tf.__version__, keras.__version__, np.__version__]  # `pins.txt` lists the versions to install
    software = {"installed": installed, "flags": [os.environ.get(name) for name in COMPILER_FLAGS]}
    code = [*sorted(Path(pipeline.models.__path__[0]).glob("*.py"))]
    code += [*map(Path, (table.__file__, files.__file__, __file__)), PINS]
    key = derive_key(determinants | software, [*code, TRAIN, VALIDATION])
    return Checkpoint(main_repository() / STATE / "checkpoints" / f"{key}.npz", read_only)


@contextmanager
def _training_lock(checkpoint: "Checkpoint") -> Iterator[None]:
    """Hold the lock of a training. A second process with the same training is refused."""
    remedy = "it is the same training: wait for it, then run the same command again"
    name = f"training {checkpoint.path.stem}"
    with lock(name, wait=LOCK_WAIT_SECONDS, remedy=remedy, root=main_repository()):
        yield


def _name_worker() -> str:
    worker = this_worker()
    return worker.name if worker and not worker.chief else ""


class _Terminal:
    """Prints a line for each epoch, and one every few seconds within a long epoch."""

    def __init__(self, epochs: int, images: int) -> None:
        self._epochs, self._images, self._last = epochs, images, time.monotonic()

    def start(self, prepared: Preparation) -> None:
        from pipeline.models.training import plan_batches

        cost, local = prepared.resolved, prepared.local
        images, *_ = prepared.validation.shape
        print(f"{self._images:,} images of {list_classes(prepared.task.classes)}; {images:,} to validate on")
        network = prepared.settings.network
        print(f"{network}: {cost['parameters']:,} parameters, {cost['multiply_adds']:,} multiply-adds an image")
        replicas = f", {local['replicas']} replicas" if local["replicas"] > 1 else ""
        print(f"{local['computed_in']} on {local['device']}, {local['threads']} threads{replicas}", flush=True)
        if prepared.class_weights is not None:
            lightest, heaviest = prepared.class_weights.min(), prepared.class_weights.max()
            print(f"class weights {lightest:.2f} to {heaviest:.2f}", flush=True)
        batch, steps = plan_batches(self._images, prepared.settings, local["replicas"])
        if steps * self._epochs < FEW_STEPS:
            print(
                f"warning: only {steps * self._epochs} training steps: {self._epochs} epochs of {steps} batches of "
                f"{batch} images. Raise train.epochs or lower train.batch_size in params.yaml",
                flush=True,
            )

    def print_epoch(self, epoch: "Epoch") -> None:
        pace = "from checkpoint" if epoch.restored else f"{epoch.images_per_second:9,.0f} images/s"
        self._print(
            f"epoch {epoch.epoch:{len(str(self._epochs))}}/{self._epochs}  {pace:>18}  loss {epoch.loss:.4f}  "
            f"validation accuracy {epoch.validation_accuracy:.4f}  "
            f"{self._time_left(epoch.epoch, epoch.images_per_second)}"
        )

    def print_progress(self, progress: "Progress") -> None:
        if time.monotonic() - self._last > PROGRESS_SECONDS:
            done = progress.epoch - 1 + progress.done
            self._print(
                f"  {progress.done:4.0%} of epoch {progress.epoch}  {progress.images_per_second:9,.0f} images/s  "
                f"loss {progress.loss:.4f}  {self._time_left(done, progress.images_per_second)}"
            )

    def _time_left(self, done: float, images_per_second: float) -> str:
        seconds = (self._epochs - done) * self._images / images_per_second
        return f"{seconds // 60:.0f}:{seconds % 60:02.0f} left"

    def _print(self, line: str) -> None:
        self._last = time.monotonic()
        print(line, flush=True)


if __name__ == "__main__":
    execute("train", run, part=_name_worker)
