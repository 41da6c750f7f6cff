"""Report of the drift monitor: a Markdown page and its figures."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from pipeline.evaluation.figures import BLUE, RED, figure
from pipeline.evaluation.markdown import escape, table
from pipeline.monitoring.comparison import ComparedBatches
from pipeline.monitoring.drift import LABELS, PREDICTED, BatchDrift, Comparison, threshold
from pipeline.monitoring.params import MonitorParams

EFFECTS = "effects.png"
SHOWN_BATCHES = 40  # the latest batches, in the figure of effects
MOST_LABELS = 16  # tick labels below a panel
PANELS = 4  # per row of a batch's figure
QUANTITIES = {
    "labels": "share of each class",
    "predicted": "share of each class that the model answers",
    "mean": "mean pixel of an image, 0 to 1",
    "std": "standard deviation of an image's pixels",
    "ink": "share of an image's pixels above 0",
    "row": "row of an image's centre of mass, in pixels",
    "column": "column of an image's centre of mass, in pixels",
    "red_green": "an image's mean red less green, -1 to 1",
    "yellow_blue": "an image's mean yellow less blue, -1 to 1",
    "confidence": "the model's largest probability for an image",
    "outliers": "share of images that look like nothing trained on; in the figure: log10 of the distance",
}


def write_report(page: Path, compared: ComparedBatches, sentence: str, params: MonitorParams) -> None:
    """Write the page and its figures: all effects, and the last batches' distributions. They contain no times."""
    parts = [
        "# Drift of the batches",
        escape(sentence),
        f"Compared with {escape(compared.reference)}. Confidence: {escape(compared.champion)}.",
    ]
    if compared.unreadable:
        rows = [(escape(name), escape(why)) for name, why in compared.unreadable.items()]
        parts += ["## Left out", table(["batch", "why it cannot be read"], rows)]
    if compared.batches:
        draw_effects(page.with_name(EFFECTS), compared.batches[-SHOWN_BATCHES:], params)
        parts += ["## Effect sizes", tabulate_effects(compared.batches), f"![effect sizes]({EFFECTS})"]
        parts += [explain_quantities(compared.batches[-1], params)]
    for place, batch in enumerate(reversed(compared.batches[-params.last :]), start=1):
        name = f"latest-{place}.png"  # batch names may contain any character
        draw_batch(page.with_name(name), batch)
        drifted = f"drifted: {', '.join(batch.drifted)}" if batch.drifted else "no drift"
        parts += [
            f"## {escape(batch.name)}",
            f"{batch.images:,} images; {drifted}.",
            f"![distributions]({name})",
        ]
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def draw_effects(path: Path, batches: Sequence[BatchDrift], params: MonitorParams) -> None:
    """Draw the effect of each quantity (column) in each batch (row). Near the threshold, the colour is stronger."""
    quantities = list_quantities(batches)
    width, height = 2.6 + 0.85 * len(quantities), 0.9 + 0.32 * len(batches)
    with figure(path, width, height) as canvas:
        axes = canvas.add_axes((2.4 / width, 0.2 / height, (width - 2.6) / width, (height - 0.9) / height))
        canvas.suptitle("Effect sizes; framed: drifted", x=0.02, y=1 - 0.12 / height, va="top", ha="left", fontsize=11)
        for row, batch in enumerate(batches):
            for comparison in batch.comparisons:
                column = quantities.index(comparison.quantity)
                limit = threshold(comparison.quantity, params)
                ratio = comparison.effect / limit if limit else math.inf
                drifted = comparison.quantity in batch.drifted
                colour, alpha = RED if drifted else BLUE, 0.75 * min(ratio / 2, 1)
                axes.add_patch(_rectangle(column, row, facecolor=colour, alpha=alpha, linewidth=0))
                if drifted:
                    axes.add_patch(_rectangle(column, row, fill=False, edgecolor="0.1", linewidth=1.6))
                weight = "bold" if drifted else "normal"
                axes.text(column, row, f"{comparison.effect:.2f}", ha="center", va="center", fontweight=weight)
        axes.set(xlim=(-0.5, len(quantities) - 0.5), ylim=(len(batches) - 0.5, -0.5))
        axes.set_xticks(range(len(quantities)), quantities)
        axes.set_yticks(range(len(batches)), [_shorten(batch.name) for batch in batches])
        axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(False)


def draw_batch(path: Path, batch: BatchDrift) -> None:
    """Draw the distributions of a batch as lines over those of the reference in grey."""
    rows = math.ceil(len(batch.comparisons) / PANELS)
    with figure(path, 2.7 * PANELS, 2.5 * rows + 0.4) as canvas:
        title = f"{_shorten(batch.name)}: {batch.images:,} images (line), and the training data (grey)"
        canvas.suptitle(title, x=0.02, ha="left", fontweight="bold", fontsize=11)
        panels = canvas.subplots(rows, PANELS, squeeze=False).flat
        for comparison, axes in zip(batch.comparisons, panels, strict=False):  # in this order, zip drops no panel
            colour = RED if comparison.quantity in batch.drifted else BLUE
            _draw_shares(axes, comparison, colour)
        for axes in panels:  # unused panels
            axes.axis("off")
        canvas.subplots_adjust(left=0.05, right=0.99, bottom=0.09, top=0.85, wspace=0.3, hspace=0.55)


def list_quantities(batches: Sequence[BatchDrift]) -> list[str]:
    """List the quantities compared for any batch, in a fixed order."""
    compared = {comparison.quantity for batch in batches for comparison in batch.comparisons}
    return [quantity for quantity in QUANTITIES if quantity in compared]


def tabulate_effects(batches: Sequence[BatchDrift], name: str = "batch") -> str:
    """Tabulate the effects, the latest batch first; in bold: drifted. name: title of the first column."""
    quantities = list_quantities(batches)
    rows = []
    for batch in reversed(batches):
        cells = {comparison.quantity: _cell(comparison, batch) for comparison in batch.comparisons}
        rows.append((escape(batch.name), f"{batch.images:,}", *(cells.get(quantity, "") for quantity in quantities)))
    return table([name, "images", *quantities], rows, numbers=len(quantities) + 1)


def explain_quantities(batch: BatchDrift, params: MonitorParams) -> str:
    """Explain the quantities and statistics of a batch."""
    rows = [
        (one.quantity, QUANTITIES[one.quantity], one.statistic, f"{threshold(one.quantity, params):g}")
        for one in batch.comparisons
    ]
    rule = (
        "In bold, and framed: drifted. The effect reaches the threshold, and would do so by chance in at most "
        f"{params.alpha:.2%} of all batches of the same kind, over all quantities."
    )
    return f"{rule}\n\n{table(['quantity', 'what it is', 'statistic', 'threshold'], rows, numbers=1)}"


def _draw_shares(panel: Any, comparison: Comparison, colour: str) -> None:
    shares = comparison.shares
    edges = (
        [float(edge) for edge in range(len(shares.batch) + 1)]
        if comparison.quantity in (LABELS, PREDICTED)
        else shares.bins
    )
    panel.stairs(shares.reference, edges, fill=True, color="0.82")
    panel.stairs(shares.batch, edges, color=colour, linewidth=1.6)
    panel.yaxis.set_major_locator(MaxNLocator(3))  # few ticks: text is the slowest part of a drawing
    panel.xaxis.set_major_locator(MaxNLocator(4))
    panel.set_title(f"{comparison.quantity}: {comparison.effect:.3f}", color=colour, fontsize=9)
    if comparison.quantity in (LABELS, PREDICTED):
        places = range(0, len(shares.bins), 1 + len(shares.bins) // MOST_LABELS)
        panel.set_xticks([place + 0.5 for place in places], [str(place) for place in places])
        panel.set_xlabel("label", fontsize=8)
    panel.tick_params(labelsize=7)
    panel.set_ylim(bottom=0)


def _cell(comparison: Comparison, batch: BatchDrift) -> str:
    text = f"{comparison.effect:.3f}"
    return f"**{text}**" if comparison.quantity in batch.drifted else text


def _rectangle(column: int, row: int, **style: Any) -> Rectangle:
    return Rectangle((column - 0.47, row - 0.44), 0.94, 0.88, **style)


def _shorten(name: str) -> str:
    return name if len(name) <= 30 else f"{name[:14]}…{name[-14:]}"
