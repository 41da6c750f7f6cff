"""Drift of batches of images from the training data, and the rule that asks for a retraining.

A statistic of SciPy compares each quantity: label shares, image features and the champion's confidence. A quantity has
drifted if its effect size reaches a threshold and the statistic is significant. The second condition prevents false
alarms in small batches. Significance alone is not enough: with enough images, any difference is significant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pipeline.data.drift_features import drift_features
from pipeline.data.features import Features
from pipeline.monitoring.params import MonitorParams

LABELS, CONFIDENCE = "labels", "confidence"
PREDICTED, OUTLIERS = "predicted", "outliers"  # of a server's traffic, which has no labels
BINS = 24  # of a drawn histogram
SHOWN_NAMES = 4  # batch names in a sentence


@dataclass(frozen=True)
class Sample:
    """Measured quantities of some images."""

    classes: Mapping[str, int]  # class name: number of images, in the classes' order
    values: Mapping[str, np.ndarray]  # quantity: float [n]; features, and `confidence` if a champion gave it

    @property
    def images(self) -> int:
        return sum(self.classes.values())


@dataclass(frozen=True)
class Shares:
    """Shares of images for a figure: per class, or between bin edges."""

    bins: Sequence[str] | Sequence[float]  # names [n], or edges [n + 1]
    batch: Sequence[float]  # [n], of the batch's images
    reference: Sequence[float]  # [n], of the reference's


@dataclass(frozen=True)
class Comparison:
    """Comparison of one quantity of a batch with the reference."""

    quantity: str
    statistic: str
    effect: float  # 0 to 1
    p_value: float
    shares: Shares


@dataclass(frozen=True)
class BatchDrift:
    """Result for one batch."""

    name: str
    images: int
    comparisons: tuple[Comparison, ...]
    drifted: tuple[str, ...]  # quantities


def describe_images(features: Features, classes: Sequence[str]) -> Sample:
    """Count the labels and collect the compared features of images."""
    return Sample(count_classes(features.label, classes), drift_features(features))


def count_classes(labels: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
    """Count images by class name. labels: integers [n], indices into `classes`."""
    return dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True))


def with_confidences(sample: Sample, confidences: np.ndarray | None) -> Sample:
    """Add a champion's largest probabilities, float64 [m], of the same images or of others of their kind."""
    return sample if confidences is None else replace(sample, values={**sample.values, CONFIDENCE: confidences})


def compare(batch: Sample, reference: Sample) -> tuple[Comparison, ...]:
    """Compare a batch with the reference in every quantity that both have."""
    shared = [name for name in batch.values if name in reference.values]
    return (
        compare_classes(LABELS, batch.classes, reference.classes),
        *(compare_values(name, batch.values[name], reference.values[name]) for name in shared),
    )


def find_drifted(comparisons: Sequence[Comparison], params: MonitorParams) -> tuple[str, ...]:
    """Find the quantities whose effect reaches the threshold and is significant.

    Bonferroni's correction makes `alpha` the chance of one false alarm over all quantities of a batch.
    """
    level = params.alpha / len(comparisons)
    return tuple(
        comparison.quantity
        for comparison in comparisons
        if comparison.effect >= threshold(comparison.quantity, params) and comparison.p_value <= level
    )


def threshold(quantity: str, params: MonitorParams) -> float:
    """Smallest effect at which a quantity may have drifted."""
    others = {CONFIDENCE: params.confidence_effect, OUTLIERS: params.outlier_effect}
    effects = {LABELS: params.label_effect, PREDICTED: params.label_effect, **others}
    return effects.get(quantity, params.feature_effect)


def count_drifted(batches: Sequence[BatchDrift], params: MonitorParams) -> int:
    """Count the drifted ones among the last batches. batches: sorted by name, the latest last."""
    return sum(bool(batch.drifted) for batch in batches[-params.last :])


def asks_retraining(batches: Sequence[BatchDrift], params: MonitorParams) -> bool:
    """Apply the rule: the latest batch and at least `params.at_least` of the last batches drifted."""
    latest_drifted = bool(batches and batches[-1].drifted)
    return latest_drifted and count_drifted(batches, params) >= params.at_least


def describe(batches: Sequence[BatchDrift], unreadable: Sequence[str], params: MonitorParams) -> str:
    """Summarize the drift in one or two sentences. batches: as for `count_drifted`; unreadable: names."""
    left_out = f" Left out, because unreadable: {list_names(unreadable)}." if unreadable else ""
    if not batches:
        return f"There is no batch to compare.{left_out}"
    latest = batches[-1]
    which = f"{latest.name}, the latest of {len(batches)} batches," if len(batches) > 1 else f"{latest.name}"
    count, seen = count_drifted(batches, params), min(params.last, len(batches))
    if not latest.drifted:
        return f"{which} has not drifted from the training data; {count} of the last {seen} drifted.{left_out}"
    effects = {comparison.quantity: comparison.effect for comparison in latest.comparisons}
    found = ", ".join(f"{quantity} {effects[quantity]:.2f}" for quantity in latest.drifted)
    asks = asks_retraining(batches, params)
    verdict = "a retraining is due" if asks else f"a retraining needs {params.at_least} of {params.last}"
    sentence = f"{which} has drifted from the training data ({found}). Of the last {seen}, {count} drifted: {verdict}."
    return sentence + left_out


def list_names(names: Sequence[str]) -> str:
    """Join batch names in one line, shortened if there are many."""
    rest = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def compare_classes(quantity: str, batch: Mapping[str, int], reference: Mapping[str, int]) -> Comparison:
    """Compare numbers of images by class: Pearson's chi-squared test; effect size: Jensen-Shannon distance (base 2).

    Source of the distance: D. M. Endres and J. E. Schindelin, "A new metric for probability distributions", IEEE
    Trans. Inf. Theory 49 (2003). Cramér's V would shrink with the batch: it counts all images, most of them from the
    reference.
    """
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import chi2_contingency

    counts = np.array([list(batch.values()), list(reference.values())])
    present = counts[:, counts.any(axis=0)]
    p_value = chi2_contingency(present, correction=False).pvalue if present.shape[1] > 1 else 1.0
    ours, theirs = (row / row.sum() for row in counts)
    shares = Shares(tuple(batch), ours.tolist(), theirs.tolist())
    distance = float(jensenshannon(ours, theirs, base=2))
    return Comparison(quantity, "Jensen-Shannon distance, chi-squared test", distance, float(p_value), shares)


def compare_values(quantity: str, batch: np.ndarray, reference: np.ndarray) -> Comparison:
    """Compare values by the two-sample Kolmogorov-Smirnov test.

    The effect size is its statistic D, the largest gap between the two distributions. The test of the confidence is
    one-sided: a confidence higher than usual, as on the champion's training images, is no drift.
    """
    from scipy.stats import ks_2samp

    # "greater" refers to the distribution functions: lower values give a greater distribution function.
    sided = "greater" if quantity == CONFIDENCE else "two-sided"
    result = ks_2samp(batch, reference, alternative=sided, method="asymp")
    edges = np.linspace(min(batch.min(), reference.min()), max(batch.max(), reference.max()), BINS + 1)
    ours, theirs = (np.histogram(values, edges)[0] / len(values) for values in (batch, reference))
    shares = Shares(edges.tolist(), ours.tolist(), theirs.tolist())
    name = "Kolmogorov-Smirnov D" + (", one-sided" if quantity == CONFIDENCE else "")
    return Comparison(quantity, name, float(result.statistic), float(result.pvalue), shares)


def to_json(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Convert comparisons to JSON for `from_json`."""
    return [asdict(comparison) for comparison in comparisons]


def from_json(content: Sequence[Mapping[str, Any]]) -> tuple[Comparison, ...]:
    """Convert the JSON of `to_json` back to comparisons."""
    return tuple(Comparison(**{**entry, "shares": Shares(**entry["shares"])}) for entry in content)
