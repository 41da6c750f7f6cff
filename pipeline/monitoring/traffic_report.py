"""Report about the traffic: a Markdown page with figures, and the same numbers as JSON."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.evaluation.figures import BLUE, RED, figure
from pipeline.evaluation.markdown import escape, table
from pipeline.evaluation.metrics import wilson_interval
from pipeline.files import write_json
from pipeline.monitoring.params import MonitorParams
from pipeline.monitoring.report import EFFECTS, draw_batch, draw_effects, explain_quantities, tabulate_effects
from pipeline.monitoring.traffic import NUMBERS, REPORT, AccuracyOfWindow, TrafficDrift

ACCURACY = "accuracy.png"
FEWEST_IMAGES = 20  # in a span of the figure; the accuracy of fewer is noise


def write_report(directory: Path, found: TrafficDrift, params: MonitorParams) -> None:
    """Write the page, its figures and the JSON file into a directory."""
    write_json(directory / NUMBERS, describe(found))
    parts = ["# Drift of the traffic", escape(found.sentence)]
    if found.reference:
        parts.append(f"Compared with {escape(found.reference.description)}.")
    if found.other_models:
        parts.append(
            f"Left out: {found.other_models:,} images that other models than version {found.version} answered."
        )
    if found.windows:
        draw_effects(directory / EFFECTS, found.windows, params)
        parts += ["## Effect sizes", tabulate_effects(found.windows, "window (UTC)"), f"![effect sizes]({EFFECTS})"]
        parts.append(explain_quantities(found.windows[-1], params))
    if found.reference and found.reference.model:
        draw_accuracy(directory / ACCURACY, found)
        parts += ["## Accuracy", _tabulate_accuracy(found.accuracies), f"![accuracy over time]({ACCURACY})"]
        parts.append(_explain_accuracy(found))
    for place, window in enumerate(reversed(found.windows), start=1):
        draw_batch(directory / f"latest-{place}.png", window)
        drifted = f"drifted: {', '.join(window.drifted)}" if window.drifted else "no drift"
        parts += [f"## {escape(window.name)}", f"{window.images:,} images; {drifted}."]
        parts.append(f"![distributions](latest-{place}.png)")
    (directory / REPORT).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def describe(found: TrafficDrift) -> dict[str, Any]:
    """Describe the result for programs, without the distributions, which the report draws."""
    model = found.reference.model if found.reference else None
    return {
        "drifted": found.drifted,
        "asks_retraining": found.asks_retraining,
        "sentence": found.sentence,
        "version": found.version,
        "reference": found.reference.description if found.reference else None,
        "images_of_other_models": found.other_models,
        "validation_accuracy": model.accuracy.accuracy if model else None,
        "windows": [
            {
                "window": window.name,
                "images": window.images,
                "drifted": list(window.drifted),
                "quantities": {
                    one.quantity: {"statistic": one.statistic, "effect": one.effect, "p_value": one.p_value}
                    for one in window.comparisons
                },
            }
            for window in found.windows
        ],
        "accuracy": [_describe_accuracy(one) for one in found.accuracies],
        "accuracy_over_time": [_describe_accuracy(one) for one in found.course],
    }


def draw_accuracy(path: Path, found: TrafficDrift) -> None:
    """Draw the accuracy over time: the estimate, the labelled images with their interval, and the validation images."""
    assert found.reference, "there is traffic"
    assert found.reference.model, "without a model there is no estimate"
    estimates = [span for span in found.course if span.estimated is not None and span.images >= FEWEST_IMAGES]
    labelled = [span for span in found.course if span.labelled]
    with figure(path, 7.5, 3.2) as canvas:
        axes = canvas.add_axes((0.08, 0.2, 0.86, 0.68))
        axes.axhline(found.reference.model.accuracy.accuracy, color="0.5", linestyle="--", linewidth=1)
        axes.plot(*_points(estimates, [span.estimated for span in estimates]), color=BLUE, marker="o", markersize=3)
        shares = [span.right / span.labelled for span in labelled]
        intervals = [wilson_interval(span.right, span.labelled) for span in labelled]
        below = [share - low for share, (low, _) in zip(shares, intervals, strict=True)]
        above = [high - share for share, (_, high) in zip(shares, intervals, strict=True)]
        axes.errorbar(*_points(labelled, shares), yerr=[below, above], color=RED, fmt="s", markersize=4, capsize=2)
        axes.set(ylim=(0, 1.02), xlim=(_number(found.course[0].since), _number(found.course[-1].until)))
        axes.set_title(
            "accuracy: estimate (line), images with a label (squares, 95 %), validation (dashed)", fontsize=9
        )
        ticks = [*(span.since for span in found.course[::6]), found.course[-1].until]
        axes.set_xticks([_number(tick) for tick in ticks], [f"{tick:%m-%d %H:%M}" for tick in ticks], fontsize=8)
        axes.set_xlabel("UTC", fontsize=8)


def _points(spans: Sequence[AccuracyOfWindow], values: Sequence[float | None]) -> tuple[list[float], list[Any]]:
    return [(_number(span.since) + _number(span.until)) / 2 for span in spans], list(values)


def _number(time: datetime) -> float:
    return time.astimezone(UTC).timestamp()


def _describe_accuracy(span: AccuracyOfWindow) -> dict[str, Any]:
    return {
        "since": span.since.astimezone(UTC).isoformat(timespec="seconds"),
        "until": span.until.astimezone(UTC).isoformat(timespec="seconds"),
        "images": span.images,
        "estimated": span.estimated,
        "labelled": span.labelled,
        "right": span.right,
    }


def _tabulate_accuracy(spans: Sequence[AccuracyOfWindow]) -> str:
    rows = []
    for span in reversed(spans):
        low, high = wilson_interval(span.right, span.labelled) if span.labelled else (0.0, 0.0)
        share = f"{span.right / span.labelled:.3f} ({low:.3f} to {high:.3f})" if span.labelled else ""
        estimated = "" if span.estimated is None else f"{span.estimated:.3f}"
        until = f"until {span.until.astimezone(UTC):%Y-%m-%d %H:%M}"
        rows.append((until, f"{span.images:,}", estimated, f"{span.labelled:,}", share))
    return table(["window (UTC)", "images", "estimated", "with a label", "right of these (95 %)"], rows, numbers=4)


def _explain_accuracy(found: TrafficDrift) -> str:
    assert found.reference, "there is traffic"
    assert found.reference.model, "without a model there is no estimate"
    accuracy = found.reference.model.accuracy
    text = (
        "The estimate needs no labels: Average Thresholded Confidence (Garg et al., ICLR 2022), fitted to the"
        f" validation images, where the accuracy is {accuracy.accuracy:.3f}. It holds for images of the known classes."
    )
    if accuracy.check:
        estimate, actual = accuracy.check
        text += f" Fitted to one half of them, it estimates {estimate:.3f} for the other, where {actual:.3f} are right."
    return text
