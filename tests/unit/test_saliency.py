"""The saliency of a prediction points at the pixels that the model looks at, for images of any size and colour."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from pipeline.evaluation.saliency import CHECKED_IMAGES, POSITIONS, SaliencyCheck, check_saliency, explain


class Detector:
    """A model with two classes. The second is the more probable, the brighter one corner of the image is."""

    def __init__(self, *, scale: float = 6.0, one_output: bool = False) -> None:
        self.scale, self.one_output = scale, one_output
        self.calls: list[int] = []

    def predict(self, images: np.ndarray) -> np.ndarray:
        self.calls.append(len(images))
        height, width = images.shape[1:3]
        corner = images[:, : height // 3, -(width // 3) :].reshape(len(images), -1)
        positive = 1 / (1 + np.exp(-self.scale * (corner.mean(axis=1) / 255 - 0.3)))
        outputs = positive[:, None] if self.one_output else np.stack([1 - positive, positive], axis=1)
        return outputs.astype(np.float32)


def draw(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(150, 256, (count, *shape), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(28, 28), (40, 24), (90, 33, 3)])
@pytest.mark.parametrize("one_output", [False, True])
def test_the_pixels_that_decide_are_marked(shape: tuple[int, ...], one_output: bool) -> None:
    model = Detector(one_output=one_output)
    image, ground = draw(1, *shape)[0], (0, 0, 0)[: len(shape[2:])] or 0
    saliency = explain(model.predict, image, 1, ground)
    assert (saliency.dtype, saliency.shape) == (np.float32, shape[:2])
    height, width = shape[:2]
    row, column = np.unravel_index(saliency.argmax(), saliency.shape)
    assert row < height // 3
    assert column >= width - width // 3
    inside = saliency[: height // 3, -(width // 3) :].sum()
    assert inside > 0.6 * saliency.sum()
    assert saliency[height * 2 // 3 :, : width // 3].max() < 0.01 * saliency.max()
    assert np.allclose(explain(model.predict, image, 0, ground), -saliency, atol=1e-4)


def test_the_cost_is_one_call_and_does_not_grow_with_the_image() -> None:
    model = Detector()
    for side in (4, 28, 200):
        explain(model.predict, draw(1, side, side)[0], 1, 0)
    assert len(model.calls) == 3
    assert max(model.calls) == POSITIONS**2 + 1


@pytest.mark.parametrize("side", range(1, 40))
def test_each_pixel_is_hidden_at_least_once(side: int) -> None:
    model = Detector()
    saliency = explain(lambda images: model.predict(np.repeat(images, 9, axis=1)), draw(1, side, 9)[0], 1, 0)
    assert np.isfinite(saliency).all()


def test_a_prediction_that_is_certain_is_explained_too() -> None:
    saliency = explain(Detector(scale=25).predict, np.full((28, 28), 255, np.uint8), 1, 0)
    assert saliency[4, 24] > 10 * abs(saliency[24, 4])


def test_the_check_tells_a_meaningful_saliency_from_one_without_meaning() -> None:
    images = np.zeros((50, 28, 28), np.uint8)
    images[:, 1:7, 21:27], images[:, 15:25, 5:15] = 255, 255  # two squares; the model looks at the first
    meaningful = check_saliency(Detector(scale=40).predict, images, np.ones(50, int), 0)
    assert meaningful.images == CHECKED_IMAGES
    assert meaningful.gain > 0.1
    assert meaningful.is_meaningful

    def constant(images: np.ndarray) -> np.ndarray:
        return np.full((len(images), 2), 0.5, np.float32)

    meaningless = check_saliency(constant, images, np.ones(50, int), 0)
    assert meaningless == SaliencyCheck(CHECKED_IMAGES, 0.0, 0.0, 0.0)
    assert not meaningless.is_meaningful
    assert "means little" in str(meaningless)
    assert "means little" not in str(meaningful)


def test_outputs_that_are_not_numbers_give_numbers() -> None:
    images = draw(3, 8, 8)
    found = check_saliency(lambda images: np.full((len(images), 2), np.nan), images, np.zeros(3, int), 0)
    json.dumps(asdict(found), allow_nan=False)
