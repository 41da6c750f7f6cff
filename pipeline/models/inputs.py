"""The inputs of a training: images in memory, or streamed from disk if they do not fit into memory.

A source yields an epoch in chunks: images that are in memory together, with the batches to make of them. Images in
memory are one chunk. A stream mixes several row groups in each chunk, and a thread reads the next chunk during the
training on the current one. (`tf.data` reads nothing ahead if operations are deterministic.)
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from pipeline.models.augmentation import draw_choices, draw_groups
from pipeline.models.backend import tf, view_as_tensor
from pipeline.models.tasks import Task
from pipeline.params import TrainSettings

CHUNKS_IN_MEMORY = 2  # one in training, one being read
ALIGNMENT = 64  # in bytes; TensorFlow copies memory that is not aligned


@dataclass(frozen=True)
class Chunk:
    """Images that are in memory together, and the batches to make of them."""

    images: Any  # uint8 tensor [n, *shape]
    targets: Any  # tensor [n, ...], in the form that the loss takes
    choices: dict[str, np.ndarray]  # int32 [at least `steps`, batch, ...]
    steps: int  # number of batches


class Source(Protocol):
    """Images with their labels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all images: number, height and width, and in colour the number of channels."""

    def sample(self, count: int) -> np.ndarray:
        """At most `count` of the images, evenly spaced: uint8 [n, *shape of an image]."""

    def blocks(self) -> Iterator["Examples"]:
        """Yield all images in their order, in blocks that fit into memory."""

    def epochs(self, task: Task, settings: TrainSettings, batch: int, seed: int) -> Callable[[int], Iterator[Chunk]]:
        """Return a function that yields the chunks of an epoch, counted from 1, in batches of `batch` images.

        Each image is in one batch, except those that are left over at the end and do not fill one.
        """


@dataclass(frozen=True)
class Examples:
    """Images in memory."""

    images: np.ndarray  # uint8 [n, height, width] or [n, height, width, 3]
    labels: np.ndarray  # uint16 [n]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all images."""
        return self.images.shape

    def sample(self, count: int) -> np.ndarray:
        """At most `count` of the images, evenly spaced."""
        return self.images[:: -(-len(self.images) // count)]

    def blocks(self) -> Iterator["Examples"]:
        """Yield all images in one block."""
        yield self

    def epochs(self, task: Task, settings: TrainSettings, batch: int, seed: int) -> Callable[[int], Iterator[Chunk]]:
        """Return a function that yields an epoch in one chunk."""
        images, targets = view_as_tensor(_align(self.images)), tf.constant(task.encode(self.labels))

        def chunks(epoch: int) -> Iterator[Chunk]:
            choices = draw_choices(settings, self.shape, batch, seed=seed, epoch=epoch)
            yield Chunk(images, targets, choices, len(choices["order"]))

        return chunks


@dataclass(frozen=True)
class Stream:
    """Images on disk, in groups that are read when they are needed.

    An epoch reads the groups in a random order, as many together as fit into memory, and mixes their images. The more
    groups a chunk has, the more its batches are like those of a training in memory. Images that are sorted on disk need
    memory for many groups.

    Args:
        sizes: number of images in each group.
        read: returns images uint8 [n, *image_shape] and labels uint16 [n] of a group, by its number.
        image_shape: height and width of an image, and in colour the number of channels.
        memory: bytes for images, shared by `CHUNKS_IN_MEMORY` chunks. A chunk holds at least one group and a batch.
    """

    sizes: Sequence[int]
    read: Callable[[int], tuple[np.ndarray, np.ndarray]]
    image_shape: tuple[int, ...]
    memory: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all images."""
        return sum(self.sizes), *self.image_shape

    def sample(self, count: int) -> np.ndarray:
        """At most `count` of the images, evenly spaced."""
        step = -(-sum(self.sizes) // count)
        # Copies, because a view would keep its whole group in memory.
        parts = [self.read(group)[0][-first % step :: step].copy() for group, first in enumerate(self._firsts)]
        return np.concatenate(parts)

    def blocks(self) -> Iterator[Examples]:
        """Yield all images in their order, group by group."""
        for group in range(len(self.sizes)):
            yield Examples(*self.read(group))

    def epochs(self, task: Task, settings: TrainSettings, batch: int, seed: int) -> Callable[[int], Iterator[Chunk]]:
        """Return a function that yields an epoch in chunks of equal shape, each of several groups."""
        room = max(self.memory // CHUNKS_IN_MEMORY // math.prod(self.image_shape), max(self.sizes) + batch)
        # Two buffers in turn, used as views: new memory and a copy for each chunk would double the cost of reading.
        # A buffer is filled again only after the training on its chunk has ended.
        buffers = [
            (_allocate_aligned((room, *self.image_shape)), np.zeros(room, np.uint16), np.zeros(room, np.int64))
            for _ in range(2)
        ]

        def chunks(epoch: int) -> Iterator[Chunk]:
            order = draw_groups(len(self.sizes), seed=seed, epoch=epoch)
            leftover = [buffer[:0].copy() for buffer in buffers[0]]
            for number, groups in enumerate(_pack(order.tolist(), self.sizes, room - batch)):
                images, labels, rows = buffers[number % 2]
                filled = 0
                for part in (leftover, *map(self._read, groups)):
                    place = slice(filled, filled + len(part[2]))
                    images[place], labels[place], rows[place] = part
                    filled = place.stop
                choices = draw_choices(
                    settings, self.shape, batch, seed=seed, epoch=epoch, chunk=number, rows=rows[:filled]
                )
                steps = len(choices["order"])
                left = np.ones(filled, bool)
                left[choices["order"]] = False
                leftover = [buffer[:filled][left] for buffer in (images, labels, rows)]
                choices = {name: _pad(choice, room // batch) for name, choice in choices.items()}
                yield Chunk(view_as_tensor(images), tf.constant(task.encode(labels)), choices, steps)

        return lambda epoch: _read_ahead(chunks(epoch))

    @cached_property
    def _firsts(self) -> list[int]:
        """The row number of each group's first image."""
        return [0, *np.cumsum(self.sizes[:-1]).tolist()]

    def _read(self, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read images, labels and row numbers of a group."""
        return *self.read(group), np.arange(self.sizes[group]) + self._firsts[group]


def _pack(order: Sequence[int], sizes: Sequence[int], room: int) -> Iterator[list[int]]:
    """Yield the groups in their order, as many together as fit into `room`, and at least one."""
    pack: list[int] = []
    for group in order:
        if pack and sum(sizes[member] for member in [*pack, group]) > room:
            yield pack
            pack = []
        pack.append(group)
    yield pack


def _pad(array: np.ndarray, length: int) -> np.ndarray:
    """Pad an array with zeros, so that all chunks have one length and use one graph."""
    return np.concatenate([array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)])


def _allocate_aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Allocate zeros, uint8, in memory that a tensor can share."""
    size = math.prod(shape)
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + size].reshape(shape)


def _align(images: np.ndarray) -> np.ndarray:
    """Return the images, uint8, in memory that a tensor can share. Images read from Parquet are not copied."""
    if images.ctypes.data % ALIGNMENT == 0 and images.flags.c_contiguous and images.flags.writeable:
        return images
    copy = _allocate_aligned(images.shape)
    copy[:] = images
    return copy


def _read_ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Yield the chunks, and read each while the previous one is in use."""
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        following = reader.submit(next, chunks, None)
        while (chunk := following.result()) is not None:
            following = reader.submit(next, chunks, None)
            yield chunk
