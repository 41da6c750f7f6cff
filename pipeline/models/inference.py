"""Predictions of a network, in batches of a fixed size, so that every call gives the same bits."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.models.backend import keras, tf

# Fixed for a size of images, because the order of summation, and with it the last bits, may depend on it.
BATCH, BATCH_PIXELS = 1024, 2**20  # at most so many images and pixels: activations of large images take much memory


def predict(network: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return probabilities float32 [n, outputs] for images uint8 [n, *shape]."""
    return create_predictor(network)(images)


def create_unpadded_predictor(network: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """A function that answers a batch as it is, for timing. It traces a graph for each size of a batch."""

    @tf.function
    def answer(images: Any) -> Any:
        return network(images, training=False)

    return lambda images: np.asarray(answer(tf.constant(images)).numpy())


def create_predictor(network: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Return `predict` for a network, traced once for many calls. It uses the network's current weights."""

    @tf.function(autograph=False)
    def answer(images: Any) -> Any:
        return network(images, training=False)

    def answers(images: np.ndarray) -> np.ndarray:
        batch = min(BATCH, max(1, BATCH_PIXELS // math.prod(images.shape[1:3])))
        filled = np.zeros((-(-len(images) // batch) * batch, *images.shape[1:]), np.uint8)
        filled[: len(images)] = images
        batches = [answer(filled[start : start + batch]).numpy() for start in range(0, len(filled), batch)]
        outputs = np.concatenate([np.empty((0, *network.output_shape[1:]), np.float32), *batches])
        return outputs[: len(images)].astype(np.float32, copy=False)

    return answers
