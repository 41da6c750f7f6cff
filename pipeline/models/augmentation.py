"""Data augmentation, and the order of the images: all random choices of a training.

The choices are drawn before each pass over the images. They are functions of (seed, epoch) and, for images in chunks,
of the chunk's number, and enter the graph as data. A training therefore draws the same choices on every device, and
after it was resumed.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.models.backend import tf
from pipeline.models.contract import Ground
from pipeline.params import TrainSettings

_ORDER, _FLIP, _SHIFT, _ERASE, _GROUPS = range(1, 6)  # independent random streams; 0 would not be independent


def draw_choices(
    settings: TrainSettings,
    shape: tuple[int, ...],
    batch: int,
    *,
    seed: int,
    epoch: int,
    chunk: int = 0,
    rows: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Draw all choices for one pass over the images, or over a chunk. Images that do not fill a batch are left over.

    Args:
        shape: of all images: [n, height, width] or [n, height, width, channels].
        epoch: counted from 1.
        chunk: counted from 0 in each epoch.
        rows: int [n], the images in the chunk; None: all.

    Returns:
        int32 [batches, batch, ...] by name: `order`, the positions of images in the chunk, and if the settings use them
        `flip`, 0 or 1; `shift`, pixels downwards and to the right; `erase`, top, bottom, left, right and the value of
        each channel.
    """
    images, *image_shape = shape
    rows = np.arange(images) if rows is None else rows
    steps = len(rows) // batch
    order = np.argsort(_raw(len(rows), chunk, seed, epoch, _ORDER), kind="stable")[: steps * batch]
    choices = {"order": order}
    if settings.flip:
        choices["flip"] = _alternate(images, seed, epoch)[rows[order]]
    if settings.shift:
        choices["shift"] = _integers(-settings.shift, settings.shift, (len(order), 2), chunk, seed, epoch, _SHIFT)
    if settings.erase:
        choices["erase"] = _boxes(settings, image_shape, len(order), chunk, seed, epoch, _ERASE)
    return {name: array.astype(np.int32).reshape(steps, batch, *array.shape[1:]) for name, array in choices.items()}


def draw_groups(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """Draw the order in which an epoch reads `count` groups of images: int [count]."""
    return np.argsort(_raw(count, 0, seed, epoch, _GROUPS), kind="stable")


def augment(images: Any, choices: dict[str, Any], ground: Ground = 0) -> Any:
    """Mirror, translate and erase a batch of images.

    Args:
        images: uint8 [batch, height, width] or [batch, height, width, channels].
        choices: those of `draw_choices` for the batch.
        ground: value of the pixels that enter at the edges of a translated image.
    """
    if "flip" in choices:
        images = tf.where(_expand(choices["flip"] == 1, images), tf.reverse(images, [2]), images)
    if "shift" in choices:
        images = _translate(images, choices["shift"], ground)
    if "erase" in choices:
        images = _erase(images, choices["erase"])
    return images


def _expand(values: Any, images: Any) -> Any:
    """Append axes to values [batch, ...], so that they broadcast with images."""
    return tf.reshape(values, (*values.shape, *[1] * (len(images.shape) - len(values.shape))))


def _translate(images: Any, shift: Any, ground: Ground) -> Any:
    """Move each image."""
    batch, height, width, *channels = images.shape
    y = tf.range(height)[None, :, None] - shift[:, 0, None, None]
    x = tf.range(width)[None, None, :] - shift[:, 1, None, None]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    places = tf.where(inside, y * width + x, 0)
    moved = tf.gather(tf.reshape(images, (batch, height * width, *channels)), places, batch_dims=1)
    return tf.where(_expand(inside, moved), moved, tf.constant(ground, tf.uint8))


def _erase(images: Any, boxes: Any) -> Any:
    """Fill a rectangle of each image with a grey value or a colour."""
    _, height, width, *channels = images.shape
    top, bottom, left, right = tf.unstack(boxes[:, None, None, :4], axis=-1)
    y, x = tf.range(height)[None, :, None], tf.range(width)[None, None, :]
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    colour = tf.reshape(tf.cast(boxes[:, 4:], tf.uint8), (-1, 1, 1, *channels))
    return tf.where(_expand(inside, images), colour, images)


def _alternate(images: int, seed: int, epoch: int) -> np.ndarray:
    """Mirror a random half of the images in the first epoch, the other half in the next, and so on (arXiv:2404.00498).

    With independent draws, half of the images would be the same in two successive epochs.
    """
    bits = np.unpackbits(_raw(images // 64 + 1, 0, seed, _FLIP).view(np.uint8))[:images]
    return bits ^ (epoch & 1)


def _boxes(settings: TrainSettings, shape: Sequence[int], count: int, *key: int) -> np.ndarray:
    """Draw rectangles of random size, place and colour in `erase_share` of the images (arXiv:1708.04896)."""
    size, channels = shape[:2], math.prod(shape[2:])
    chosen = _integers(0, 2**16 - 1, (count,), *key, 0) < settings.erase_share * 2**16
    sides = np.minimum(_integers(1, settings.erase, (count, 2), *key, 1) * chosen[:, None], size)
    fractions = _integers(0, 2**16 - 1, (count, 2), *key, 2)
    starts = fractions * (np.array(size) - sides + 1) >> 16
    ends = starts + sides
    colours = _integers(0, 255, (count, channels), *key, 3)
    return np.column_stack([starts[:, 0], ends[:, 0], starts[:, 1], ends[:, 1], colours])


def _integers(low: int, high: int, shape: tuple[int, ...], *key: int) -> np.ndarray:
    """Draw uniform integers from `low` to `high`, both included: int64 [*shape]."""
    raw = _raw(int(np.prod(shape)), *key) >> np.uint64(32)
    return (raw * np.uint64(high - low + 1) >> np.uint64(32)).astype(np.int64).reshape(shape) + low


def _raw(count: int, chunk: int, *key: int) -> np.ndarray:
    """Draw uint64 [count] from a bit generator's raw stream, which NumPy keeps stable, unlike its distributions."""
    sequence = np.random.SeedSequence(key, spawn_key=(chunk,) if chunk else ())
    return np.random.Philox(sequence).random_raw(count)
