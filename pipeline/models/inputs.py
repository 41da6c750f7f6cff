"""What a training reads: images held in memory, or streamed from disk when there is no room for all of them.

Both kinds of source hand an epoch out in chunks: images that lie in memory together, and the batches to make of them.
Those in memory are one chunk. A stream mixes several row groups in each, and a thread reads the next chunk beside the
training of the present one. (`tf.data` could do that, but reads nothing ahead once operations are deterministic.)
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

CHUNKS_IN_MEMORY = 2  # the one in training, and the one that is read meanwhile
ALIGNMENT = 64  # bytes, that TensorFlow asks of memory which it shares


@dataclass(frozen=True)
class Chunk:
    """Images that lie in memory together, and the batches to make of them."""

    images: Any  # uint8 tensor [n, height, width]
    targets: Any  # tensor [n, ...], as the loss compares them
    choices: dict[str, np.ndarray]  # int32 [at least `steps`, batch, ...]
    steps: int  # batches to make


class Source(Protocol):
    """Images with their labels in the dataset."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number, height and width of the images."""

    def sample(self, count: int) -> np.ndarray:
        """At most `count` of the images, evenly spaced: uint8 [n, height, width]."""

    def blocks(self) -> Iterator["Examples"]:
        """All images in their order, in blocks that fit into memory."""

    def epochs(self, task: Task, settings: TrainSettings, batch: int, seed: int) -> Callable[[int], Iterator[Chunk]]:
        """A function that hands out an epoch, counted from 1, in batches of `batch` images.

        Each image is in one batch, but for those that are left over at the end and fill none.
        """


@dataclass(frozen=True)
class Examples:
    """Images in memory."""

    images: np.ndarray  # uint8 [n, height, width]
    labels: np.ndarray  # uint8 [n]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number, height and width of the images."""
        number, height, width = self.images.shape
        return number, height, width

    def sample(self, count: int) -> np.ndarray:
        """At most `count` of the images, evenly spaced: uint8 [n, height, width]."""
        return self.images[:: -(-len(self.images) // count)]

    def blocks(self) -> Iterator["Examples"]:
        """All images, in one block."""
        yield self

    def epochs(self, task: Task, settings: TrainSettings, batch: int, seed: int) -> Callable[[int], Iterator[Chunk]]:
        """A function that hands out an epoch in one chunk."""
        images, targets = view_as_tensor(_align(self.images)), tf.constant(task.encode(self.labels))

        def chunks(epoch: int) -> Iterator[Chunk]:
            choices = draw_choices(settings, self.shape, batch, seed=seed, epoch=epoch)
            yield Chunk(images, targets, choices, len(choices["order"]))

        return chunks


@dataclass(frozen=True)
class Stream:
    """Images on disk, in groups that are read when they are needed.

    An epoch takes the groups in a random order, as many together as there is memory for, and mixes the images of those.
    The wider the mixture, the more its batches are like those of a training in memory: images that lie sorted on disk
    want memory for many groups.

    Args:
        sizes: number of images in each group.
        read: images uint8 [n, height, width] and labels uint8 [n] of a group, by its number.
        size: height and width of the images.
        memory: bytes for images, shared by `CHUNKS_IN_MEMORY` chunks. A chunk holds one group and a batch at least.
    """

    sizes: Sequence[int]
    read: Callable[[int], tuple[np.ndarray, np.ndarray]]
    size: tuple[int, int]
    memory: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number, height and width of the images."""
        return sum(self.sizes), *self.size

    def sample(self, count: int) -> np.ndarray:
        """At most `count` of the images, evenly spaced: uint8 [n, height, width]."""
        step = -(-sum(self.sizes) // count)
        # Copies, because a view would keep its whole group in memory.
        parts = [self.read(group)[0][-first % step :: step].copy() for group, first in enumerate(self._firsts)]
        return np.concatenate(parts)

    def blocks(self) -> Iterator[Examples]:
        """All images in their order, a group at a time."""
        for group in range(len(self.sizes)):
            yield Examples(*self.read(group))

    def epochs(self, task: Task, settings: TrainSettings, batch: int, seed: int) -> Callable[[int], Iterator[Chunk]]:
        """A function that hands out an epoch in chunks of one shape, each of several groups."""
        room = max(self.memory // CHUNKS_IN_MEMORY // math.prod(self.size), max(self.sizes) + batch)
        # Two that are used in turn, as views: new memory and a copy for each chunk would double the cost of reading.
        # The next but one chunk is read when training has done with this one.
        buffers = [(_aligned((room, *self.size)), np.zeros(room, np.uint8), np.zeros(room, np.int64)) for _ in range(2)]

        def chunks(epoch: int) -> Iterator[Chunk]:
            order = draw_groups(len(self.sizes), seed=seed, epoch=epoch)
            carried = [buffer[:0].copy() for buffer in buffers[0]]
            for number, groups in enumerate(_pack(order.tolist(), self.sizes, room - batch)):
                images, labels, rows = buffers[number % 2]
                filled = 0
                for part in (carried, *map(self._read, groups)):
                    place = slice(filled, filled + len(part[2]))
                    images[place], labels[place], rows[place] = part
                    filled = place.stop
                choices = draw_choices(
                    settings, self.shape, batch, seed=seed, epoch=epoch, chunk=number, rows=rows[:filled]
                )
                steps = len(choices["order"])
                left = np.ones(filled, bool)
                left[choices["order"]] = False
                carried = [buffer[:filled][left] for buffer in (images, labels, rows)]
                choices = {name: _lengthen(choice, room // batch) for name, choice in choices.items()}
                yield Chunk(view_as_tensor(images), tf.constant(task.encode(labels)), choices, steps)

        return lambda epoch: _read_ahead(chunks(epoch))

    @cached_property
    def _firsts(self) -> list[int]:
        """The row of each group's first image."""
        return [0, *np.cumsum(self.sizes[:-1]).tolist()]

    def _read(self, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images, labels and row numbers of a group."""
        return *self.read(group), np.arange(self.sizes[group]) + self._firsts[group]


def _pack(order: Sequence[int], sizes: Sequence[int], room: int) -> Iterator[list[int]]:
    """Groups in their order, as many at a time as have room together, and at least one."""
    pack: list[int] = []
    for group in order:
        if pack and sum(sizes[member] for member in [*pack, group]) > room:
            yield pack
            pack = []
        pack.append(group)
    yield pack


def _lengthen(array: np.ndarray, length: int) -> np.ndarray:
    """Zeros after the end: for one length of all chunks, so that one graph serves them."""
    return np.concatenate([array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)])


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros, uint8, in memory that a tensor can share."""
    size = math.prod(shape)
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + size].reshape(shape)


def _align(images: np.ndarray) -> np.ndarray:
    """The same images, uint8, in memory that a tensor can share: what is read from Parquet lies there already."""
    if images.ctypes.data % ALIGNMENT == 0 and images.flags.c_contiguous and images.flags.writeable:
        return images
    copy = _aligned(images.shape)
    copy[:] = images
    return copy


def _read_ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The same chunks, each read while the one before is in use."""
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        following = reader.submit(next, chunks, None)
        while (chunk := following.result()) is not None:
            following = reader.submit(next, chunks, None)
            yield chunk
