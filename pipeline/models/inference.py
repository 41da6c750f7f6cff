"""Predictions of a network, in batches of a fixed size, so that every call gives the same bits."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.models.backend import keras, tf

BATCH = 1024  # fixed, because the order of summation, and with it the last bits, may depend on it


def predict(network: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return probabilities float32 [n, outputs] for images uint8 [n, height, width]."""
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
        filled = np.zeros((-(-len(images) // BATCH) * BATCH, *images.shape[1:]), np.uint8)
        filled[: len(images)] = images
        batches = [answer(filled[start : start + BATCH]).numpy() for start in range(0, len(filled), BATCH)]
        outputs = np.concatenate([np.empty((0, *network.output_shape[1:]), np.float32), *batches])
        return outputs[: len(images)].astype(np.float32, copy=False)

    return answers
