"""The three losses and their accuracy metrics, as Keras objects."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.errors import ModelError
from pipeline.models.backend import keras, tf
from pipeline.models.tasks import Task

Loss = Callable[..., Any]  # of targets and probabilities; a number


class SmoothedSparseCategoricalCrossentropy(keras.losses.Loss):
    """Sparse categorical cross-entropy with label smoothing, which Keras supports only for one-hot targets."""

    def __init__(self, classes: int, label_smoothing: float) -> None:
        super().__init__()
        self._classes, self._label_smoothing = classes, label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss float32 [n]. y_true: integers [n]; y_pred: probabilities [n, classes]."""
        one_hot = keras.ops.one_hot(y_true, self._classes)
        return keras.losses.categorical_crossentropy(one_hot, y_pred, label_smoothing=self._label_smoothing)


def create_loss(task: Task, label_smoothing: float = 0.0) -> keras.losses.Loss:
    """Create the mean loss of a batch, a function of the targets of `task.encode` and of probabilities.

    Keras uses the logits of the output layer if it can reach them, which avoids rounding errors.

    Args:
        label_smoothing: share of a target that is spread evenly over all classes (arXiv:1512.00567, section 7).
    """
    if task.loss == "categorical_crossentropy":
        return keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing)
    if task.loss == "binary_crossentropy":
        return keras.losses.BinaryCrossentropy(label_smoothing=label_smoothing)
    if label_smoothing:
        return SmoothedSparseCategoricalCrossentropy(task.units, label_smoothing)
    return keras.losses.SparseCategoricalCrossentropy()


def weigh_classes(loss: Loss, task: Task, weights: np.ndarray) -> Loss:
    """Return a loss that multiplies the loss of each image by the weight of its class.

    Args:
        loss: a loss of `create_loss` for the task.
        weights: float32 [classes of the task].
    """
    table = tf.constant(weights, tf.float32)

    def weighted(targets: Any, answers: Any) -> Any:
        if task.loss == "categorical_crossentropy":
            numbers = tf.argmax(targets, axis=1)
        else:
            numbers = tf.cast(tf.reshape(targets, [-1]), tf.int32)
        return loss(targets, answers, sample_weight=tf.gather(table, numbers))

    return weighted


def create_accuracy(task: Task) -> keras.metrics.Metric:
    """Create the accuracy metric for the same targets and probabilities."""
    kinds = {
        "sparse_categorical_crossentropy": keras.metrics.SparseCategoricalAccuracy,
        "categorical_crossentropy": keras.metrics.CategoricalAccuracy,
        "binary_crossentropy": keras.metrics.BinaryAccuracy,
    }
    return kinds[task.loss](name="accuracy")


def require_fit(model: keras.Model, task: Task) -> None:
    """Refuse a network whose output layer does not fit a task.

    Raises:
        ModelError: names the output that the task's loss needs, and that of the network.
    """
    output = tuple(model.output_shape[1:])
    if output != (task.units,):
        question = f"one yes or no ({task.classes[1]})" if task.binary else f"one of {task.units} classes"
        raise ModelError(
            f"the network's output does not fit {task.loss}",
            expected=f"{task.units} {task.activation} unit{'s' * (task.units > 1)}, to answer {question}",
            found=" x ".join(map(str, output)) + f" output{'s' * (output != (1,))}",
            remedy="dvc repro train",
        )
