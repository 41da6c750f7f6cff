"""Two models on the same images: how often each is right where the other is wrong, and what chance alone would do.

All of it rests on pairs. Two models that are right on 93 % of 10,000 images each have a standard error of 0.26 points;
but on most images both are right, or both wrong, and those say nothing. What counts is the few on which they differ.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.evaluation.calibration import expected_calibration_error, reliability
from pipeline.evaluation.predictions import Predictions

CONFIDENCE = 0.95  # of an interval that is shown
POWER = 0.8  # with which `detectable_gain` is to be found


@dataclass(frozen=True)
class Pairs:
    """Images that two models were asked about, counted by which of the two was right."""

    both_right: int
    both_wrong: int
    gained: int  # right by the challenger, wrong by the champion
    lost: int  # wrong by the challenger, right by the champion

    @property
    def images(self) -> int:
        return self.both_right + self.both_wrong + self.gained + self.lost

    @property
    def champion_right(self) -> float:
        """The champion's share of right answers."""
        return (self.both_right + self.lost) / self.images

    @property
    def challenger_right(self) -> float:
        """The challenger's share of right answers."""
        return (self.both_right + self.gained) / self.images

    @property
    def difference(self) -> float:
        """The challenger's share of right answers less the champion's."""
        return (self.gained - self.lost) / self.images

    @property
    def disagreement(self) -> float:
        """The share of images that exactly one of the two gets right."""
        return (self.gained + self.lost) / self.images

    @property
    def p_value(self) -> float:
        """How probable a split of the discordant pairs at least this uneven is, if both models are equally good."""
        return mcnemar_p_value(self.gained, self.lost)

    @property
    def loss_p_value(self) -> float:
        """P-value of the lost pairs, if the challenger is no worse: McNemar's exact test, one-sided.

        Exact and not mid-p: it never exceeds its level, however few the pairs are.
        """
        from scipy.special import bdtr

        return float(bdtr(self.gained, self.gained + self.lost, 0.5))

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """The paired bootstrap interval of the difference."""
        return bootstrap_interval(self.images, self.gained, self.lost, confidence)


@dataclass(frozen=True)
class Comparison:
    """A challenger held against a champion."""

    overall: Pairs
    by_class: Mapping[str, Pairs]  # the images of each class, so that shares of right answers are recalls
    champion_ece: float  # expected calibration error
    challenger_ece: float


def compare(champion: Predictions, challenger: Predictions) -> Comparison:
    """Compare two models image by image. Rows are matched by image id.

    Raises:
        DataError: they did not answer the same question about the same images: ids, labels or classes differ.
    """
    champion = champion.in_order_of(challenger.ids)
    if champion.classes != challenger.classes:
        raise DataError(
            "two sets of predictions are not of the same classes",
            expected=", ".join(champion.classes),
            found=", ".join(challenger.classes),
        )
    different = np.flatnonzero(champion.labels != challenger.labels)
    if len(different):
        raise DataError(
            "two sets of predictions do not agree on what is right",
            expected="the same label for an image in both",
            found=f"{len(different):,} that differ, image {challenger.ids[different[0]]} among them",
        )
    by_class = {
        name: _count_pairs(champion.correct[members], challenger.correct[members])
        for label, name in enumerate(challenger.classes)
        if (members := challenger.labels == label).any()
    }
    return Comparison(
        _count_pairs(champion.correct, challenger.correct), by_class, _calibration(champion), _calibration(challenger)
    )


def mcnemar_p_value(gained: int, lost: int) -> float:
    """Two-sided mid-p value of McNemar's exact test.

    Of the discordant pairs, half should go either way if both models are equally good. Half the probability of the
    observed split is left out: the plain exact test is too cautious, the asymptotic one not cautious enough.
    M. W. Fagerland, S. Lydersen and P. Laake, "The McNemar test for binary matched-pairs data: mid-p and asymptotic are
    better than exact conditional", BMC Medical Research Methodology 13:91 (2013).
    """
    from scipy.special import bdtr  # the binomial distribution; scipy.stats has it too, and takes a second to import

    fewer, pairs = min(gained, lost), gained + lost
    if gained == lost:
        return 1.0
    return float(bdtr(fewer, pairs, 0.5) + (bdtr(fewer - 1, pairs, 0.5) if fewer else 0.0))


def bootstrap_interval(images: int, gained: int, lost: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Percentile bootstrap interval of the paired difference in accuracy, computed exactly: no sampling, no seed.

    Drawing images with replacement changes the difference by +1, -1 or 0 images a draw, with the shares of the pairs as
    probabilities. The bootstrap distribution is therefore that of one draw convolved with itself `images` times, a
    power of its Fourier transform. It is taken over the differences within ten standard deviations of the observed one.
    """
    observed, reach = gained - lost, 20 + 10 * math.isqrt(gained + lost)
    draw = np.zeros(2 * reach + 1)  # by the change it makes, as a residue: a change of -1 is the last
    draw[[0, 1, -1]] = np.array([images - gained - lost, gained, lost]) / images
    residues = np.fft.irfft(np.fft.rfft(draw) ** images, len(draw))
    differences = np.arange(observed - reach, observed + reach + 1)
    cumulative = np.cumsum(residues[differences % len(draw)])
    tail = (1 - confidence) / 2
    low, high = differences[np.searchsorted(cumulative, (tail, 1 - tail))] / images
    return float(low), float(high)


def detectable_gain(images: int, disagreement: float, level: float) -> float:
    """The gain in accuracy that a McNemar test at `level` finds in four of five cases (normal approximation).

    Args:
        disagreement: share of the images that exactly one of the two models gets right.
    """
    normal = NormalDist()
    return float((normal.inv_cdf(1 - level / 2) + normal.inv_cdf(POWER)) * np.sqrt(disagreement / images))


def describe_comparison(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON: counts, shares, intervals at 95 %."""
    return {
        **_describe_pairs(comparison.overall),
        "p_value": comparison.overall.p_value,
        "champion_ece": comparison.champion_ece,
        "challenger_ece": comparison.challenger_ece,
        "by_class": {name: _describe_pairs(pairs) for name, pairs in comparison.by_class.items()},
    }


def _describe_pairs(pairs: Pairs) -> dict[str, Any]:
    low, high = pairs.interval()
    return {
        "images": pairs.images,
        "both_right": pairs.both_right,
        "both_wrong": pairs.both_wrong,
        "gained": pairs.gained,
        "lost": pairs.lost,
        "champion_right": pairs.champion_right,
        "challenger_right": pairs.challenger_right,
        "difference": pairs.difference,
        "difference_low": low,
        "difference_high": high,
    }


def _count_pairs(champion: np.ndarray, challenger: np.ndarray) -> Pairs:
    """bool [n] each: whether the model is right."""
    return Pairs(
        both_right=int((champion & challenger).sum()),
        both_wrong=int((~champion & ~challenger).sum()),
        gained=int((challenger & ~champion).sum()),
        lost=int((champion & ~challenger).sum()),
    )


def _calibration(predictions: Predictions) -> float:
    return expected_calibration_error(reliability(predictions.confidences, predictions.correct))
