"""Estimate of a model's accuracy on images without labels: Average Thresholded Confidence.

S. Garg, S. Balakrishnan, Z. C. Lipton, B. Neyshabur and H. Sedghi, "Leveraging unlabeled data to predict
out-of-distribution performance", ICLR 2022, with the largest probability as the score. The threshold is the confidence
that a share of the validation images reaches which equals the accuracy on them. The estimate for other images is the
share of them that reaches it. It holds for images of the known classes; `benchmarks/traffic.md` has its errors.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AccuracyEstimate:
    """A threshold that was fitted to validation images."""

    threshold: float
    accuracy: float  # of the model on the validation images
    check: tuple[float, float] | None  # with the threshold of one half, of the other: the estimate and the accuracy

    def __call__(self, confidences: np.ndarray) -> float:
        """Estimate the accuracy on images. confidences: float [n], largest probabilities; n > 0."""
        return float((confidences >= self.threshold).mean())


def fit_accuracy_estimate(confidences: np.ndarray, correct: np.ndarray) -> AccuracyEstimate:
    """Fit the estimate to validation images.

    Args:
        confidences: float [n], the largest probability of each image.
        correct: bool [n], whether the most probable class is the true one.
    """
    check = None
    if len(confidences) > 1:
        threshold = _fit_threshold(confidences[::2], correct[::2])
        check = float((confidences[1::2] >= threshold).mean()), float(correct[1::2].mean())
    return AccuracyEstimate(_fit_threshold(confidences, correct), float(correct.mean()), check)


def _fit_threshold(confidences: np.ndarray, correct: np.ndarray) -> float:
    """Return the smallest confidence of the most confident images, of which there are as many as correct ones."""
    right = int(correct.sum())
    return float(np.sort(confidences)[len(confidences) - right]) if right else float("inf")
