"""The training loop, which is the same for all networks."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.errors import ModelError
from pipeline.models.augmentation import augment
from pipeline.models.backend import choose_xla, inspect_machine, keras, tf
from pipeline.models.checkpoints import Checkpoint, Snapshot
from pipeline.models.contract import Ground
from pipeline.models.distribution import Strategy, replicated, require_agreement, require_divisible, take_share
from pipeline.models.inference import create_predictor
from pipeline.models.inputs import Chunk, Examples, Source
from pipeline.models.losses import create_accuracy, create_loss, require_fit, weigh_classes
from pipeline.models.optimizers import create_optimizer
from pipeline.models.tasks import Task
from pipeline.params import TrainSettings

__all__ = ["Epoch", "Examples", "Progress", "find_best", "plan_batches", "train", "uses_xla"]

STEPS_A_CALL = 32  # few enough to report progress, enough to make the cost of a call negligible


@dataclass(frozen=True)
class Epoch:
    """The results of an epoch."""

    epoch: int  # counted from 1
    loss: float  # mean over the epoch, while the weights changed; with label smoothing and class weights
    accuracy: float
    validation_loss: float  # with the weights at its end; without label smoothing and class weights
    validation_accuracy: float
    learning_rate: float  # at its end
    images_per_second: float = field(compare=False)
    restored: bool = field(default=False, compare=False)  # from a checkpoint of an earlier process
    validation_balanced_accuracy: float | None = None  # mean recall of the classes; only with class weights

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the epoch, without its number."""
        metrics = {name: value for name, value in asdict(self).items() if name not in ("epoch", "restored")}
        return {name: value for name, value in metrics.items() if value is not None}


@dataclass(frozen=True)
class Progress:
    """The progress within an epoch."""

    epoch: int
    done: float  # share of the epoch, 0 to 1
    loss: float  # mean so far, over this process's images
    images_per_second: float


def train(
    network: keras.Model,
    task: Task,
    training: Source,
    validation: Source,
    settings: TrainSettings,
    *,
    seed: int,
    checkpoint: Checkpoint,
    class_weights: np.ndarray | None = None,
    ground: Ground = 0,
    strategy: Strategy | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[Epoch]:
    """Train a network. Yields each epoch when it ends. After the last one, the network has the weights of the best.

    The best epoch has the highest validation accuracy, or with class weights balanced accuracy (see `find_best`). All
    random choices are functions of the seed, the epoch and, in a stream, the chunk. A killed training therefore resumes
    from its checkpoint and ends with the same bits.

    Args:
        class_weights: float32 [classes of the task], factors of the loss of each class; None: all classes count by
            their images.
        ground: value of the pixels that enter at the edges of a shifted image.
        strategy: the strategy that the network was created with (see `distribution`); None: one device.
        report: called regularly with the progress within an epoch.

    Raises:
        ModelError: the labels or the network's output do not fit the task, the loss is not finite, or a batch cannot be
            divided among the replicas.
    """
    strategy = strategy or tf.distribute.get_strategy()
    require_fit(network, task)
    batch, steps = plan_batches(training.shape[0], settings, strategy.num_replicas_in_sync)
    require_divisible(batch, strategy)
    with replicated(strategy):
        optimizer = create_optimizer(settings, steps * settings.epochs)
        optimizer.build(network.trainable_variables)
        epoch_graph = _EpochGraph(network, task, optimizer, settings, class_weights, ground, strategy)
    validate = _create_validation(network, task, validation)
    chunks = training.epochs(task, settings, batch, seed)

    state = [*network.variables, *optimizer.variables]
    history, best = _restore(checkpoint, state)
    require_agreement(f"training {checkpoint.path.stem} after epoch {len(history)}", strategy)
    yield from history
    while not _finished(history, settings):
        number, started = len(history) + 1, time.perf_counter()
        for done in epoch_graph.run(chunks(number)):
            pace = done * batch / (time.perf_counter() - started)
            report(Progress(number, done / steps, epoch_graph.local_loss(), pace))
        loss, accuracy = epoch_graph.results()
        variables = _values(state)
        optimizer.finalize_variable_values(network.trainable_variables)  # applies their moving average, if any
        validation_loss, validation_accuracy, balanced = validate()
        rate = float(optimizer.learning_rate)
        history.append(Epoch(number, loss, accuracy, validation_loss, validation_accuracy, rate, pace))
        if class_weights is not None:
            history[-1] = replace(history[-1], validation_balanced_accuracy=balanced)
        if not math.isfinite(history[-1].loss + history[-1].validation_loss):
            raise _diverged(number, settings)
        if find_best(history) is history[-1]:
            best = _values(network.variables)
        _assign(state, variables)
        checkpoint.save(Snapshot(variables, best, [asdict(epoch) for epoch in history]))
        yield history[-1]
    _assign(network.variables, best)


def plan_batches(images: int, settings: TrainSettings, replicas: int = 1) -> tuple[int, int]:
    """Return the size of a batch and the number of batches in an epoch. Images left over are skipped.

    If there are fewer images than `batch_size`, a batch has all of them that can be divided among the replicas.
    """
    batch = min(settings.batch_size, max(images - images % replicas, 1))
    return batch, images // batch


def uses_xla(settings: TrainSettings, strategy: Strategy) -> bool:
    """Return True if XLA compiles the training, which it does only for one device."""
    return strategy.num_replicas_in_sync == 1 and choose_xla(settings.xla, settings.network, inspect_machine())


class _EpochGraph:
    """Runs passes over the images, with `STEPS_A_CALL` training steps in each call of a graph."""

    def __init__(
        self,
        network: keras.Model,
        task: Task,
        optimizer: keras.optimizers.Optimizer,
        settings: TrainSettings,
        class_weights: np.ndarray | None,
        ground: Ground,
        strategy: Strategy,
    ) -> None:
        self._loss, self._accuracy, self._strategy = keras.metrics.Mean(), create_accuracy(task), strategy
        loss, weights = create_loss(task, settings.label_smoothing), network.trainable_variables
        if class_weights is not None:
            loss = weigh_classes(loss, task, class_weights)
        replicas = strategy.num_replicas_in_sync
        use_xla = uses_xla(settings, strategy)

        def step(images: Any, targets: Any, choices: dict[str, Any]) -> None:
            images = augment(images, choices, ground)
            with tf.GradientTape() as tape:
                answers = network(images, training=True)
                value = loss(targets, answers)  # divided by the replicas: the optimizer adds their gradients
            optimizer.apply(tape.gradient(value, weights), weights)
            self._loss.update_state(value * replicas)
            self._accuracy.update_state(targets, answers)

        # The images are an argument: if the graph captured them, they would be a constant, which XLA takes minutes to
        # compile. The loop is a tf.while_loop, because AutoGraph takes a quarter of a second to convert a Python loop.
        @tf.function(jit_compile=use_xla, autograph=False)
        def run_steps(images: Any, targets: Any, choices: dict[str, Any], first: Any, end: Any) -> None:
            def run_step(number: Any) -> Any:
                chosen = {name: choice[number] for name, choice in choices.items()}
                order = chosen.pop("order")
                batch = tf.gather(images, order), tf.gather(targets, order), chosen
                strategy.run(lambda *batch: step(*take_share(batch, strategy)), args=batch)
                return number + 1

            tf.while_loop(lambda number: number < end, run_step, [first])

        self._run_steps = run_steps

    def run(self, chunks: Iterable[Chunk]) -> Iterator[int]:
        """Run one pass over the images. Yields the number of finished steps after each call."""
        self._loss.reset_state()
        self._accuracy.reset_state()
        done = 0
        for chunk in chunks:
            choices = {name: tf.constant(choice) for name, choice in chunk.choices.items()}
            for first in range(0, chunk.steps, STEPS_A_CALL):
                end = min(first + STEPS_A_CALL, chunk.steps)
                self._run_steps(chunk.images, chunk.targets, choices, tf.constant(first), tf.constant(end))
                done += end - first
                yield done

    def results(self) -> tuple[float, float]:
        """Return mean loss and accuracy of the pass."""
        return float(self._loss.result()), float(self._accuracy.result())

    def local_loss(self) -> float:
        """Return the mean loss so far of this process's replicas. Other processes would have to be waited for."""
        total, count = (
            sum(float(part) for part in self._strategy.experimental_local_results(variable.value))
            for variable in (self._loss.total, self._loss.count)
        )
        return total / count


def _create_validation(network: keras.Model, task: Task, source: Source) -> Callable[[], tuple[float, float, float]]:
    """Return a function that computes loss, accuracy and balanced accuracy on the validation images."""
    predict, loss, accuracy = create_predictor(network), create_loss(task), create_accuracy(task)

    def validate() -> tuple[float, float, float]:
        accuracy.reset_state()
        total, right, images = 0.0, np.zeros(len(task.classes)), np.zeros(len(task.classes))
        for block in source.blocks():
            answers, targets = predict(block.images), task.encode(block.labels)
            accuracy.update_state(targets, answers)
            total += float(loss(targets, answers)) * len(targets)
            actual = task.answers(block.labels)
            is_right = actual == (answers[:, 0] > 0.5 if task.binary else np.argmax(answers, axis=1))
            images += np.bincount(actual, minlength=len(images))
            right += np.bincount(actual[is_right], minlength=len(images))
        return total / source.shape[0], float(accuracy.result()), float(np.mean(right[images > 0] / images[images > 0]))

    return validate


def find_best(history: Sequence[Epoch]) -> Epoch:
    """Return the epoch with the highest validation accuracy and, among equals, the lowest validation loss.

    With class weights, the balanced accuracy decides: a network that never predicts a rare class may be accurate.
    """

    def merit(epoch: Epoch) -> tuple[float, float]:
        balanced = epoch.validation_balanced_accuracy
        return epoch.validation_accuracy if balanced is None else balanced, -epoch.validation_loss

    return max(history, key=merit)


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
