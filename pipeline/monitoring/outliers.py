"""Outliers: images that look like nothing that a model was trained on.

The score of an image is its squared Mahalanobis distance from the training images of the class that the model predicts
for it. The vector is what a traffic log has without the image: its features (brightness, contrast, ink, centre of mass,
colour) and the logarithms of the model's probabilities. K. Lee, K. Lee, H. Lee and J. Shin, "A simple unified framework
for detecting out-of-distribution samples and adversarial attacks", NeurIPS 2018, take a network's hidden layers as the
vector, and one covariance for all classes. Here each class has its own, drawn towards the common one as in J. H.
Friedman, "Regularized discriminant analysis", JASA 84 (1989). `benchmarks/traffic.md` compares other scores.
"""

from dataclasses import dataclass

import numpy as np

EXPECTED = 0.05  # share of the validation images beyond the threshold
SHRINKAGE = 0.1  # weight of the common covariance, at least
MOST_COVARIANCES = 100  # classes; of more classes, all share one covariance, as in the paper
RIDGE = 1e-6  # on the diagonal, in units of the common variances: a constant feature has none
SMALLEST_PROBABILITY = 1e-7


@dataclass(frozen=True)
class OutlierScore:
    """A fitted score. The images of a class that the model never predicted while fitting are compared with all."""

    centre: np.ndarray  # float64 [d], subtracted from each vector
    scale: np.ndarray  # float64 [d], then divides it
    means: np.ndarray  # float64 [classes, d]
    precisions: np.ndarray  # float64 [classes, d, d], inverse covariances; [1, d, d] if the classes share one

    def __call__(self, features: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Score images: float64 [n], larger is stranger.

        Args:
            features: float [n, features].
            probabilities: float [n, classes], without NaN.
        """
        vectors = (_join(features, probabilities) - self.centre) / self.scale
        predicted, scores = probabilities.argmax(axis=1), np.empty(len(vectors))
        for label in np.unique(predicted):
            rows = predicted == label
            difference = vectors[rows] - self.means[label]
            precision = self.precisions[label if len(self.precisions) > 1 else 0]
            scores[rows] = np.einsum("ij,jk,ik->i", difference, precision, difference, optimize=True)
        return scores


def fit_outlier_score(features: np.ndarray, probabilities: np.ndarray) -> OutlierScore:
    """Fit the score to training images.

    Args:
        features: float [n, features].
        probabilities: float [n, classes], the model's answers, without NaN.
    """
    vectors, classes = _join(features, probabilities), probabilities.shape[1]
    centre, scale = vectors.mean(axis=0), vectors.std(axis=0)
    scale[scale == 0] = 1
    vectors = (vectors - centre) / scale
    predicted, size = probabilities.argmax(axis=1), vectors.shape[1]
    means, spreads, counts = np.zeros((classes, size)), np.zeros((classes, size, size)), np.zeros(classes, int)
    common = np.zeros((size, size))
    for label in np.unique(predicted):
        members = vectors[predicted == label]
        means[label], counts[label] = members.mean(axis=0), len(members)
        spread = (members - means[label]).T @ (members - means[label])
        common += spread / len(vectors)
        if classes <= MOST_COVARIANCES:
            spreads[label] = spread / len(members)
    ridge = RIDGE * np.eye(size)
    if classes > MOST_COVARIANCES:
        return OutlierScore(centre, scale, means, np.linalg.inv(common + ridge)[None])
    weights = np.maximum(SHRINKAGE, size / (size + counts))[:, None, None]  # more for a class of few images
    return OutlierScore(centre, scale, means, np.linalg.inv((1 - weights) * spreads + weights * common + ridge))


def _join(features: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    logarithms = np.log(np.clip(probabilities.astype(np.float64), SMALLEST_PROBABILITY, 1))
    return np.concatenate([features, logarithms], axis=1)
