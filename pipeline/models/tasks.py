"""The task of a network, multi-class or binary: its loss, its output layer and the encoding of labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ModelError
from pipeline.image_class_names import find_class, list_classes
from pipeline.params import Loss

OTHER = "other"


@dataclass(frozen=True)
class Task:
    """A loss with its output layer and label encoding.

    | loss                            | output layer          | targets                      |
    |---------------------------------|-----------------------|------------------------------|
    | sparse_categorical_crossentropy | softmax, one a class  | uint16 [n], a class's number |
    | categorical_crossentropy        | softmax, one a class  | uint8 [n, classes], one-hot  |
    | binary_crossentropy             | one sigmoid unit      | uint16 [n, 1], 1 is positive |
    """

    loss: Loss
    classes: tuple[str, ...]  # of the task; for a binary task (other, the positive classes)
    positive: tuple[int, ...]  # the dataset's labels that are positive; empty unless the loss is binary_crossentropy
    labels: int  # number of classes in the dataset

    @property
    def binary(self) -> bool:
        return self.loss == "binary_crossentropy"

    @property
    def units(self) -> int:
        """Width of the output layer."""
        return 1 if self.binary else len(self.classes)

    @property
    def activation(self) -> str:
        """Activation of the output layer."""
        return "sigmoid" if self.binary else "softmax"

    def answers(self, labels: np.ndarray) -> np.ndarray:
        """Convert labels of the dataset to indices into `classes`: uint16 [n].

        Raises:
            ModelError: a label is not one of the dataset's classes.
        """
        if len(labels) and labels.max() >= self.labels:
            raise ModelError(
                f"a label is {labels.max()}, but the dataset has {self.labels} classes",
                expected=f"labels from 0 to {self.labels - 1}",
                remedy="dvc repro split",
            )
        return (np.isin(labels, self.positive) if self.binary else labels).astype(np.uint16)

    def encode(self, labels: np.ndarray) -> np.ndarray:
        """Convert labels of the dataset to targets for the loss (see the table above).

        Raises:
            ModelError: a label is not one of the dataset's classes.
        """
        answers = self.answers(labels)
        if self.loss == "categorical_crossentropy":
            return np.eye(len(self.classes), dtype=np.uint8)[answers]
        return answers[:, None] if self.binary else answers


def create_task(loss: Loss, classes: Sequence[str], positive_classes: Sequence[str | int] = ()) -> Task:
    """Create the task of a loss on a dataset.

    Args:
        loss: one of the three.
        classes: the dataset's class names, in the order of its labels.
        positive_classes: the positive classes, by name or number; only for binary_crossentropy.

    Raises:
        ModelError: a positive class is unknown, none or all classes are positive, or the loss is not binary.
    """
    positive = find_labels(positive_classes, classes)
    if loss == "binary_crossentropy":
        if not 0 < len(positive) < len(classes):
            raise ModelError(
                "binary_crossentropy trains one sigmoid unit to answer yes or no, which needs images of both kinds",
                expected=f"in dataset.positive_classes between 1 and {len(classes) - 1} of {list_classes(classes)}",
                found=f"{'all' if positive else 'none'} of them",
                remedy="edit dataset.positive_classes, or set train.loss to sparse_categorical_crossentropy",
            )
        return Task(loss, (OTHER, " or ".join(classes[label] for label in positive)), positive, len(classes))
    if positive:
        raise ModelError(
            f"{loss} trains a softmax over all classes, but dataset.positive_classes asks a yes-or-no question",
            expected="train.loss binary_crossentropy, or no positive classes",
            found=", ".join(classes[label] for label in positive),
            remedy="set train.loss to binary_crossentropy, or empty dataset.positive_classes",
        )
    if len(classes) < 2:
        raise ModelError(
            f"{loss} needs several classes, but the dataset has only {len(classes)}", expected="two classes or more"
        )
    return Task(loss, tuple(classes), (), len(classes))


def balance_classes(counts: np.ndarray) -> np.ndarray:
    """Return the weight of each class that gives all classes the same share of the loss: float32 [classes].

    A class's weight is the mean number of images of a class, divided by its own, as scikit-learn's `balanced`. The
    mean of the weights over all images is 1.

    Args:
        counts: int [classes], training images of each class; none is zero.
    """
    return (counts.mean() / counts).astype(np.float32)


def find_labels(named: Sequence[str | int], classes: Sequence[str]) -> tuple[int, ...]:
    """Return the sorted labels of classes given by English name (see `pipeline.image_class_names`) or by number.

    Raises:
        ModelError: a class is not in the dataset, or a name is ambiguous.
    """
    found = {str(name): find_class(str(name).strip(), classes) for name in named}
    unknown = [name for name, labels in found.items() if not labels]
    if unknown:
        raise ModelError(
            "dataset.positive_classes has classes that are not in the dataset",
            expected=list_classes([f"{label} {name}" for label, name in enumerate(classes)]),
            found=", ".join(unknown),
            remedy="edit dataset.positive_classes",
        )
    for name, labels in found.items():
        if len(labels) > 1:
            raise ModelError(
                f"dataset.positive_classes: {name} may mean more than one class",
                expected="the exact name of one class",
                found=" or ".join(classes[label] for label in sorted(labels)),
                remedy="edit dataset.positive_classes",
            )
    return tuple(sorted(set().union(*found.values())))
