"""Suggest a preset and its settings from the number of training images, their size and their balance.

docs/training.md describes how the rule was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.table import Dataset

STEPS = 450  # of a training: with more, the validation accuracy of 200 to 5,000 images did not rise
SMALLEST_BATCH, LARGEST_BATCH = 32, 256  # the presets have 256
BATCHES = 32  # in an epoch, if the size of a batch allows it
MOST_EPOCHS = 60
LEAST_EPOCHS = 6  # the preset's
UNBALANCED = 5  # largest by smallest class: from here on, class weights. They help at 10, not at 3
# Widths of the cnn by the smaller side of an image: each block halves the image, and the last one covers an object.
WIDTHS = ((96, [32, 64, 64, 128]), (48, [32, 64, 128]))


@dataclass(frozen=True)
class Suggestion:
    """Keys of `train` in params.yaml, and why they have these values."""

    train: dict[str, Any]  # None: the preset's value
    reason: str  # one sentence


def suggest_training(dataset: Dataset, counts: Sequence[int]) -> Suggestion:
    """Suggest how to train on a dataset.

    Args:
        counts: training images of each class, with those that `split` takes for validation.
    """
    images, side = sum(counts), min(dataset.height, dataset.width)
    batch = LARGEST_BATCH
    while batch > SMALLEST_BATCH and images < batch * BATCHES:
        batch //= 2
    epochs = min(max(round(STEPS * batch / max(images, 1)), LEAST_EPOCHS), MOST_EPOCHS)
    train: dict[str, Any] = {  # all that the rule sets: values for a dataset that was imported earlier must not stay
        "preset": "cnn",
        "batch_size": batch if batch < LARGEST_BATCH else None,
        "epochs": epochs if epochs > LEAST_EPOCHS else None,
        "widths": next((widths for least, widths in WIDTHS if side >= least), None),
        "class_weights": "none",
    }
    reason = f"{images:,} training images of {dataset.height} x {dataset.width} pixels: cnn, {epochs} epochs"
    reason += f" in batches of {batch}"
    if max(counts) >= UNBALANCED * min(counts):
        train["class_weights"] = "balanced"
        reason += f", and class weights, because classes have {min(counts):,} to {max(counts):,} images"
    return Suggestion(train, reason)
