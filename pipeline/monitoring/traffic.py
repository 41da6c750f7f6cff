"""Drift of the traffic of a server: compare the last windows of the traffic log with the training data.

The rule is that of the batches, with a window in place of a batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.traffic import FEEDBACK, TRAFFIC, read_labels
from pipeline.errors import ParamsError
from pipeline.events import record_event
from pipeline.files import atomic_directory, read_cached_json, write_json
from pipeline.monitoring import drift
from pipeline.monitoring.drift import OUTLIERS, PREDICTED, BatchDrift, Comparison, Shares, count_classes
from pipeline.monitoring.params import MonitorParams
from pipeline.monitoring.run import DIGITS, LOCK_WAIT_SECONDS
from pipeline.monitoring.traffic_reference import ModelReference, Reference, build_reference
from pipeline.monitoring.traffic_windows import UNLABELLED, Rows, find_serving_model, list_windows, read_rows
from pipeline.notices.send import notify
from pipeline.params import PARAMS_FILE, load_params
from pipeline.workspace import STATE, lock, main_repository

REPORTS, REPORT, NUMBERS = Path("reports/traffic"), "report.md", "report.json"
NOTIFIED = STATE / "monitoring/traffic-told.json"  # the model and the quantities of the drift that is known already
UNITS = {"m": "minutes", "h": "hours", "d": "days"}
POINTS = 24  # of the accuracy over time


@dataclass(frozen=True)
class AccuracyOfWindow:
    """The accuracy in a span of time: an estimate for all images, and the share that is right of those with a label."""

    since: datetime
    until: datetime
    images: int
    estimated: float | None  # None without images
    labelled: int
    right: int  # of the labelled ones


@dataclass(frozen=True)
class TrafficDrift:
    """Result of a comparison of the traffic with the training data."""

    windows: tuple[BatchDrift, ...]  # those with traffic, the latest last
    latest_is_empty: bool  # nothing was answered in the latest window
    accuracies: tuple[AccuracyOfWindow, ...]  # of the windows, in their order
    course: tuple[AccuracyOfWindow, ...]  # of `POINTS` spans of equal length, the latest last
    version: str | None  # of the model that answered last; None without traffic
    reference: Reference | None  # None without traffic
    other_models: int  # images that earlier models answered: they are left out
    sentence: str
    drifted: bool  # the latest window did
    asks_retraining: bool
    evidence: Mapping[str, Any]  # small, JSON-serializable
    report: Path


def parse_length(text: str) -> timedelta:
    """Parse the length of a window: a number with `m`, `h` or `d`, such as `24h`.

    Raises:
        ParamsError: it is something else.
    """
    number, unit = text[:-1], UNITS.get(text[-1:])
    if unit is None or not number.isdecimal() or not 0 < int(number) <= 10**5:
        raise ParamsError(f"{text!r} is not a length of time", expected="a number with m, h or d, such as 24h or 7d")
    return timedelta(**{unit: int(number)})


def monitor_traffic(workspace: Path, length: timedelta, until: datetime | None = None) -> TrafficDrift:
    """Compare the last windows of the traffic with the training data, write a report, and notify about new drift.

    Only the answers of the model that answered last count.

    Args:
        length: of a window. `monitor.last` of them are compared.
        until: end of the latest window; None: now.

    Raises:
        DataError: there is traffic, but no training data to compare it with, or a file of the log is damaged.
        TrackingError: the registry cannot be used.
        WorkspaceError: another monitor still runs here after ten minutes of waiting.
    """
    from pipeline.monitoring.traffic_report import write_report  # matplotlib takes a second to import

    params = load_params(workspace / PARAMS_FILE).section(MonitorParams)
    with lock("monitoring", wait=LOCK_WAIT_SECONDS, remedy="wait for it, or end that process", root=workspace):
        found = compare_traffic(workspace, length, until or datetime.now(UTC), params)
        with atomic_directory(workspace / REPORTS) as directory:
            write_report(directory, found, params)
        _notify_about_new_drift(workspace, found)
    return found


def compare_traffic(workspace: Path, length: timedelta, until: datetime, params: MonitorParams) -> TrafficDrift:
    """Do what `monitor_traffic` does, without a report or a notice."""
    root = main_repository(workspace)
    spans = list_windows(until, length, params.last)
    served = find_serving_model(root / TRAFFIC, spans[0][0], until)
    if served is None:
        return _without_traffic(workspace, spans[0][0])
    version, sha256 = served
    reference = build_reference(workspace, version, sha256)
    labels = read_labels(root / FEEDBACK)
    rows, others = read_rows(root / TRAFFIC, spans[0][0], until, sha256, reference.model, labels)
    windows = []
    for since, end in spans:
        inside = rows.between(since, end)
        if len(inside):
            comparisons = compare_window(inside, reference)
            name = f"until {end.astimezone(UTC):%Y-%m-%d %H:%M}"
            windows.append(BatchDrift(name, len(inside), comparisons, drift.find_drifted(comparisons, params)))
    accuracies = tuple(_measure_accuracy(rows, *span, reference.model) for span in spans)
    course = tuple(
        _measure_accuracy(rows, *span, reference.model)
        for span in list_windows(until, length * params.last / POINTS, POINTS)
    )
    latest_is_empty = not accuracies[-1].images
    drifted = not latest_is_empty and bool(windows[-1].drifted)
    asks = drifted and drift.asks_retraining(windows, params)
    return TrafficDrift(
        windows=tuple(windows),
        latest_is_empty=latest_is_empty,
        accuracies=accuracies,
        course=course,
        version=version,
        reference=reference,
        other_models=others,
        sentence=_describe(windows, accuracies[-1], reference, length, params),
        drifted=drifted,
        asks_retraining=asks,
        evidence={
            "version": version,
            "sha256": sha256,
            "images": accuracies[-1].images,
            "effects": _round_effects(windows[-1]) if drifted else {},
            "estimated_accuracy": accuracies[-1].estimated,
            "report": str(REPORTS / REPORT),
        },
        report=workspace / REPORTS / REPORT,
    )


def compare_window(rows: Rows, reference: Reference) -> tuple[Comparison, ...]:
    """Compare the answers of a window with the reference: features, predicted classes, confidence and outliers."""
    features = [name for name in rows.values if name in reference.features.values]
    found = [drift.compare_values(name, rows.values[name], reference.features.values[name]) for name in features]
    if not (model := reference.model):
        return tuple(found)
    predicted = count_classes(rows.predicted, model.classes)
    return (
        drift.compare_classes(PREDICTED, predicted, model.predicted),
        *found,
        drift.compare_values(drift.CONFIDENCE, rows.confidences, model.confidences),
        compare_outliers(rows.outlier_scores, model),
    )


def compare_outliers(scores: np.ndarray, model: ModelReference) -> Comparison:
    """Compare the share of outliers with that of the validation images; effect size: the difference of the shares.

    Args:
        scores: float64 [n], outlier scores.
    """
    from scipy.stats import fisher_exact

    threshold, usual = model.outlier_threshold, model.outlier_scores
    ours, theirs = int((scores > threshold).sum()), int((usual > threshold).sum())
    table = [[ours, len(scores) - ours], [theirs, len(usual) - theirs]]
    p_value = float(fisher_exact(table, alternative="greater").pvalue)
    logarithms = [np.log10(np.maximum(values, 1e-3)) for values in (scores, usual)]
    edges = np.linspace(min(map(np.min, logarithms)), max(map(np.max, logarithms)), drift.BINS + 1)
    shares = [np.histogram(values, edges)[0] / len(values) for values in logarithms]
    return Comparison(
        quantity=OUTLIERS,
        statistic="difference of the shares, Fisher's exact test, one-sided",
        effect=max(0.0, ours / len(scores) - theirs / len(usual)),
        p_value=p_value,
        shares=Shares(edges.tolist(), shares[0].tolist(), shares[1].tolist()),
    )


def _measure_accuracy(rows: Rows, since: datetime, until: datetime, model: ModelReference | None) -> AccuracyOfWindow:
    inside = rows.between(since, until)
    labelled = inside.answers != UNLABELLED
    right = int((inside.predicted[labelled] == inside.answers[labelled]).sum())
    estimated = model.accuracy(inside.confidences) if model and len(inside) else None
    return AccuracyOfWindow(since, until, len(inside), estimated, int(labelled.sum()), right)


def _without_traffic(workspace: Path, since: datetime) -> TrafficDrift:
    sentence = f"No answer is in the traffic log since {since.astimezone(UTC):%Y-%m-%d %H:%M} UTC."
    return TrafficDrift((), True, (), (), None, None, 0, sentence, False, False, {}, workspace / REPORTS / REPORT)


def _describe(
    windows: list[BatchDrift],
    latest: AccuracyOfWindow,
    reference: Reference,
    length: timedelta,
    params: MonitorParams,
) -> str:
    """Summarize the drift in a few sentences."""
    span = f"the last {format_length(length)}"
    if not latest.images:
        return f"The model that answered last has answered nothing in {span}."
    count, seen = drift.count_drifted(windows, params), len(windows)
    images = f"The traffic of {span} ({latest.images:,} images)"
    if windows[-1].drifted:
        found = ", ".join(f"{quantity} {effect:.2f}" for quantity, effect in _round_effects(windows[-1]).items())
        asks = drift.asks_retraining(windows, params)
        verdict = "a retraining is due" if asks else f"a retraining needs {params.at_least} of {params.last}"
        sentence = (
            f"{images} has drifted from the training data ({found}). Of {seen} windows, {count} drifted: {verdict}."
        )
    else:
        sentence = f"{images} has not drifted from the training data."
    if latest.estimated is not None and reference.model:
        usual = reference.model.accuracy.accuracy
        sentence += f" Estimated accuracy: {latest.estimated:.3f} (validation images: {usual:.3f})."
    if latest.labelled:
        sentence += f" Of {latest.labelled:,} images with a label, {latest.right:,} were right."
    return sentence


def format_length(length: timedelta) -> str:
    """Format a length of time: `24 hours`."""
    seconds = int(length.total_seconds())
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds % size == 0 and (seconds > size or unit == "minutes"):
            return f"{seconds // size} {unit}" if unit != "days" or seconds > 2 * size else f"{seconds // 3600} hours"
    return f"{seconds} seconds"


def _round_effects(window: BatchDrift) -> dict[str, float]:
    return {one.quantity: round(one.effect, DIGITS) for one in window.comparisons if one.quantity in window.drifted}


def _notify_about_new_drift(workspace: Path, found: TrafficDrift) -> None:
    """Notify about the quantities of the latest window that had not drifted at the last look, for the same model."""
    if found.latest_is_empty:
        return
    file = workspace / NOTIFIED
    known = read_cached_json(file) or {}
    drifted = list(found.windows[-1].drifted)
    former = known.get("drifted", []) if known.get("sha256") == found.evidence["sha256"] else []
    if set(drifted) - set(former):
        notify("drift", "drift in the traffic", found.sentence, {"report": str(REPORTS / REPORT)})
        assert found.reference, "there is traffic"
        record_event(
            "drift.traffic",
            dict(found.evidence),
            dataset=found.reference.dataset.name,
            version=found.version,
            root=main_repository(workspace),
        )
    write_json(file, {"sha256": found.evidence["sha256"], "drifted": drifted})
