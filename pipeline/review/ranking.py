"""Images ordered by how likely their label is wrong, and pairs of classes that are confused.

The method is confident learning: Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset
labels", Journal of Artificial Intelligence Research 70, 2021 (arXiv:1911.00068), in its implementation cleanlab.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FILTER = "prune_by_class"  # flags as many of each class as there are wrong ones, by estimate: the least probable
SCORE = "self_confidence"  # probability of the given label


@dataclass(frozen=True)
class Ranking:
    """The images of a table by the quality of their labels."""

    flagged: np.ndarray  # int64 [k], rows whose label is probably wrong, the most suspect first
    quality: np.ndarray  # float64 [n], 0 to 1: the probability of the given label
    suggested: np.ndarray  # int64 [n], the most probable class
    confidence: np.ndarray  # float64 [n], its probability


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes that are labelled as each other."""

    first: str
    second: str
    images: int  # number of images in both classes, by estimate


def rank(labels: np.ndarray, probabilities: np.ndarray) -> Ranking:
    """Rank images by the quality of their labels, with cleanlab's `find_label_issues` and `get_label_quality_scores`.

    benchmarks/review.md compares the filters and scores.

    Args:
        labels: integers [n].
        probabilities: [n, classes], of models that were not trained on the images.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    integers = labels.astype(np.int64)
    suggested = probabilities.argmax(axis=1)
    quality = get_label_quality_scores(integers, probabilities, method=SCORE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one for each class that has no images
        is_flagged = find_label_issues(integers, probabilities, filter_by=FILTER, n_jobs=1) & (suggested != integers)
    flagged = np.flatnonzero(is_flagged)
    flagged = flagged[np.argsort(quality[flagged], kind="stable")]
    return Ranking(flagged, quality, suggested, probabilities.max(axis=1).astype(np.float64))


def find_confused(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> list[ConfusedPair]:
    """Find the pairs of classes whose images are labelled as each other, most images first.

    The number of images is cleanlab's estimate (`find_overlapping_classes`). Arguments: as for `rank`.
    """
    from cleanlab.dataset import find_overlapping_classes

    found = find_overlapping_classes(labels.astype(np.int64), probabilities, class_names=list(classes))
    rows = zip(found["Class Name A"], found["Class Name B"], found["Num Overlapping Examples"], strict=True)
    return [ConfusedPair(first, second, int(images)) for first, second, images in rows if images]
