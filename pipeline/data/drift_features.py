"""The features of images whose distributions are compared to find drift."""

import numpy as np

from pipeline.data.features import Features

NAMES = ("mean", "std", "ink", "row", "column")
COLOUR_NAMES = ("red_green", "yellow_blue")  # of images in colour only
NOWHERE = -1.0  # replaces the centre of mass of an image without ink


def drift_features(features: Features) -> dict[str, np.ndarray]:
    """Return the compared features by name: float64 [n] each. NAMES, and for images in colour COLOUR_NAMES."""
    row, column = (np.nan_to_num(centre, nan=NOWHERE) for centre in features.centre)
    return {
        "mean": features.mean,
        "std": features.std,
        "ink": features.ink / features.pixels,
        "row": row,
        "column": column,
        **features.opponents,
    }
