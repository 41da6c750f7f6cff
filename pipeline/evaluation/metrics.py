"""Metrics of classification, from labels and class probabilities.

They use only NumPy and the standard library, because the import of SciPy and scikit-learn takes 1.1 s. The tests
compare them with those libraries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

EPSILON = 1e-7  # smallest probability in a logarithm, as in Keras, so that test loss and training loss are comparable
SHOWN_CLASSES = 20  # in a table


@dataclass(frozen=True)
class ClassScore:
    """Precision, recall and F1 of a class. Undefined ratios are zero."""

    precision: float  # share of the images predicted as this class that are of this class
    recall: float  # share of this class's images that are predicted as this class
    f1: float
    support: int  # images of this class


def class_probabilities(outputs: np.ndarray) -> np.ndarray:
    """Convert a model's outputs to one probability for each class.

    Args:
        outputs: float [n, classes], or [n, 1] with the probability of the positive class.

    Returns:
        float64 [n, classes]; [n, 2], negative and positive, for the second kind. If an output is not a number, all
        probabilities of its image are NaN.
    """
    probabilities = outputs.astype(np.float64)
    if probabilities.shape[1] == 1:
        probabilities = np.hstack([1 - probabilities, probabilities])
    return np.where(np.isfinite(probabilities).all(axis=1, keepdims=True), probabilities, np.nan)


def cross_entropy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean negative log-likelihood of the true classes, in nats. NaN if any probability is NaN.

    Args:
        labels: int [n].
        probabilities: float [n, classes].
    """
    true_class = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(true_class, EPSILON, 1)).mean())


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's confidence interval of a proportion, which is valid near 0 and 1 and for few trials.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927);
    recommended by Brown, Cai and DasGupta, "Interval estimation for a binomial proportion", Stat. Sci. 16 (2001).
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    proportion = successes / trials
    shrink = 1 + z**2 / trials
    centre = (proportion + z**2 / (2 * trials)) / shrink
    half_width = z * np.sqrt(proportion * (1 - proportion) / trials + z**2 / (4 * trials**2)) / shrink
    return max(0.0, float(centre - half_width)), min(1.0, float(centre + half_width))


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count images by true class (row) and predicted class (column): int [classes, classes]."""
    cells = labels.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def class_scores(confusion: np.ndarray) -> list[ClassScore]:
    """Compute the scores of each class from the confusion matrix."""
    right, actual, called = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = _ratio(right, called), _ratio(right, actual)
    f1 = _ratio(2 * right, actual + called)
    rows = zip(precision.tolist(), recall.tolist(), f1.tolist(), actual.tolist(), strict=True)
    return [ClassScore(*row) for row in rows]


def select_weakest(recalls: Sequence[float]) -> list[int]:
    """Return the labels of the classes that a table shows: all in their order, or of many those of lowest recall."""
    labels = range(len(recalls))
    return list(labels) if len(labels) <= SHOWN_CLASSES else sorted(labels, key=recalls.__getitem__)[:SHOWN_CLASSES]


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the probability that a random positive image scores higher than a random negative one. Ties count half.

    This is the Mann-Whitney statistic: J. A. Hanley and B. J. McNeil, Radiology 143 (1982). NaN if a kind is missing.

    Args:
        labels: 0 or 1 [n].
        scores: float [n].
    """
    _, position, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[position]  # from 1, tied scores share their mean
    positives = int(np.count_nonzero(labels))
    pairs = positives * (len(labels) - positives)
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / pairs) if pairs else float("nan")


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
