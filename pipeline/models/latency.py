"""Latency of networks on this machine, for information only: no decision depends on it."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.models.backend import keras, tf

BATCH = 256
ROUNDS = 30


@dataclass(frozen=True)
class Latency:
    """Median times in milliseconds."""

    one: float  # for a single image
    batch: float  # for an image in a batch of `BATCH`


def measure(networks: Sequence[keras.Model], images: np.ndarray) -> list[Latency]:
    """Time networks alternately, so that other load on the machine affects all of them equally.

    Args:
        images: uint8 [n, height, width]; the first `BATCH` are used.
    """
    filled = np.resize(images, (BATCH, *images.shape[1:]))
    calls = [_compile(network) for network in networks]
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in networks]
    for round_ in range(-2, ROUNDS):
        for call, (ones, batches) in zip(calls, times, strict=True):
            one, batch = _milliseconds(call, filled[:1]), _milliseconds(call, filled) / BATCH
            if round_ >= 0:  # the first calls trace and warm up
                ones.append(one)
                batches.append(batch)
    return [Latency(statistics.median(ones), statistics.median(batches)) for ones, batches in times]


def _compile(network: keras.Model) -> Callable[[np.ndarray], Any]:
    @tf.function
    def answer(images: Any) -> Any:
        return network(images, training=False)

    return lambda images: answer(tf.constant(images)).numpy()


def _milliseconds(call: Callable[[np.ndarray], Any], images: np.ndarray) -> float:
    started = time.perf_counter()
    call(images)
    return 1000 * (time.perf_counter() - started)
