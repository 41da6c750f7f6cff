"""The ground of images: the grey value or the colour of their background."""

from typing import Any

import numpy as np

from pipeline.data.table import Dataset

Ground = int | tuple[int, int, int]  # grey value, or red, green and blue


def measure_ground(images: np.ndarray) -> Ground:
    """Return the ground that images are on: the median of their border pixels, in each channel.

    images: uint8 [n, height, width] or [n, height, width, 3].
    """
    border = border_pixels(images)
    return _ground(np.median(border.reshape(-1, *images.shape[3:]), axis=0))


def ground_of(dataset: Dataset, images: np.ndarray) -> Ground:
    """Return the ground that is recorded of a dataset. Otherwise measure that of some of its images."""
    return _ground(dataset.ground) if dataset.ground else measure_ground(images)


def border_pixels(images: np.ndarray) -> np.ndarray:
    """Return the outermost pixels of images: uint8 [n, m] or [n, m, 3]. images: as for `measure_ground`."""
    sides = (images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1])
    return np.concatenate(sides, axis=1)


def _ground(channels: Any) -> Ground:
    """Convert the values of the channels to a ground. channels: one number, or three."""
    values = [round(float(value)) for value in np.ravel(channels)]
    return values[0] if len(values) == 1 else (values[0], values[1], values[2])
