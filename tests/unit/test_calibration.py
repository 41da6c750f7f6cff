"""Reliability tables and the expected calibration error."""

import numpy as np
import pytest

from pipeline.evaluation.calibration import BINS, Bin, expected_calibration_error, reliability


def test_a_bin_holds_its_upper_edge() -> None:
    table = reliability(np.array([0.2, 0.21, 0.4]), np.array([True, False, True]), bins=5)
    assert table == [Bin(0.0, 0.2, 1, 0.2, 1.0), Bin(0.2, 0.4, 2, pytest.approx(0.305), 0.5)]


def test_every_confidence_from_zero_to_one_has_a_bin() -> None:
    confidences = np.linspace(0, 1, 1001)
    table = reliability(confidences, confidences > 0.5)
    assert sum(row.images for row in table) == 1001
    assert len(table) == BINS
    assert (table[0].low, table[-1].high) == (0, 1)


def test_bins_without_images_are_left_out() -> None:
    assert [row.low for row in reliability(np.array([0.05, 0.95]), np.ones(2, bool), bins=10)] == [0.0, 0.9]


def test_the_error_of_a_calibrated_model_is_small_and_that_of_an_overconfident_one_is_its_excess() -> None:
    random = np.random.default_rng(1)
    confidences = random.uniform(0.1, 0.9, 200_000)
    correct = random.uniform(size=200_000) < confidences
    assert expected_calibration_error(reliability(confidences, correct)) < 0.005
    assert expected_calibration_error(reliability(confidences + 0.1, correct)) == pytest.approx(0.1, abs=0.005)


def test_bins_weigh_by_their_images() -> None:
    confidences = np.array([0.9] * 9 + [0.3])
    correct = np.array([True] * 9 + [True])
    assert expected_calibration_error(reliability(confidences, correct)) == pytest.approx(0.9 * 0.1 + 0.1 * 0.7)
