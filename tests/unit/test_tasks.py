"""What a loss asks of a dataset: answers, encodings, and the combinations that are refused."""

import numpy as np
import pytest

from pipeline.data.table import Dataset
from pipeline.errors import ModelError
from pipeline.models.tasks import create_task, find_labels
from pipeline.registry.registration import name_model

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


def test_names_that_are_nearly_alike_are_not_mixed_up() -> None:
    classes = ("M1.5", "M15", "C", "C++", "a", "A", "T-shirt/top", "t_shirt top")
    assert find_labels(["M15"], classes) == (1,)
    assert find_labels(["C", "A"], classes) == (2, 5)
    assert find_labels(["c++"], classes) == (3,)
    with pytest.raises(ModelError, match=r"(?s)TSHIRTTOP may mean more than one.*T-shirt/top or t_shirt top"):
        find_labels(["TSHIRTTOP"], classes)
    with pytest.raises(ModelError, match="has classes that are not in the dataset"):
        find_labels(["M1-5"], classes)


def test_numbers_are_names_where_classes_are_named_by_other_numbers() -> None:
    assert find_labels([1, "3"], ("1", "2", "3")) == (0, 2)
    with pytest.raises(ModelError, match="has classes that are not in the dataset"):
        find_labels([0], ("1", "2", "3"))


def test_questions_about_classes_that_are_nearly_alike_have_models_of_their_own() -> None:
    def name(*classes: str, yes: str) -> str:
        return name_model(Dataset("parts", 4, 4, classes, classes, flip=False), ("other", yes))

    assert name("Ankle boot", "Bag", yes="Ankle boot") == "parts-is-ankle-boot"
    assert len({name("C", "C++", "+", yes=yes) for yes in ("C", "C++", "+", "C or C++")}) == 4


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
