"""The latency of models, measured with functions that take a known time."""

import time

import numpy as np

from pipeline.models.latency import BATCH, measure


def test_each_model_is_timed_alone_and_in_a_batch() -> None:
    sizes: list[tuple[str, int]] = []

    def fast(images: np.ndarray) -> None:
        sizes.append(("fast", len(images)))

    def slow(images: np.ndarray) -> None:
        sizes.append(("slow", len(images)))
        time.sleep(0.002)

    _, second = measure([fast, slow], np.zeros((3, 4, 5), np.uint8))  # fewer images than a batch
    assert second.one >= 2  # it sleeps for at least that long
    assert second.batch >= 2 / BATCH
    assert set(sizes) == {(name, size) for name in ("fast", "slow") for size in (1, BATCH)}
    assert [name for name, _ in sizes] == ["fast", "slow"] * (len(sizes) // 2)  # alternately
