"""What a loss asks of a dataset: answers, encodings, and the combinations that are refused."""

import numpy as np
import pytest

from pipeline.errors import ModelError
from pipeline.models.tasks import create_task, find_labels

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Sandal")
LABELS = np.array([3, 0, 1, 3], np.uint8)


def test_sparse_targets_are_the_labels() -> None:
    task = create_task("sparse_categorical_crossentropy", CLASSES)
    assert (task.units, task.activation, task.classes) == (4, "softmax", CLASSES)
    assert task.encode(LABELS).tolist() == [3, 0, 1, 3]


def test_categorical_targets_are_one_hot() -> None:
    task = create_task("categorical_crossentropy", CLASSES)
    assert (task.units, task.activation) == (4, "softmax")
    assert task.encode(LABELS).tolist() == [[0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert task.answers(LABELS).tolist() == [3, 0, 1, 3]


def test_binary_targets_say_yes_to_the_positive_classes() -> None:
    task = create_task("binary_crossentropy", CLASSES, ["Sandal", "Trouser"])
    assert (task.units, task.activation) == (1, "sigmoid")
    assert task.classes == ("other", "Trouser or Sandal")
    assert task.encode(LABELS).tolist() == [[1], [0], [1], [1]]
    assert task.answers(LABELS).tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("named", [["sandal", 1], ["3", "TROUSER"], [3, 1, "Sandal"], [" Trouser", 3]])
def test_classes_are_found_by_name_or_number(named: list[str | int]) -> None:
    assert find_labels(named, CLASSES) == (1, 3)


@pytest.mark.parametrize("named", ["Sandals", 4, -1])
def test_unknown_classes_are_refused_with_the_known_ones(named: str | int) -> None:
    with pytest.raises(ModelError, match=r"(?s)1 Trouser.*found: +" + str(named)):
        create_task("binary_crossentropy", CLASSES, ["Trouser", named])


@pytest.mark.parametrize(("positive", "found"), [([], "none of them"), ([0, 1, 2, 3], "all of them")])
def test_a_question_with_one_answer_is_refused(positive: list[int], found: str) -> None:
    with pytest.raises(ModelError, match=found):
        create_task("binary_crossentropy", CLASSES, positive)


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "categorical_crossentropy"])
def test_positive_classes_need_the_binary_loss(loss: str) -> None:
    with pytest.raises(ModelError, match="set train.loss to binary_crossentropy"):
        create_task(loss, CLASSES, ["Sandal"])


def test_a_label_beyond_the_classes_is_refused() -> None:
    for loss, positive in (("sparse_categorical_crossentropy", []), ("binary_crossentropy", [1])):
        with pytest.raises(ModelError, match="labels from 0 to 3"):
            create_task(loss, CLASSES, positive).encode(np.array([0, 4], np.uint8))
