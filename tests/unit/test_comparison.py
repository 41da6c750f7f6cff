"""Paired statistics, held against SciPy and against what must be true of any pair."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pipeline.errors import DataError
from pipeline.evaluation.calibration import expected_calibration_error, reliability
from pipeline.evaluation.comparison import (
    Pairs,
    bootstrap_interval,
    compare,
    describe_comparison,
    detectable_gain,
    mcnemar_p_value,
)
from pipeline.evaluation.predictions import Predictions, read_predictions, write_predictions

CLASSES = ("Bag", "Dress", "Coat")


def predictions(seed: int, right: float = 0.8, images: int = 300) -> Predictions:
    """Answers to the same images, right with some probability, with confidences of their own."""
    random = np.random.default_rng(seed)
    labels = (np.arange(images) % 3).astype(np.uint8)
    predicted = np.where(random.random(images) < right, labels, (labels + random.integers(1, 3, images)) % 3)
    confidence = random.uniform(0.5, 1, images)
    probabilities = np.full((images, 3), ((1 - confidence) / 2)[:, None])
    probabilities[np.arange(images), predicted] = confidence
    ids = [f"image-{row}" for row in range(images)]
    return Predictions(classes=CLASSES, ids=ids, labels=labels, probabilities=probabilities)


def shuffled(given: Predictions) -> Predictions:
    order = np.random.default_rng(9).permutation(len(given.ids))
    return replace(
        given,
        ids=[given.ids[row] for row in order],
        labels=given.labels[order],
        probabilities=given.probabilities[order],
    )


@pytest.mark.parametrize(("gained", "lost"), [(0, 1), (0, 7), (3, 9), (40, 41), (61, 58), (200, 120), (1000, 1)])
def test_the_mid_p_value_is_the_exact_one_less_the_probability_of_the_observed_split(gained: int, lost: int) -> None:
    exact = stats.binomtest(gained, gained + lost, 0.5).pvalue
    observed = stats.binom.pmf(gained, gained + lost, 0.5)
    assert mcnemar_p_value(gained, lost) == pytest.approx(exact - observed, abs=1e-12)
    assert mcnemar_p_value(lost, gained) == mcnemar_p_value(gained, lost)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 7), (3, 9), (61, 58), (1000, 1)])
def test_the_p_value_of_a_loss_is_the_exact_one_sided_one(gained: int, lost: int) -> None:
    exact = stats.binomtest(lost, gained + lost, 0.5, alternative="greater").pvalue if gained + lost else 1.0
    assert Pairs(100, 10, gained, lost).loss_p_value == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("pairs", [0, 1, 50])
def test_an_even_split_is_what_chance_does(pairs: int) -> None:
    assert mcnemar_p_value(pairs, pairs) == 1.0


def test_the_mid_p_value_keeps_its_level_where_the_exact_test_is_too_cautious() -> None:
    """Averaged over 20 to 60 discordant pairs: Fagerland, Lydersen and Laake's finding."""

    def rejected(p_value: Callable[[int, int], float], pairs: int) -> float:
        return sum(
            stats.binom.pmf(gained, pairs, 0.5)
            for gained in range(pairs + 1)
            if p_value(gained, pairs - gained) <= 0.05
        )

    def exact(gained: int, lost: int) -> float:
        return float(stats.binomtest(gained, gained + lost, 0.5).pvalue)

    mid_p = np.mean([rejected(mcnemar_p_value, pairs) for pairs in range(20, 61, 4)])
    assert np.mean([rejected(exact, pairs) for pairs in range(20, 61, 4)]) < 0.04 < mid_p < 0.05


def test_the_interval_is_that_of_the_whole_convolution() -> None:
    """Against the distribution computed the long way, for few images."""
    for images, gained, lost in ((1, 1, 0), (7, 2, 1), (40, 9, 15), (60, 0, 2)):
        distribution = np.ones(1)
        for _ in range(images):
            distribution = np.convolve(distribution, np.array([lost, images - gained - lost, gained]) / images)
        low, high = np.searchsorted(np.cumsum(distribution), (0.05, 0.95)) - images
        assert bootstrap_interval(images, gained, lost, 0.9) == (low / images, high / images)


@pytest.mark.parametrize(("images", "gained", "lost"), [(200, 12, 5), (1000, 61, 58), (500, 30, 0), (50, 3, 9)])
@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_the_interval_is_the_limit_of_a_sampled_bootstrap(
    images: int, gained: int, lost: int, confidence: float
) -> None:
    outcomes = np.repeat([1, -1, 0], [gained, lost, images - gained - lost])
    sampled = stats.bootstrap(
        (outcomes,),
        np.mean,
        n_resamples=10_000,
        batch=1000,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    low, high = bootstrap_interval(images, gained, lost, confidence)
    tolerance = 2.5 / images  # two images of sampling error
    assert low == pytest.approx(sampled.low, abs=tolerance)
    assert high == pytest.approx(sampled.high, abs=tolerance)


def test_an_interval_is_exact_for_one_image_and_for_no_discordant_pair() -> None:
    assert bootstrap_interval(1, 1, 0) == (1.0, 1.0)
    assert bootstrap_interval(10_000, 0, 0) == (0.0, 0.0)


@pytest.mark.parametrize(("gained", "lost"), [(61, 58), (20, 90), (5, 0)])
def test_an_interval_contains_the_difference_mirrors_it_and_grows_with_confidence(gained: int, lost: int) -> None:
    intervals = [bootstrap_interval(10_000, gained, lost, confidence) for confidence in (0.8, 0.95, 0.999)]
    for low, high in intervals:
        assert low <= (gained - lost) / 10_000 <= high
    lows, highs = zip(*intervals, strict=True)
    assert list(lows) == sorted(lows, reverse=True)
    assert list(highs) == sorted(highs)
    low, high = bootstrap_interval(10_000, lost, gained)
    assert bootstrap_interval(10_000, gained, lost) == pytest.approx((-high, -low), abs=1.01e-4)  # one image


def test_pairs_are_counted_overall_and_by_class() -> None:
    champion, challenger = predictions(1), predictions(2, right=0.9)
    comparison = compare(champion, challenger)
    pairs = comparison.overall
    assert pairs.images == 300
    assert pairs.champion_right == champion.correct.mean()
    assert pairs.challenger_right == challenger.correct.mean()
    assert pairs.difference == pytest.approx(challenger.correct.mean() - champion.correct.mean())
    assert pairs.disagreement == np.mean(champion.correct != challenger.correct)
    for label, name in enumerate(CLASSES):
        members = challenger.labels == label
        assert comparison.by_class[name].challenger_right == challenger.correct[members].mean()
    for count in ("both_right", "both_wrong", "gained", "lost"):
        assert sum(getattr(part, count) for part in comparison.by_class.values()) == getattr(pairs, count)
    expected = expected_calibration_error(reliability(challenger.confidences, challenger.correct))
    assert comparison.challenger_ece == expected
    assert comparison.champion_ece != expected


def test_exchanging_the_models_exchanges_the_counts() -> None:
    there, back = compare(predictions(1), predictions(2)), compare(predictions(2), predictions(1))
    assert (there.overall.gained, there.overall.lost) == (back.overall.lost, back.overall.gained)
    assert there.overall.p_value == back.overall.p_value
    assert there.champion_ece == back.challenger_ece


def test_rows_are_matched_by_image_and_not_by_place() -> None:
    champion, challenger = predictions(1), predictions(2)
    assert compare(shuffled(champion), challenger) == compare(champion, challenger)
    assert compare(champion, shuffled(challenger)).overall == compare(champion, challenger).overall


def test_a_model_is_no_better_than_itself() -> None:
    comparison = compare(predictions(1), predictions(1))
    assert (comparison.overall.gained, comparison.overall.lost, comparison.overall.p_value) == (0, 0, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": [f"other-{row}" for row in range(300)]}, "for different images"),
        ({"labels": (np.arange(300) % 2).astype(np.uint8)}, "have different labels"),
        ({"classes": ("Bag", "Tie", "Shirt")}, "too few classes in common"),
    ],
)
def test_answers_to_other_questions_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        compare(replace(predictions(1), **change), predictions(2))  # type: ignore[arg-type]


def test_models_of_other_classes_are_compared_on_the_classes_that_both_know() -> None:
    champion = replace(predictions(1), classes=("Dress", "Tie", "Bag"))  # the same numbers mean other classes
    challenger = predictions(2)
    labels = np.array(
        [champion.classes.index({"Coat": "Tie"}.get(name, name)) for name in np.array(CLASSES)[challenger.labels]]
    )
    champion = replace(champion, labels=labels)
    found = compare(champion, challenger)
    assert (found.overall.images, sorted(found.by_class), found.left_out) == (200, ["Bag", "Dress"], ("Coat", "Tie"))
    ratio = champion.probabilities[:, 2] / champion.probabilities[:, 0]
    restricted = champion.among(("Bag", "Dress"))
    np.testing.assert_allclose(restricted.probabilities.sum(axis=1), 1)
    np.testing.assert_allclose(
        restricted.probabilities[:, 0] / restricted.probabilities[:, 1], ratio[champion.labels != 1]
    )


def test_a_part_of_the_images_is_refused() -> None:
    part = predictions(1, images=299)
    for pair in ((part, predictions(2)), (predictions(2), part)):
        with pytest.raises(DataError, match="for different images"):
            compare(*pair)


def test_a_class_without_images_has_no_recall() -> None:
    classes = (*CLASSES, "Sandal")
    given = [
        replace(one, classes=classes, probabilities=np.hstack([one.probabilities, np.zeros((300, 1))]))
        for one in (predictions(1), predictions(2))
    ]
    assert list(compare(*given).by_class) == list(CLASSES)


def test_a_detectable_gain_is_detected_in_four_of_five_cases() -> None:
    images, disagreement, level = 10_000, 0.06, 0.025
    gain = detectable_gain(images, disagreement, level)
    shares = [(disagreement + gain) / 2, (disagreement - gain) / 2, 1 - disagreement]
    drawn = np.random.default_rng(3).multinomial(images, shares, 2000)
    found = np.mean([mcnemar_p_value(int(gained), int(lost)) <= level for gained, lost, _ in drawn])
    assert 0.77 < found < 0.83


def test_a_comparison_is_json_with_every_number_that_was_used() -> None:
    described = describe_comparison(compare(predictions(1), predictions(2)))
    assert {"gained", "lost", "both_right", "both_wrong", "p_value", "difference_low"} <= described.keys()
    assert described["by_class"]["Dress"]["images"] == 100
    assert Pairs(1, 2, 3, 4).images == 10


def test_predictions_come_back_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "predictions.parquet"
    given = predictions(1)
    write_predictions(file, given)
    found = read_predictions(file)
    assert (found.classes, list(found.ids)) == (CLASSES, list(given.ids))
    assert (found.labels == given.labels).all()
    assert (found.predicted == given.predicted).all()
    assert np.allclose(found.probabilities, given.probabilities, atol=1e-7)
    file.write_bytes(b"no Parquet")
    with pytest.raises(DataError, match="has no predictions"):
        read_predictions(file)
    with pytest.raises(DataError, match="is missing"):
        read_predictions(file.with_name("another"))
