"""The generated dataset `tiny`: simple garment-like shapes in ten classes, the same bytes on every machine.

It uses only integer arithmetic on the raw output of a bit generator, which NumPy keeps stable (unlike the methods of
`Generator`). Shapes are drawn in doubled coordinates around the centre, so that they mirror exactly.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.data import idx

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SIZE = 28
SEED = 20170825

_Y, _X = np.meshgrid(np.arange(SIZE) * 2 - SIZE + 1, np.arange(SIZE) * 2 - SIZE + 1, indexing="ij")


class _Draws:
    """Uniform integers from a seeded bit generator."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def integers(self, low: int, high: int, *shape: int) -> np.ndarray:
        """Return int64 [*shape] from `low` to `high`, both included."""
        raw = self._bits.random_raw(int(np.prod(shape))).reshape(shape)
        # The upper bits, as PCG's authors advise; the bias of the remainder is below 2**-24 for such short ranges.
        return (raw >> np.uint64(32)).astype(np.int64) % (high - low + 1) + low


def write(directory: Path, train: int, test: int) -> None:
    """Write the four idx files `FILES` with the given numbers of training and test images."""
    arrays = [*generate(train, SEED), *generate(test, SEED + 1)]
    for name, values in zip(FILES, arrays, strict=True):
        idx.write(directory / name, values)


def generate(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Generate images and labels, balanced over the classes, in random order.

    Returns:
        images uint8 [count, 28, 28] and labels uint8 [count].
    """
    draws = _Draws(seed)
    order = np.argsort(draws.integers(0, 2**31, count), kind="stable")
    labels = (np.arange(count) % len(_GARMENTS))[order]
    images = np.zeros((count, SIZE, SIZE), np.int64)
    for label, draw in enumerate(_GARMENTS):
        members = np.flatnonzero(labels == label)
        images[members] = _shade(draw(*_place(draws, len(members))), draws)
    return images.astype(np.uint8), labels.astype(np.uint8)


def _place(draws: _Draws, count: int) -> tuple[np.ndarray, ...]:
    """Draw coordinates shifted by up to two pixels, half a width, and the end of a sleeve or hem, for each image."""
    shift_y, shift_x = draws.integers(-4, 4, 2, count, 1, 1)
    mirrored = draws.integers(0, 1, count, 1, 1) * 2 - 1
    width, length = draws.integers(9, 13, count, 1, 1), draws.integers(-4, 4, count, 1, 1)
    return _Y - shift_y, (_X - shift_x) * mirrored, width, length


def _shade(shape: np.ndarray, draws: _Draws) -> np.ndarray:
    """Convert masks to grey values: a brightness for each garment, its texture, and specks everywhere."""
    count = len(shape)
    brightness = draws.integers(90, 220, count, 1, 1)
    texture = draws.integers(-35, 35, count, SIZE, SIZE)
    specks = draws.integers(0, 255, count, SIZE, SIZE) * (draws.integers(0, 19, count, SIZE, SIZE) == 0)
    return np.clip(np.where(shape, brightness + texture, specks), 0, 255)


def _top(y: np.ndarray, x: np.ndarray, width: np.ndarray, sleeve: np.ndarray, hem: int = 20) -> np.ndarray:
    body = (abs(x) <= width) & (abs(y) <= hem)
    return body | ((abs(x) <= width + 10) & (y >= -hem) & (y <= sleeve))


def _t_shirt(y: np.ndarray, x: np.ndarray, width: np.ndarray, length: np.ndarray) -> np.ndarray:
    return _top(y, x, width, length - 9)


def _trouser(y: np.ndarray, x: np.ndarray, width: np.ndarray, length: np.ndarray) -> np.ndarray:
    return (abs(x) <= width) & (y >= -24) & (y <= 22 + length) & ((abs(x) >= 3) | (y <= -12))


def _pullover(y: np.ndarray, x: np.ndarray, width: np.ndarray, length: np.ndarray) -> np.ndarray:
    sleeves = (abs(x) >= width + 3) & (abs(x) <= width + 11) & (y >= -18) & (y <= 14 + length)
    return _top(y, x, width, length - 12, 19) | sleeves


def _dress(y: np.ndarray, x: np.ndarray, width: np.ndarray, length: np.ndarray) -> np.ndarray:
    return (8 * abs(x) <= 3 * (y + 24) + 2 * width) & (y >= -24) & (y <= 22 + length)


def _coat(y: np.ndarray, x: np.ndarray, width: np.ndarray, length: np.ndarray) -> np.ndarray:
    return _pullover(y, x, width + 2, length + 3) & (abs(x) >= 2)


def _sandal(y: np.ndarray, x: np.ndarray, width: np.ndarray, length: np.ndarray) -> np.ndarray:
    sole = (abs(x) <= 22) & (y >= 8) & (y <= 12)
    straps = (abs(abs(x - length) - 9) + y <= 10) & (abs(abs(x - length) - 9) + y >= 4) & (y >= -width) & (y <= 8)
    return sole | straps


def _shirt(y: np.ndarray, x: np.ndarray, width: np.ndarray, length: np.ndarray) -> np.ndarray:
    buttons = (abs(x) <= 1) & (y % 6 < 3)
    return _top(y, x, width, 2 * length) & ~buttons & ((abs(x) > 4) | (y > -15))


def _sneaker(y: np.ndarray, x: np.ndarray, width: np.ndarray, length: np.ndarray) -> np.ndarray:
    return (abs(x) <= 23) & (y <= 12) & (2 * y >= x - 4 - length) & (y >= -5)


def _bag(y: np.ndarray, x: np.ndarray, width: np.ndarray, length: np.ndarray) -> np.ndarray:
    handle = (abs(x) <= width) & (y >= -14) & (y <= 0) & ~((abs(x) <= width - 4) & (y >= -10))
    return handle | ((abs(x) <= width + 9) & (y >= -4) & (y <= 18 + length))


def _ankle_boot(y: np.ndarray, x: np.ndarray, width: np.ndarray, length: np.ndarray) -> np.ndarray:
    shaft = (x >= -20) & (x <= width - 12) & (y >= -20 + length) & (y <= 14)
    return shaft | ((abs(x) <= 20) & (y >= 2) & (y <= 14))


_GARMENTS: tuple[Callable[..., np.ndarray], ...] = (
    _t_shirt,
    _trouser,
    _pullover,
    _dress,
    _coat,
    _sandal,
    _shirt,
    _sneaker,
    _bag,
    _ankle_boot,
)
