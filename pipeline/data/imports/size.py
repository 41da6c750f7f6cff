"""The size to which the pictures of a collection are resized."""

import re
from collections import Counter

import numpy as np

from pipeline.errors import DataError

SMALLEST, LARGEST = 8, 512  # pixels a side
LARGEST_KEPT = 128  # pixels a side; if all pictures have one size up to this, they keep it
LARGEST_CHOSEN = 64  # pixels a side, if the size is chosen: the networks are small, and train on two processors
_STEP = 4  # sides are multiples of it, because the networks halve the size twice


def choose_size(sizes: Counter[tuple[int, int]]) -> tuple[int, int]:
    """Choose height and width: the pictures' own if they are all of one size, else one near the median of a sample.

    If all have nearly the same proportions, these are kept. Otherwise the size is a square.
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
            f"cannot use --size {text}",
            expected=f"a number of pixels or HEIGHTxWIDTH, from {SMALLEST} to {LARGEST} a side",
        )
    return sides[0], sides[1]
