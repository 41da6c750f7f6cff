"""Drift is found in changed images and not in unchanged ones; the rule that asks for a retraining."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import features, table, tiny
from pipeline.monitoring import drift
from pipeline.monitoring.comparison import ComparedBatches
from pipeline.monitoring.drift import CONFIDENCE, BatchDrift, Comparison, Sample
from pipeline.monitoring.params import MonitorParams
from pipeline.monitoring.report import write_report
from pipeline.params import load_params
from tests.conftest import REPOSITORY
from tests.own_data import draw_parts

PARAMS = load_params(REPOSITORY / "params.yaml").section(MonitorParams)
CLASSES = tuple("abcdefghij")
Pair = tuple[np.ndarray, np.ndarray]


def describe(images: np.ndarray, labels: np.ndarray) -> Sample:
    measured = features.measure([(images, labels, table.strings([""] * len(labels)))])
    assert measured
    return drift.describe_images(measured, CLASSES)


@pytest.fixture(scope="module")
def reference() -> Sample:
    return describe(*tiny.generate(4000, 1))


@pytest.fixture(scope="module")
def others() -> Pair:
    """Images of the same kind that are not in the reference."""
    return tiny.generate(6000, 2)


@pytest.fixture(scope="module")
def described(others: Pair) -> Sample:
    return describe(*others)


def choose(sample: Sample, labels: np.ndarray, rows: np.ndarray) -> Sample:
    """Select images of a sample."""
    counts = np.bincount(labels[rows], minlength=len(CLASSES)).tolist()
    return Sample(
        dict(zip(CLASSES, counts, strict=True)), {name: values[rows] for name, values in sample.values.items()}
    )


def drifted_in(batch: Sample, reference: Sample, params: MonitorParams = PARAMS) -> tuple[str, ...]:
    return drift.find_drifted(drift.compare(batch, reference), params)


def test_another_colour_of_equal_brightness_is_a_drift() -> None:
    images, labels = draw_parts(600, 1)
    reference, batch = describe(images[:300], labels[:300]), describe(images[300:], labels[300:])
    assert set(batch.values) == {"mean", "std", "ink", "row", "column", "red_green", "yellow_blue"}
    assert drifted_in(batch, reference) == ()
    turned = describe(images[300:][..., [0, 2, 1]], labels[300:])
    assert "mean" not in drifted_in(turned, reference)
    faded = images[300:].mean(axis=3, keepdims=True).repeat(3, axis=3).astype(np.uint8)
    assert set(drifted_in(describe(faded, labels[300:]), reference)) >= {"red_green", "yellow_blue"}


def test_random_batches_of_the_same_kind_rarely_drift(reference: Sample, others: Pair, described: Sample) -> None:
    """200 draws; at `alpha` 0.01 two are to be expected, and seven or more have a chance of 1 in 200."""
    generator, (_, labels) = np.random.default_rng(0), others
    alarms = [
        drifted_in(choose(described, labels, generator.choice(len(labels), size, replace=False)), reference)
        for size in (20, 50, 150, 600)
        for _ in range(50)
    ]
    assert sum(map(bool, alarms)) <= 6
    # By the effect alone, small batches would drift all the time: it is significance that keeps them quiet.
    eager = replace(PARAMS, alpha=0.999999)
    draws = [choose(described, labels, generator.choice(len(labels), 50, replace=False)) for _ in range(10)]
    assert sum(bool(drifted_in(batch, reference, eager)) for batch in draws) >= 8


def test_a_large_batch_does_not_drift_by_significance_alone(described: Sample, others: Pair) -> None:
    values = np.random.default_rng(0).normal(size=200_000)
    counts = {"a": 100_000, "b": 100_000}
    batch, reference = Sample({"a": 101_500, "b": 98_500}, {"mean": values + 0.02}), Sample(counts, {"mean": values})
    comparisons = drift.compare(batch, reference)
    assert all(comparison.p_value < 1e-5 for comparison in comparisons)
    assert drift.find_drifted(comparisons, PARAMS) == ()


@pytest.mark.parametrize("size", [100, 1000])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda images: (images * 0.7).astype(np.uint8), {"mean", "std"}),
        (lambda images: np.roll(images, 2, axis=1), {"row"}),
        (lambda images: np.roll(images, -3, axis=2), {"column"}),
        (lambda images: np.where(images < 120, 0, images), {"ink"}),
        (np.zeros_like, {"mean", "std", "ink", "row", "column"}),
    ],
)
def test_a_change_is_found_in_the_quantities_it_changes(
    change: Callable[[np.ndarray], np.ndarray], expected: set[str], size: int, reference: Sample, others: Pair
) -> None:
    images, labels = others[0][:size], others[1][:size]
    found = set(drifted_in(describe(change(images), labels), reference))
    assert expected <= found
    assert "labels" not in found


def test_another_class_mix_is_found_in_the_labels(reference: Sample, others: Pair, described: Sample) -> None:
    labels = others[1]
    members = [np.flatnonzero(labels == label) for label in range(10)]
    for counts, expected in (([80, 40, *[20] * 8], True), ([200, *[0] * 9], True), ([22, 18, *[20] * 8], False)):
        rows = np.concatenate([rows[:count] for rows, count in zip(members, counts, strict=True)])
        assert ("labels" in drifted_in(choose(described, labels, rows), reference)) is expected


def test_effects_follow_their_definitions() -> None:
    """By hand: D is the largest gap of the distribution functions; the distance is 1 between disjoint shares."""
    batch = Sample({"a": 4, "b": 0}, {"mean": np.array([1.0, 2.0, 3.0, 4.0])})
    reference = Sample({"a": 0, "b": 8}, {"mean": np.array([3.5, 4.5, 5.0, 6.0])})
    labels, mean = drift.compare(batch, reference)
    assert labels.effect == pytest.approx(1)
    assert mean.effect == pytest.approx(0.75)
    half = Sample({"a": 1, "b": 1}, {})
    # H(3/4, 1/4) - (H(1/2, 1/2) + H(1, 0)) / 2, in bits, and its square root
    divergence = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)) - 0.5
    assert drift.compare(half, Sample({"a": 5, "b": 0}, {}))[0].effect == pytest.approx(np.sqrt(divergence))


def test_only_a_lower_confidence_is_drift() -> None:
    usual = np.random.default_rng(0).beta(8, 2, 2000)
    reference = Sample({"a": 1, "b": 1}, {CONFIDENCE: usual})
    for confidences, expected in ((usual * 0.8, (CONFIDENCE,)), (np.sqrt(usual), ()), (usual[:300], ())):
        assert drifted_in(Sample({"a": 1, "b": 1}, {CONFIDENCE: confidences}), reference) == expected


def test_each_threshold_belongs_to_its_quantities() -> None:
    shares = drift.Shares((), (), ())
    effects = {"labels": 0.4, "mean": 0.5, "column": 0.5, CONFIDENCE: 0.6}
    comparisons = [Comparison(quantity, "", effect, 0.0, shares) for quantity, effect in effects.items()]
    params = replace(PARAMS, label_effect=0.4, feature_effect=0.5, confidence_effect=0.6)
    assert drift.find_drifted(comparisons, params) == tuple(effects)
    assert drift.find_drifted(comparisons, replace(params, label_effect=0.41)) == ("mean", "column", CONFIDENCE)
    assert drift.find_drifted(comparisons, replace(params, feature_effect=0.51)) == ("labels", CONFIDENCE)
    assert drift.find_drifted(comparisons, replace(params, confidence_effect=0.61)) == ("labels", "mean", "column")


def test_significance_is_shared_among_the_quantities() -> None:
    shares = drift.Shares((), (), ())
    comparisons = [Comparison(f"q{number}", "", 1.0, 0.01 / 4 * number, shares) for number in range(1, 5)]
    assert drift.find_drifted(comparisons, replace(PARAMS, alpha=0.01)) == ("q1",)
    assert drift.find_drifted(comparisons[:1], replace(PARAMS, alpha=0.001)) == ()


def history(pattern: str) -> list[BatchDrift]:
    """Batches that drifted (x) or not (-), the latest last."""
    return [BatchDrift(f"week-{week}", 10, (), ("mean",) * (sign == "x")) for week, sign in enumerate(pattern)]


@pytest.mark.parametrize(
    ("pattern", "last", "at_least", "expected"),
    [
        ("", 3, 1, False),
        ("x", 3, 1, True),
        ("x", 3, 2, False),
        ("xx", 3, 2, True),
        ("x-x", 3, 2, True),
        ("xx-", 3, 2, False),  # the latest did not
        ("xx--x", 3, 2, False),  # the others are too old
        ("xx-xx", 5, 5, False),
        ("xxxxx", 5, 5, True),
    ],
)
def test_a_retraining_needs_drift_in_the_latest_batch_and_in_enough_of_the_last(
    pattern: str, last: int, at_least: int, expected: bool
) -> None:
    params = replace(PARAMS, last=last, at_least=at_least)
    assert drift.asks_retraining(history(pattern), params) is expected


def test_results_are_the_same_after_a_round_trip_through_json(reference: Sample, others: Pair) -> None:
    comparisons = drift.compare(describe(others[0][:60], others[1][:60]), reference)
    again = drift.from_json(json.loads(json.dumps(drift.to_json(comparisons))))
    assert drift.to_json(again) == json.loads(json.dumps(drift.to_json(comparisons)))
    assert drift.find_drifted(again, PARAMS) == drift.find_drifted(comparisons, PARAMS)


def test_the_report_names_every_batch(tmp_path: Path, reference: Sample, others: Pair) -> None:
    images, labels = others[0][:200], others[1][:200]
    same, dimmed = (drift.compare(describe(each, labels), reference) for each in (images, images // 2))
    batches = [
        BatchDrift("a b|c.npz", 200, same, drift.find_drifted(same, PARAMS)),
        BatchDrift("dim.npz", 200, dimmed, drift.find_drifted(dimmed, PARAMS)),
    ]
    unreadable = {"torn.npz": "it is damaged"}
    compared = ComparedBatches(tuple(batches), {}, unreadable, "the training images", "no champion")
    write_report(tmp_path / "report.md", compared, "A sentence.", PARAMS)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    page = files["report.md"].decode()
    assert all(text in page for text in ("A sentence", "a b\\|c.npz", "dim.npz", "torn.npz", "it is damaged"))
    assert f"**{next(one.effect for one in dimmed if one.quantity == 'mean'):.3f}**" in page
    assert page.index("## dim.npz") < page.index("(latest-1.png)") < page.index("## a b") < page.index("(latest-2.png)")
    assert set(files) == {"report.md", "effects.png", "latest-1.png", "latest-2.png"}
    assert all(content.startswith(b"\x89PNG") for name, content in files.items() if name.endswith(".png"))
