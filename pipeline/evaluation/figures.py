"""Figures as PNG files: equal bytes for equal data, independent of the user's matplotlib settings."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from pipeline.evaluation.calibration import Bin, expected_calibration_error

STYLE: dict[Any, Any] = {
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "font.size": 9,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "0.4",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": "0.2",
    "ytick.color": "0.2",
    "text.parse_math": False,  # class names may contain dollar signs
}
BLUE, RED = "#5b94c6", "#c8364a"
MOST_CLASSES = 20  # in a confusion matrix, so that it can be read
GALLERY_COLUMNS = 6
FEWEST_IMAGES = 10  # in a bin of the reliability diagram; the accuracy of fewer is noise


@dataclass(frozen=True)
class Mistake:
    """An image with a wrong prediction."""

    image: np.ndarray  # uint8 [height, width], or [height, width, 3] in colour
    actual: str
    predicted: str
    confidence: float  # probability given to the predicted class


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of this size in inches, and save it to `path` at the end of the block."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        canvas = Figure(figsize=(width, height))
        yield canvas
        canvas.savefig(path, format="png", metadata={"Software": None})


def draw_confusion(path: Path, confusion: np.ndarray, classes: Sequence[str]) -> None:
    """Draw the confusion matrix: shares of each true class (row) by predicted class (column), and numbers of images.

    If there are more than `MOST_CLASSES`, the others are added up in a last row and column.

    Args:
        confusion: int [classes, classes], images by true and predicted class.
    """
    title = "Confusion: share of the actual class, number of images"
    if len(classes) > MOST_CLASSES:
        title = f"The {MOST_CLASSES} most confused of {len(classes):,} classes: share of the actual class, images"
        shown = find_confused_classes(confusion, MOST_CLASSES)
        confusion, classes = _add_up_others(confusion, shown), [*(classes[label] for label in shown), "all others"]
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = max(3.6, 0.6 * len(classes))
    left, below, above, right = 1.75, 1.25, 0.45, 0.15
    width, height = left + side + right, below + side + above
    with figure(path, width, height) as canvas:
        axes = canvas.add_axes((left / width, below / height, side / width, side / height))
        canvas.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold")
        # The square root makes a confusion of a few per cent visible beside a diagonal near one.
        axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
        names = [textwrap.fill(name, 18) for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.set_xticks(np.arange(1, len(names)) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, len(names)) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted", ylabel="actual")
        for row, column in np.argwhere(confusion):
            colour = "white" if share[row, column] > 0.35 else "0.15"
            percent, images = f"{share[row, column]:.1%}", f"{confusion[row, column]:,}"
            axes.text(column, row + 0.06, percent, ha="center", va="bottom", color=colour, fontsize=8)
            axes.text(column, row + 0.12, images, ha="center", va="top", color=colour, fontsize=6.5)


def find_confused_classes(confusion: np.ndarray, count: int) -> list[int]:
    """Return the labels of the classes in the most frequent confusions, sorted.

    Args:
        confusion: int [classes, classes], images by true and predicted class.
        count: number of labels.
    """
    wrong = confusion * (1 - np.eye(len(confusion), dtype=int))
    pairs = np.stack(np.unravel_index(np.argsort(-(wrong + wrong.T), axis=None, kind="stable"), wrong.shape), axis=1)
    ranked = dict.fromkeys(pairs.ravel().tolist())  # without repetitions, in order
    return sorted(list(ranked)[:count])


def _add_up_others(confusion: np.ndarray, shown: Sequence[int]) -> np.ndarray:
    """Return the rows and columns of the shown classes, with a last row and column for the sum of the others."""
    group = np.full(len(confusion), len(shown))
    group[list(shown)] = np.arange(len(shown))
    summed = np.zeros((len(shown) + 1, len(shown) + 1), int)
    np.add.at(summed, (group[:, None], group[None, :]), confusion)
    return summed


def draw_reliability(path: Path, table: Sequence[Bin]) -> None:
    """Draw accuracy against confidence for each bin, and the share of images in each bin."""
    populated = [row for row in table if row.images >= FEWEST_IMAGES] or table
    accuracy, confidence = [row.accuracy for row in populated], [row.confidence for row in populated]
    images = np.array([row.images for row in table])

    def place(rows: Sequence[Bin]) -> dict[str, Any]:
        return {"x": [row.low for row in rows], "width": [row.high - row.low for row in rows], "align": "edge"}

    with figure(path, 5.2, 5.6) as canvas:
        upper, lower = canvas.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        canvas.subplots_adjust(left=0.12, right=0.97, top=0.94, bottom=0.09, hspace=0.1)
        upper.bar(height=accuracy, label="accuracy", color=BLUE, edgecolor="white", **place(populated))
        gap: dict[str, Any] = {"height": np.subtract(confidence, accuracy), "bottom": accuracy}
        upper.bar(**gap, label="to mean confidence", color="none", edgecolor=RED, hatch="////", **place(populated))
        upper.plot([0, 1], [0, 1], "--", color="0.45", linewidth=1, label="perfect calibration")
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title="Reliability: are 80% right of those 80% sure?")
        error = f"expected calibration error {expected_calibration_error(table):.3f}"
        upper.legend(loc="upper left", title=error, alignment="left", edgecolor="none")
        lower.bar(height=images / images.sum(), color="0.55", edgecolor="white", **place(table))
        lower.set(xlabel="confidence", ylabel="share of images")


def draw_gallery(path: Path, mistakes: Sequence[Mistake]) -> None:
    """Draw mistakes in the given order, with their true class, predicted class and confidence."""
    title = "Most confident mistakes: actual → predicted, probability" if mistakes else "No mistakes"
    draw_images(path, title, [mistake.image for mistake in mistakes], [_caption(mistake) for mistake in mistakes])


def draw_saliency(path: Path, mistakes: Sequence[Mistake], saliency: Sequence[np.ndarray]) -> None:
    """Draw mistakes, and in red the pixels that spoke for the predicted class.

    Args:
        saliency: of each mistake, float [height, width], by `saliency.explain`.
    """
    title = "Pixels that spoke for the wrong class: actual → predicted, probability" if mistakes else "No mistakes"
    images = [mark_pixels(mistake.image, marks) for mistake, marks in zip(mistakes, saliency, strict=True)]
    draw_images(path, title, images, [_caption(mistake) for mistake in mistakes])


def mark_pixels(image: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    """Blend red into an image where the saliency is positive: uint8 [height, width, 3]. A grey image is negated.

    Args:
        image: uint8 [height, width], or [height, width, 3] in colour.
        saliency: float [height, width].
    """
    shown = image if image.ndim == 3 else 255 - np.repeat(image[..., None], 3, axis=2)
    share = 0.8 * np.maximum(saliency, 0) / max(float(saliency.max()), 1e-9)
    red = np.array([int(RED[place : place + 2], 16) for place in (1, 3, 5)])
    blended = shown + share[..., None] * (red - shown.astype(float))
    return blended.round().astype(np.uint8)


def draw_images(path: Path, title: str, images: Sequence[np.ndarray], captions: Sequence[str]) -> None:
    """Draw images in rows, each below a caption of up to three lines. Grey images are drawn in negative.

    Args:
        images: each uint8 [height, width], or [height, width, 3] in colour.
    """
    side, gap, caption, heading = 1.15, 0.15, 0.55, 0.4  # inches, as are the coordinates below
    rows = max(1, math.ceil(len(images) / GALLERY_COLUMNS))
    width, height = GALLERY_COLUMNS * (side + gap), rows * (side + caption) + gap
    with figure(path, width, height + heading) as canvas:
        canvas.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold")
        # All images share one pair of axes: separate axes would take five times as long to draw.
        axes = canvas.add_axes((0, 0, 1, height / (height + heading)))
        for place, (image, text) in enumerate(zip(images, captions, strict=True)):
            row, column = divmod(place, GALLERY_COLUMNS)
            centre, top = (column + 0.5) * (side + gap), row * (side + caption) + caption
            half_width = side / 2 * min(1, image.shape[1] / image.shape[0])
            bottom = top + side * min(1, image.shape[0] / image.shape[1])
            extent = (centre - half_width, centre + half_width, bottom, top)
            axes.imshow(image, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest", extent=extent)
            axes.text(centre, top - 0.03, text, ha="center", va="bottom", fontsize=7.5)
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")


def _caption(mistake: Mistake) -> str:
    return f"{_short(mistake.actual)}\n→ {_short(mistake.predicted)}\n{mistake.confidence:.3f}"


def _short(name: str) -> str:
    return textwrap.shorten(name, 20, placeholder="…")
