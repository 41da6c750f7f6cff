"""Where the images of an epoch come from: all of them once, in an order that seed and epoch decide."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.models.backend import tf
from pipeline.models.inputs import CHUNKS_IN_MEMORY, Chunk, Examples, Source, Stream
from pipeline.models.tasks import create_task
from pipeline.params import TrainSettings, load_params
from tests.conftest import REPOSITORY

SETTINGS = load_params(REPOSITORY / "params.yaml").train.settings
TASK = create_task("sparse_categorical_crossentropy", [str(label) for label in range(10)])
SIZES = (40, 40, 40, 40, 40, 8)
COUNT, BATCH = sum(SIZES), 16
IMAGES = np.arange(COUNT, dtype=np.uint8).repeat(6).reshape(COUNT, 3, 2)  # each shows its own number
LABELS = (np.arange(COUNT) % 10).astype(np.uint8)
ENDS = np.cumsum(SIZES)


def stream(groups: int) -> Stream:
    """The images in groups, with memory for chunks of some groups."""

    def read(group: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(ENDS[group] - SIZES[group], ENDS[group])
        return IMAGES[part], LABELS[part]

    return Stream(SIZES, read, (3, 2), memory=CHUNKS_IN_MEMORY * 6 * (40 * groups + BATCH))


def epoch(source: Source, number: int = 1, seed: int = 1, batch: int = BATCH, **changes: Any) -> list[Chunk]:
    settings = TrainSettings(**SETTINGS.__dict__ | changes)
    # A stream fills the memory of a chunk again when the next but one is read.
    chunks = source.epochs(TASK, settings, batch, seed)(number)
    return [replace(chunk, images=tf.constant(chunk.images.numpy())) for chunk in chunks]


def order(chunks: list[Chunk]) -> np.ndarray:
    """The numbers of the images in the order of training: [batches, batch]."""
    batches = [chunk.images.numpy()[:, 0, 0][chunk.choices["order"][: chunk.steps]] for chunk in chunks]
    return np.concatenate(batches)


SOURCES = {"memory": Examples(IMAGES, LABELS), "stream of one group": stream(1), "stream of three": stream(3)}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_an_epoch_shows_every_image_once(source: Source) -> None:
    chunks = epoch(source)
    assert sorted(order(chunks).ravel()) == list(range(COUNT))
    for chunk in chunks:
        taken = chunk.choices["order"][: chunk.steps]
        assert np.array_equal(chunk.targets.numpy()[taken], chunk.images.numpy()[:, 0, 0][taken] % 10)


def test_a_chunk_stays_as_it_is_while_the_next_is_read() -> None:
    expected = order(epoch(stream(1)))
    chunks = stream(1).epochs(TASK, SETTINGS, BATCH, 1)(1)
    shown = []
    for chunk in chunks:
        time.sleep(0.05)  # the reader has long filled the other buffer
        shown.append(replace(chunk, images=tf.constant(chunk.images.numpy())))
    assert np.array_equal(order(shown), expected)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_what_fills_no_batch_sits_the_epoch_out(source: Source) -> None:
    shown = order(epoch(source, batch=15))
    assert shown.shape == (COUNT // 15, 15)
    assert len(np.unique(shown)) == shown.size


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_seed_and_epoch_decide_the_order(source: Source) -> None:
    first = order(epoch(source))
    assert np.array_equal(order(epoch(source)), first)
    assert not np.array_equal(order(epoch(source, number=2)), first)
    assert not np.array_equal(order(epoch(source, seed=2)), first)


def test_a_stream_mixes_the_images_of_several_groups_in_chunks_of_one_shape() -> None:
    chunks = epoch(stream(3), flip=True)
    assert len(chunks) == 2
    assert {tuple(chunk.images.shape) for chunk in chunks} == {(40 * 3 + BATCH, 3, 2)}
    for name in ("order", "flip"):
        assert len({chunk.choices[name].shape for chunk in chunks}) == 1
    for batch in order(chunks)[:4]:
        assert len(np.unique(np.searchsorted(ENDS, batch, side="right"))) >= 2
    assert not np.array_equal(chunks[0].choices["order"][:2], chunks[1].choices["order"][:2])
    assert len(epoch(stream(1))) == len(SIZES)


def test_a_streamed_image_is_mirrored_every_other_epoch_as_one_in_memory_is() -> None:
    flips = []
    for source in SOURCES.values():
        for number in (1, 2):
            chunks = epoch(source, number, flip=True)
            flips.append(np.zeros(COUNT, int))
            flips[-1][order(chunks).ravel()] = np.concatenate([c.choices["flip"][: c.steps] for c in chunks]).ravel()
    assert all(np.array_equal(flip, flips[number % 2]) for number, flip in enumerate(flips))
    assert np.array_equal(flips[0], 1 - flips[1])


@pytest.mark.parametrize("count", [1, 7, 50, 500])
def test_samples_and_blocks_of_a_stream_are_those_of_the_memory(count: int) -> None:
    for source in (stream(1), stream(3)):
        assert source.shape == (COUNT, 3, 2)
        assert np.array_equal(source.sample(count), Examples(IMAGES, LABELS).sample(count))
        assert np.array_equal(np.concatenate([block.images for block in source.blocks()]), IMAGES)
        assert np.array_equal(np.concatenate([block.labels for block in source.blocks()]), LABELS)
    assert len(Examples(IMAGES, LABELS).sample(count)) <= count
