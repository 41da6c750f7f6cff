"""Whether a model's confidence can be believed: of the images it is 80 % sure of, are 80 % right?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 15


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies above `low`, up to and including `high`."""

    low: float
    high: float
    images: int
    confidence: float  # their mean
    accuracy: float  # the share of them that is right


def reliability(confidences: np.ndarray, correct: np.ndarray, bins: int = BINS) -> list[Bin]:
    """Confidence against accuracy, in bins of equal width; bins without images are left out.

    Args:
        confidences: float [n], the probability given to the predicted class.
        correct: bool [n], whether that class is the true one.
    """
    number = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(number, minlength=bins)
    confidence = np.bincount(number, confidences, minlength=bins)
    right = np.bincount(number, correct, minlength=bins)
    return [
        Bin(i / bins, (i + 1) / bins, int(images[i]), float(confidence[i] / images[i]), float(right[i] / images[i]))
        for i in np.flatnonzero(images)
    ]


def expected_calibration_error(table: Sequence[Bin]) -> float:
    """Mean distance between confidence and accuracy, each bin weighted by its images.

    C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017,
    equation 3, with their 15 bins.
    """
    images = sum(row.images for row in table)
    return sum(row.images / images * abs(row.accuracy - row.confidence) for row in table)
