"""Calibration of a model: of the predictions with confidence 0.8, 80 % should be right."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 15


@dataclass(frozen=True)
class Bin:
    """The images with a confidence above `low` and up to `high`."""

    low: float
    high: float
    images: int
    confidence: float  # mean of the images
    accuracy: float  # share of the images that is right


def reliability(confidences: np.ndarray, correct: np.ndarray, bins: int = BINS) -> list[Bin]:
    """Compute accuracy by confidence, in bins of equal width. Skips bins without images.

    Args:
        confidences: float [n], the probability given to the predicted class.
        correct: bool [n], True if that class is the true one.
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
    """Return the mean distance between confidence and accuracy, each bin weighted by its images.

    C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017,
    equation 3, with their 15 bins.
    """
    images = sum(row.images for row in table)
    return sum(row.images / images * abs(row.accuracy - row.confidence) for row in table)
