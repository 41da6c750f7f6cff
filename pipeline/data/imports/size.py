"""The size that the pictures of a collection get."""

import re
from collections import Counter

import numpy as np

from pipeline.errors import DataError

SMALLEST, LARGEST = 8, 512  # pixels a side
LARGEST_KEPT = 128  # of pictures that are all of one size, and therefore are not resized by default
LARGEST_CHOSEN = 64  # the networks of this project are small, and train on two processors
_STEP = 4  # the networks halve the size twice


def choose_size(sizes: Counter[tuple[int, int]]) -> tuple[int, int]:
    """Choose height and width: the pictures' own if they are all of one size, else one near the median of a sample.

    Pictures of one shape keep it. Otherwise the size is a square.
    """
    if len(sizes) == 1 and all(SMALLEST <= side <= LARGEST_KEPT for side in next(iter(sizes))):
        return next(iter(sizes))
    found = np.array(list(sizes.elements()))
    height, width = np.median(found, axis=0)
    shapes = found[:, 0] / found[:, 1]
    if shapes.max() > 1.1 * shapes.min():
        height = width = max(height, width)
    scale = min(1.0, LARGEST_CHOSEN / max(height, width))
    sides = (max(SMALLEST, _STEP * round(scale * side / _STEP)) for side in (height, width))
    return next(sides), next(sides)


def parse_size(text: str) -> tuple[int, int]:
    """Parse `64`, for 64 x 64, or HEIGHTxWIDTH.

    Raises:
        DataError: it is neither, or a side is too small or too large.
    """
    found = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text.strip().lower())
    sides = [int(side) for side in (found[1], found[2] or found[1])] if found else []
    if not sides or not all(SMALLEST <= side <= LARGEST for side in sides):
        raise DataError(
            f"--size {text} cannot be used",
            expected=f"a number of pixels, or HEIGHTxWIDTH, each {SMALLEST} to {LARGEST}",
        )
    return sides[0], sides[1]
