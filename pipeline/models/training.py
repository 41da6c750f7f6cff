"""The training loop: one for every network."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.errors import ModelError
from pipeline.models.augmentation import augment, draw_choices
from pipeline.models.backend import keras, tf
from pipeline.models.checkpoints import Checkpoint, Snapshot
from pipeline.models.inference import create_predictor
from pipeline.models.losses import create_accuracy, create_loss, require_fit
from pipeline.models.optimizers import create_optimizer
from pipeline.models.tasks import Task
from pipeline.params import TrainSettings


@dataclass(frozen=True)
class Examples:
    """Images with their labels in the dataset."""

    images: np.ndarray  # uint8 [n, height, width]
    labels: np.ndarray  # uint8 [n]


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training images came to."""

    epoch: int  # counted from 1
    loss: float  # mean over the epoch, while the weights moved; label smoothing included
    accuracy: float
    validation_loss: float  # of the weights at its end; without label smoothing
    validation_accuracy: float
    learning_rate: float  # at its end
    images_per_second: float = field(compare=False)
    restored: bool = field(default=False, compare=False)  # read from a checkpoint: an earlier process finished it

    def metrics(self) -> dict[str, float]:
        """The figures of the epoch, without its number."""
        return {name: value for name, value in asdict(self).items() if name not in ("epoch", "restored")}


def train(
    network: keras.Model,
    task: Task,
    training: Examples,
    validation: Examples,
    settings: TrainSettings,
    *,
    seed: int,
    checkpoint: Checkpoint,
) -> Iterator[Epoch]:
    """Train a network. Yields each epoch as it ends; after the last, the network has the weights of the best.

    Best is the highest validation accuracy (see `find_best`). All that is random is a function of (seed, epoch), so a
    training that was killed goes on from its checkpoint and ends with the same bits.

    Raises:
        ModelError: the labels or the network's output do not fit the task, or the loss is not finite.
    """
    require_fit(network, task)
    batch, steps = plan_batches(len(training.labels), settings)
    optimizer = create_optimizer(settings, steps * settings.epochs)
    optimizer.build(network.trainable_variables)
    run_epoch = _create_epoch(network, task, optimizer, settings)
    validate = _create_validation(network, task, validation)
    images, targets = tf.constant(training.images), tf.constant(task.encode(training.labels))

    state = [*network.variables, *optimizer.variables]
    history, best = _restore(checkpoint, state)
    yield from history
    while not _finished(history, settings):
        number, started = len(history) + 1, time.perf_counter()
        choices = draw_choices(settings, training.images.shape, batch, seed=seed, epoch=number)
        loss, accuracy = run_epoch(images, targets, choices)
        pace = steps * batch / (time.perf_counter() - started)
        if not math.isfinite(loss):
            raise _diverged(number, settings)
        variables = _values(state)
        optimizer.finalize_variable_values(network.trainable_variables)  # their moving average, if there is one
        history.append(Epoch(number, loss, accuracy, *validate(), float(optimizer.learning_rate), pace))
        if find_best(history) is history[-1]:
            best = _values(network.variables)
        _assign(state, variables)
        checkpoint.save(Snapshot(variables, best, [asdict(epoch) for epoch in history]))
        yield history[-1]
    _assign(network.variables, best)


def plan_batches(images: int, settings: TrainSettings) -> tuple[int, int]:
    """The size of a batch and the number of them in an epoch; images left over sit the epoch out."""
    batch = min(settings.batch_size, images)
    return batch, images // batch


def _create_epoch(
    network: keras.Model, task: Task, optimizer: keras.optimizers.Optimizer, settings: TrainSettings
) -> Callable[[Any, Any, Mapping[str, np.ndarray]], tuple[float, float]]:
    """A function that makes one pass over the images, as one graph, and returns their mean loss and accuracy."""
    loss, mean_loss, accuracy = create_loss(task, settings.label_smoothing), keras.metrics.Mean(), create_accuracy(task)
    weights = network.trainable_variables

    # The images are an argument: a graph that captured them would hold a constant, which XLA takes minutes to compile.
    @tf.function(jit_compile=_uses_xla(settings))
    def run_steps(images: Any, targets: Any, choices: dict[str, Any]) -> None:
        for step in tf.range(len(choices["order"])):
            chosen = {name: choice[step] for name, choice in choices.items()}
            batch = augment(tf.gather(images, chosen["order"]), chosen)
            expected = tf.gather(targets, chosen["order"])
            with tf.GradientTape() as tape:
                answers = network(batch, training=True)
                value = loss(expected, answers)
            optimizer.apply(tape.gradient(value, weights), weights)
            mean_loss.update_state(value)
            accuracy.update_state(expected, answers)

    def run_epoch(images: Any, targets: Any, choices: Mapping[str, np.ndarray]) -> tuple[float, float]:
        mean_loss.reset_state()
        accuracy.reset_state()
        run_steps(images, targets, {name: tf.constant(choice) for name, choice in choices.items()})
        return float(mean_loss.result()), float(accuracy.result())

    return run_epoch


def _create_validation(network: keras.Model, task: Task, examples: Examples) -> Callable[[], tuple[float, float]]:
    """A function that returns the network's loss and accuracy on the validation images."""
    predict, loss, accuracy = create_predictor(network), create_loss(task), create_accuracy(task)
    targets = task.encode(examples.labels)

    def validate() -> tuple[float, float]:
        answers = predict(examples.images)
        accuracy.reset_state()
        accuracy.update_state(targets, answers)
        return float(loss(targets, answers)), float(accuracy.result())

    return validate


def _uses_xla(settings: TrainSettings) -> bool:
    """XLA runs an mlp at twice the speed, and convolutions on a CPU at half."""
    if settings.xla == "auto":
        return settings.network == "mlp" or bool(tf.config.list_physical_devices("GPU"))
    return settings.xla == "always"


def find_best(history: Sequence[Epoch]) -> Epoch:
    """The epoch with the highest validation accuracy; of equals the one with the lowest validation loss."""
    return max(history, key=lambda epoch: (epoch.validation_accuracy, -epoch.validation_loss))


def _finished(history: list[Epoch], settings: TrainSettings) -> bool:
    if len(history) >= settings.epochs:
        return True
    return bool(history and settings.patience) and len(history) - find_best(history).epoch >= settings.patience


def _restore(checkpoint: Checkpoint, state: list[Any]) -> tuple[list[Epoch], list[np.ndarray]]:
    snapshot = checkpoint.load()
    if snapshot is None:
        return [], []
    _assign(state, snapshot.variables)
    return [replace(Epoch(**record), restored=True) for record in snapshot.history], snapshot.best


def _values(variables: list[Any]) -> list[np.ndarray]:
    return [variable.numpy() for variable in variables]


def _assign(variables: list[Any], values: list[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _diverged(epoch: int, settings: TrainSettings) -> ModelError:
    return ModelError(
        f"the loss is not finite after epoch {epoch}: training has diverged",
        expected="a loss that falls",
        found=f"train.learning_rate {settings.learning_rate:g}",
        remedy="lower train.learning_rate, or raise train.warmup_fraction",
    )
