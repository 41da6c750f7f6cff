"""Comparison of a model's int8 file with `model.tflite` on the test images. No decision depends on it."""

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.evaluation.comparison import compare
from pipeline.evaluation.predictions import Predictions

DIGITS = 6


def measure_quantized(answers: Predictions, probabilities: np.ndarray, *, size: int, float_size: int) -> dict[str, Any]:
    """Return the figures of an int8 file for `metrics.json`.

    Args:
        answers: of `model.tflite`.
        probabilities: of the int8 file for the same images, float [n, classes].
        size: of the int8 file in bytes.
        float_size: of `model.tflite` in bytes.
    """
    quantized = replace(answers, probabilities=probabilities)
    pairs = compare(answers, quantized).overall
    low, high = pairs.interval()
    shares = {
        "accuracy": pairs.challenger_right,
        "difference": pairs.difference,
        "difference_low": low,
        "difference_high": high,
        "other_top_class": float((answers.predicted != quantized.predicted).mean()),
    }
    return {name: round(share, DIGITS) for name, share in shares.items()} | {"bytes": size, "float_bytes": float_size}


def describe_quantized(figures: dict[str, Any]) -> str:
    """Describe the figures of an int8 file in one sentence."""
    return (
        f"accuracy {figures['accuracy']:.2%}, {100 * figures['difference']:+.2f} points (95% interval "
        f"{100 * figures['difference_low']:+.2f} to {100 * figures['difference_high']:+.2f}); another class is the "
        f"most probable one for {figures['other_top_class']:.2%} of the images; {figures['bytes']:,} bytes instead of "
        f"{figures['float_bytes']:,}"
    )
