"""Saliency of a prediction: the pixels of an image that speak for a class, by occlusion. Needs no gradients.

M. D. Zeiler and R. Fergus, "Visualizing and understanding convolutional networks", ECCV 2014, section 4.2: a patch of
one value is moved over the image, and the loss of confidence is recorded. The loss is measured in log-odds, as in
M. Robnik-Šikonja and I. Kononenko, "Explaining classifications for individual instances", IEEE TKDE 20(5), 2008,
because the probability of a confident prediction hardly changes. The method is deterministic. Its cost is bounded:
`POSITIONS` squared predictions, and one, for an image of any size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.metrics import class_probabilities

PATCH = 0.2  # side of the patch, as a share of the image's
POSITIONS = 6  # of the patch along each axis, at most; two neighbours overlap
SMALLEST = 1e-9  # limit for a probability in log-odds
CHECKED_IMAGES = 32
HIDDEN = 0.1  # share of the pixels that the check hides
MARGIN = 2  # least ratio of the losses of a meaningful saliency; set before any test image was explained
BLUR = 0.15  # radius of the check's blur, as a share of the image's longer side
DIGITS = 6

Predict = Callable[[np.ndarray], np.ndarray]  # uint8 [n, *shape] to the model's outputs, float [n, outputs]


@dataclass(frozen=True)
class SaliencyCheck:
    """Mean loss of the predicted class's probability if a tenth of the pixels is hidden."""

    images: int
    marked: float  # hidden are the pixels with the highest saliency
    random: float  # hidden is an area of the same shape at a random place
    gain: float  # `marked` minus `random`: about 0 if the saliency means nothing

    @property
    def is_meaningful(self) -> bool:
        """True if the marked pixels matter `MARGIN` times as much as others."""
        return self.marked > MARGIN * max(self.random, 0)

    def __str__(self) -> str:
        verdict = "" if self.is_meaningful else ": **this saliency means little**, expected at least twice as much"
        return (
            f"hiding the {HIDDEN:.0%} of the pixels with the highest saliency lowers the predicted class's probability "
            f"by {self.marked:.3f}, hiding a random area of the same shape by {self.random:.3f} (means of "
            f"{self.images:,} images){verdict}"
        )


def explain(predict: Predict, image: np.ndarray, label: int, ground: int | Sequence[int]) -> np.ndarray:
    """Compute how much each pixel of an image speaks for a class: float32 [height, width].

    A value is the mean loss of log-odds (natural logarithm) if a patch over the pixel hides a part of the image.
    Negative: the pixel speaks against the class.

    Args:
        predict: the model, for example `ExportedModel.predict`. It is called once.
        image: uint8 [height, width], or [height, width, 3].
        label: index of the class among the model's answers.
        ground: what the patch shows, one value for each channel: the contract's ground.
    """
    height, width = image.shape[:2]
    places = [(slice(*row), slice(*column)) for row in _spans(height) for column in _spans(width)]
    copies = np.repeat(image[None], len(places) + 1, axis=0)  # the last one stays as it is
    for copy, place in zip(copies, places, strict=False):
        copy[place] = ground
    log_odds = _log_odds(class_probabilities(predict(copies)), label)
    total, patches = np.zeros((height, width)), np.zeros((height, width))
    for place, loss in zip(places, log_odds[-1] - log_odds, strict=False):
        total[place] += loss
        patches[place] += 1
    return (total / patches).astype(np.float32)


def check_saliency(
    predict: Predict, images: np.ndarray, predicted: np.ndarray, ground: int | Sequence[int]
) -> SaliencyCheck:
    """Check that the saliency means something: hiding what it marks must cost more confidence than hiding as much
    elsewhere.

    Pixels are hidden by a blur, which is not what `explain` hides them with (R. Fong and A. Vedaldi, "Interpretable
    explanations of black boxes by meaningful perturbation", ICCV 2017). The area elsewhere has the same shape, because
    single pixels would disturb some models more. Up to `CHECKED_IMAGES` images, at equal distances, are checked.

    Args:
        images: uint8 [n, *shape].
        predicted: int [n], the predicted class of each image.
    """
    rows = np.linspace(0, len(images) - 1, min(CHECKED_IMAGES, len(images))).astype(int)
    random = np.random.default_rng(0)
    variants = []
    for image, label in zip(images[rows], predicted[rows], strict=True):
        saliency = explain(predict, image, int(label), ground)
        marked = np.zeros(saliency.shape, bool)
        marked.flat[np.argsort(-saliency, axis=None, kind="stable")[: round(HIDDEN * saliency.size)]] = True
        elsewhere = np.roll(marked, random.integers(saliency.shape), (0, 1))
        blurred = _blur(image)
        colours = (...,) + (None,) * (image.ndim - 2)
        variants.append([image, *(np.where(mask[colours], blurred, image) for mask in (marked, elsewhere))])
    shape = (len(rows) * 3, *images.shape[1:])
    probabilities = np.nan_to_num(class_probabilities(predict(np.array(variants, np.uint8).reshape(shape))))
    own = probabilities.reshape(len(rows), 3, -1)[np.arange(len(rows)), :, predicted[rows]]
    marked_loss, random_loss = (float((own[:, 0] - own[:, hidden]).mean()) for hidden in (1, 2))
    losses = (round(loss, DIGITS) for loss in (marked_loss, random_loss, marked_loss - random_loss))
    return SaliencyCheck(len(rows), *losses)


def _spans(size: int) -> list[tuple[int, int]]:
    """Return start and end of each position of the patch along an axis. They cover the axis."""
    side = math.ceil(size * PATCH)
    starts = np.unique(np.linspace(0, size - side, POSITIONS).round().astype(int))
    return [(start, start + side) for start in starts.tolist()]


def _log_odds(probabilities: np.ndarray, label: int) -> np.ndarray:
    """Return the log-odds of a class: float64 [n]. The sum of the others is more exact than 1 minus its own."""
    known = np.nan_to_num(probabilities)
    others = np.delete(known, label, axis=1).sum(axis=1)
    return np.log(np.maximum(known[:, label], SMALLEST)) - np.log(np.maximum(others, SMALLEST))


def _blur(image: np.ndarray) -> np.ndarray:
    from PIL import Image, ImageFilter

    return np.asarray(Image.fromarray(image).filter(ImageFilter.BoxBlur(BLUR * max(image.shape[:2]))))
