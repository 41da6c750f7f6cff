"""Latency of models on this machine, for information only: no decision depends on it."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BATCH = 256
ROUNDS = 30
WARM_UP = 2  # rounds that prepare the models


@dataclass(frozen=True)
class Latency:
    """Median times in milliseconds."""

    one: float  # for a single image
    batch: float  # for an image in a batch of `BATCH`


def measure(models: Sequence[Callable[[np.ndarray], Any]], images: np.ndarray) -> list[Latency]:
    """Time models alternately, so that other load on the machine affects all of them equally.

    Args:
        models: functions that answer a batch of any size, without padding it.
        images: uint8 [n, *shape]; the first `BATCH` are used.
    """
    filled = np.resize(images, (BATCH, *images.shape[1:]))
    alone, together = _time(models, filled[:1]), _time(models, filled)
    return [Latency(one, batch / BATCH) for one, batch in zip(alone, together, strict=True)]


def _time(models: Sequence[Callable[[np.ndarray], Any]], images: np.ndarray) -> list[float]:
    """Median milliseconds of each model for all of these images at once."""
    rounds = [[_milliseconds(answer, images) for answer in models] for _ in range(WARM_UP + ROUNDS)]
    return [statistics.median(times) for times in zip(*rounds[WARM_UP:], strict=True)]


def _milliseconds(answer: Callable[[np.ndarray], Any], images: np.ndarray) -> float:
    started = time.perf_counter()
    answer(images)
    return 1000 * (time.perf_counter() - started)
