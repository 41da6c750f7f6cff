"""The three losses: their values against the formula, smoothing alike for all, and outputs that do not fit."""

import numpy as np
import pytest

from pipeline.errors import ModelError
from pipeline.models.backend import keras, tf
from pipeline.models.losses import create_accuracy, create_loss, require_fit, weigh_classes
from pipeline.models.tasks import Task, create_task

CLASSES = ("a", "b", "c")
LABELS = np.array([2, 0, 1, 1], np.uint8)
SPARSE = create_task("sparse_categorical_crossentropy", CLASSES)
ONE_HOT = create_task("categorical_crossentropy", CLASSES)
BINARY = create_task("binary_crossentropy", CLASSES, ["b"])


def answers(task: Task) -> np.ndarray:
    """Probabilities from fixed scores: float32 [4, units]."""
    scores = np.array([[0.5, -1.0, 2.0], [1.5, 0.0, 0.3], [0.1, 0.2, -0.3], [2.0, -2.0, 0.0]], np.float32)
    if task.binary:
        return 1 / (1 + np.exp(-scores[:, 1:2]))
    return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)


def expected(task: Task, smoothing: float) -> float:
    """The mean cross-entropy of smoothed targets, in nats, from its definition."""
    p = answers(task).astype(np.float64)
    p = np.concatenate([1 - p, p], axis=1) if task.binary else p
    targets = np.eye(p.shape[1])[task.answers(LABELS)] * (1 - smoothing) + smoothing / p.shape[1]
    return float(-(targets * np.log(p)).sum(axis=1).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("task", [SPARSE, ONE_HOT, BINARY], ids=lambda task: task.loss)
def test_a_loss_is_the_cross_entropy_of_smoothed_targets(task: Task, smoothing: float) -> None:
    value = create_loss(task, smoothing)(task.encode(LABELS), answers(task))
    assert float(value) == pytest.approx(expected(task, smoothing), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("task", [SPARSE, ONE_HOT, BINARY], ids=lambda task: task.loss)
def test_a_weighted_loss_is_the_mean_of_each_images_loss_times_the_weight_of_its_class(
    task: Task, smoothing: float
) -> None:
    weights = np.array([0.5, 3.0, 2.0][: len(task.classes)], np.float32)
    loss, each = create_loss(task, smoothing), range(len(LABELS))
    alone = [float(loss(task.encode(LABELS)[row : row + 1], answers(task)[row : row + 1])) for row in each]
    value = weigh_classes(loss, task, weights)(task.encode(LABELS), answers(task))
    assert float(value) == pytest.approx(np.mean(alone * weights[task.answers(LABELS)]), rel=1e-5)


@pytest.mark.parametrize("task", [SPARSE, ONE_HOT, BINARY], ids=lambda task: task.loss)
def test_certain_answers_keep_their_gradient(task: Task) -> None:
    """Probabilities of exactly 0 and 1 say nothing about how wrong they are; the scores behind them do."""
    inputs = keras.Input((1,))
    network = keras.Model(inputs, keras.layers.Dense(task.units, task.activation, kernel_initializer="ones")(inputs))
    loss, wrong = create_loss(task), task.encode(np.array([0], np.uint8))
    network.layers[-1].bias.assign([200.0] if task.binary else [0.0, 200.0, 0.0])

    @tf.function
    def slope() -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = loss(wrong, network(tf.ones((1, 1))))
        return tape.gradient(value, network.layers[-1].bias.value)

    assert np.abs(slope()).max() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("task", [SPARSE, ONE_HOT, BINARY], ids=lambda task: task.loss)
def test_accuracy_is_the_share_of_right_answers(task: Task) -> None:
    accuracy = create_accuracy(task)
    accuracy.update_state(task.encode(LABELS), answers(task))
    p = answers(task)
    right = (p[:, 0] > 0.5 if task.binary else p.argmax(axis=1)) == task.answers(LABELS)
    assert 0 < right.mean() < 1
    assert float(accuracy.result()) == pytest.approx(right.mean())


def test_an_output_that_does_not_fit_is_explained() -> None:
    inputs = keras.Input((4,))
    one, three = (keras.Model(inputs, keras.layers.Dense(units)(inputs)) for units in (1, 3))
    for task in (SPARSE, ONE_HOT):
        require_fit(three, task)
        with pytest.raises(ModelError, match=r"(?s)3 softmax units, to answer one of 3 classes.*found: +1 output"):
            require_fit(one, task)
    require_fit(one, BINARY)
    with pytest.raises(ModelError, match=r"(?s)1 sigmoid unit, to answer one yes or no \(b\).*found: +3 outputs"):
        require_fit(three, BINARY)
