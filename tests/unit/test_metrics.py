"""The evaluation's mathematics against SciPy and scikit-learn, and where they have nothing to say."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support, roc_auc_score

from pipeline.evaluation import metrics

CLASSES = 10
RANDOM = np.random.default_rng(3)
LABELS = RANDOM.integers(0, CLASSES, 2000).astype(np.uint8)
LOGITS = RANDOM.normal(size=(2000, CLASSES)) + 2 * np.eye(CLASSES)[LABELS]
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
PREDICTED = PROBABILITIES.argmax(axis=1).astype(np.uint8)


@pytest.mark.parametrize(("successes", "trials"), [(8691, 10_000), (0, 50), (50, 50), (1, 1), (499, 1000)])
@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_wilson_interval(successes: int, trials: int, confidence: float) -> None:
    expected = binomtest(successes, trials).proportion_ci(confidence, "wilson")
    low, high = metrics.wilson_interval(successes, trials, confidence)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low < high <= 1


def test_cross_entropy() -> None:
    assert metrics.cross_entropy(LABELS, PROBABILITIES) == pytest.approx(log_loss(LABELS, PROBABILITIES), rel=1e-12)


def test_cross_entropy_of_a_certain_mistake_is_large_but_finite() -> None:
    assert metrics.cross_entropy(np.array([1]), np.array([[1.0, 0.0]])) == pytest.approx(-np.log(metrics.EPSILON))


def test_cross_entropy_is_not_a_number_when_one_answer_is_not() -> None:
    probabilities = PROBABILITIES.copy()
    probabilities[7, 3] = np.nan
    assert np.isnan(metrics.cross_entropy(LABELS, metrics.class_probabilities(probabilities)))


def test_confusion_matrix() -> None:
    assert (metrics.confusion_matrix(LABELS, PREDICTED, CLASSES) == confusion_matrix(LABELS, PREDICTED)).all()


def test_confusion_matrix_of_more_classes_than_a_byte_can_multiply() -> None:
    confusion = metrics.confusion_matrix(np.array([255], np.uint8), np.array([254], np.uint8), 256)
    assert np.argwhere(confusion).tolist() == [[255, 254]]


def test_class_scores() -> None:
    scores = metrics.class_scores(metrics.confusion_matrix(LABELS, PREDICTED, CLASSES))
    expected = precision_recall_fscore_support(LABELS, PREDICTED)
    assert [score.precision for score in scores] == pytest.approx(expected[0])
    assert [score.recall for score in scores] == pytest.approx(expected[1])
    assert [score.f1 for score in scores] == pytest.approx(expected[2])
    assert [score.support for score in scores] == expected[3].tolist()


def test_a_class_never_seen_or_never_predicted_scores_zero() -> None:
    never_predicted, never_seen, perfect = metrics.class_scores(np.array([[0, 0, 3], [0, 0, 0], [0, 0, 5]]))
    assert never_predicted == metrics.ClassScore(precision=0, recall=0, f1=0, support=3)
    assert never_seen == metrics.ClassScore(precision=0, recall=0, f1=0, support=0)
    assert perfect.recall == 1
    assert perfect.precision == 5 / 8


def test_roc_auc_counts_ties_as_one_half() -> None:
    labels, scores = LABELS == 6, PROBABILITIES[:, 6].round(1)
    assert len(np.unique(scores)) < 12
    assert metrics.roc_auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), rel=1e-12)


def test_roc_auc_of_one_kind_of_image_is_not_a_number() -> None:
    assert np.isnan(metrics.roc_auc(np.ones(4), np.arange(4)))


def test_a_single_output_becomes_no_and_yes() -> None:
    probabilities = metrics.class_probabilities(np.array([[0.25], [1.0]], np.float32))
    assert probabilities.tolist() == [[0.75, 0.25], [0.0, 1.0]]


def test_one_answer_that_is_not_a_number_spoils_its_image_alone() -> None:
    probabilities = metrics.class_probabilities(np.array([[0.5, np.inf], [0.5, 0.5]], np.float32))
    assert np.isnan(probabilities).tolist() == [[True, True], [False, False]]
