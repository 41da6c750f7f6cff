"""The ground of images: the grey value of their background."""

import numpy as np


def measure_ground(images: np.ndarray) -> int:
    """The grey value of the ground that images are on: the median of their border pixels. images: uint8 [n, h, w]."""
    return round(float(np.median(border_pixels(images))))


def border_pixels(images: np.ndarray) -> np.ndarray:
    """The outermost pixels of images: uint8 [n, m]. images: uint8 [n, height, width]."""
    sides = (images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1])
    return np.concatenate(sides, axis=1)
