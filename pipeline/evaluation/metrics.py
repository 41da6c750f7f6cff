"""How right a model's answers are: the mathematics of the evaluation, on labels and class probabilities.

NumPy and the standard library suffice for it. SciPy and scikit-learn, which cost a process 1.1 s to import, are what
the tests hold these functions against.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

EPSILON = 1e-7  # of a probability inside a logarithm: Keras's own, so that a test loss compares with a training loss


@dataclass(frozen=True)
class ClassScore:
    """How well one class is recognised. Undefined ratios are zero: nothing shows that the model knows the class."""

    precision: float  # share of the images called this class that are
    recall: float  # share of this class's images that are called it
    f1: float
    support: int  # images of this class


def class_probabilities(outputs: np.ndarray) -> np.ndarray:
    """One probability for each class, from what a model answers.

    Args:
        outputs: float [n, classes], or [n, 1] with the probability of a yes.

    Returns:
        float64 [n, classes], [n, 2] with no and yes for the second kind. An answer that is not a number becomes NaN
        for all classes of its image.
    """
    probabilities = outputs.astype(np.float64)
    if probabilities.shape[1] == 1:
        probabilities = np.hstack([1 - probabilities, probabilities])
    return np.where(np.isfinite(probabilities).all(axis=1, keepdims=True), probabilities, np.nan)


def cross_entropy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean negative log-likelihood of the true classes, in nats; NaN if any probability is.

    Args:
        labels: int [n].
        probabilities: float [n, classes].
    """
    true_class = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(true_class, EPSILON, 1)).mean())


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a proportion that keeps its coverage near 0 and 1 and for few trials.

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
    """int [classes, classes]: images by true class (row) and predicted class (column)."""
    cells = labels.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def class_scores(confusion: np.ndarray) -> list[ClassScore]:
    """Precision, recall and F1 of each class, from the confusion matrix."""
    right, actual, called = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = _ratio(right, called), _ratio(right, actual)
    f1 = _ratio(2 * right, actual + called)
    rows = zip(precision.tolist(), recall.tolist(), f1.tolist(), actual.tolist(), strict=True)
    return [ClassScore(*row) for row in rows]


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Probability that a random positive image scores higher than a random negative one; ties count one half.

    The Mann-Whitney statistic: J. A. Hanley and B. J. McNeil, Radiology 143 (1982). NaN unless both kinds are there.

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
