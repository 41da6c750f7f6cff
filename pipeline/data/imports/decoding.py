"""Decode the pictures of a collection in parallel, resize them to one size, and measure them.

The pixels are written to a file, because a million pictures may not fit into memory.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.data.decoders import decode_picture, read_file, resize
from pipeline.data.sources.collection import TEST, Chunk, Collection
from pipeline.errors import DataError, PipelineError
from pipeline.partitions import map_partitions

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL = 8  # pixels a side
WHITE = (255,)
_SAMPLE = 200  # approximate number of pictures that determine the size and the background
ROWS = 4096  # pictures that are measured together
_MOST_RESIZED = 2**23  # bytes of pixels that a process returns at once


@dataclass(frozen=True)
class Form:
    """Size, colours and background of all pictures after decoding."""

    size: tuple[int, int]  # height and width
    channels: int | None  # 1, 3, or None: 3 if any picture has colours
    resizing: Literal["fit", "crop"]
    ground: tuple[int, ...]  # for padding and behind transparent parts


@dataclass(frozen=True)
class Sample:
    """Measurements of a few pictures, evenly spaced over a collection."""

    sizes: Counter[tuple[int, int]]  # height and width
    ground: tuple[int, ...]  # the median of the border pixels: one value, or three if they differ


@dataclass
class Decoded:
    """The decoded pictures of a chunk."""

    pixels: np.ndarray  # uint8 [n, height, width] or [n, height, width, 3], readable pictures only
    is_readable: np.ndarray  # bool, one for each picture of the chunk
    problems: list[str]  # one for each unreadable picture
    file_digests: np.ndarray  # "S64" [n], SHA-256 of the encoded pictures in hexadecimal
    resized: int  # pictures that had another size


@dataclass
class Pictures:
    """All pictures of a collection after decoding, in its order. n counts the readable ones."""

    classes: tuple[str, ...]
    pixels: np.ndarray  # uint8 [n, height, width] or [n, height, width, 3], a view of a file
    names: list[str]
    labels: np.ndarray  # uint16 [n]
    is_test: np.ndarray  # bool [n]: in the collection's own test split
    groups: list[str] | None  # values of the group column; empty for a row without a group
    file_digests: np.ndarray  # "S64" [n]
    resized: int  # pictures that had another size
    unreadable: list[str]  # name and reason of each unreadable picture


def sample(collection: Collection, channels: int | None) -> Sample:
    """Measure a few pictures. Unreadable ones are skipped: `decode` lists them."""
    every = max(1, sum(collection.counts.values()) // _SAMPLE)
    sizes: Counter[tuple[int, int]] = Counter()
    borders: list[np.ndarray] = []
    first = 0
    for chunk in collection.chunks():
        for place in range(-first % every, len(chunk.names), every):
            try:
                pixels = _decode_one(chunk, place, channels)
            except (DataError, OSError):
                continue
            sizes[pixels.shape[:2]] += 1
            rows = pixels.reshape(*pixels.shape[:2], -1)
            border = np.concatenate([rows[0], rows[-1], rows[:, 0], rows[:, -1]])
            border = border[:: max(1, len(border) // 64)]
            borders.append(np.repeat(border, 3, axis=1) if border.shape[1] == 1 else border)
        first += len(chunk.names)
    ground = tuple(int(value) for value in np.median(np.concatenate(borders), axis=0)) if borders else (0,)
    return Sample(sizes, ground if len(set(ground)) > 1 else ground[:1])


def _decode_one(chunk: Chunk, place: int, channels: int | None) -> np.ndarray:
    picture = chunk.pictures[place]
    if isinstance(picture, np.ndarray):
        return np.asarray(_open_array(picture, channels))
    content = picture if isinstance(picture, bytes) else read_file(picture, follow_links=False)
    return np.asarray(decode_picture(content, chunk.names[place], channels, ground=WHITE))


def decode(collection: Collection, form: Form, scratch: Path, advance: Callable[[int], None]) -> Pictures:
    """Decode all pictures.

    Args:
        scratch: an empty directory for the file of pixels. `Pictures.pixels` is a view of this file.
        advance: called with the number of pictures that were decoded since the last call.
    """
    store = _Store(scratch, form)
    names: list[str] = []
    labels: list[np.ndarray] = []
    is_test: list[np.ndarray] = []
    groups: list[str] = []
    digests: list[np.ndarray] = []
    resized = 0
    unreadable: list[str] = []
    chunks, partitions = tee(chunk for whole in collection.chunks() for chunk in _cut(whole, form))
    results = map_partitions(decode_chunk, ((chunk, form) for chunk in partitions))
    for chunk, decoded in zip(chunks, results, strict=True):
        kept = decoded.is_readable
        store.append(decoded.pixels)
        names += [name for name, good in zip(chunk.names, kept, strict=True) if good]
        labels.append(chunk.labels[kept].astype(np.uint16))
        is_test.append(np.full(int(kept.sum()), chunk.split == TEST))
        if chunk.groups is not None:
            groups += [group for group, good in zip(chunk.groups, kept, strict=True) if good]
        digests.append(decoded.file_digests)
        resized += decoded.resized
        unreadable += decoded.problems
        advance(len(chunk.names))
    return Pictures(
        classes=collection.classes,
        pixels=store.read(),
        names=names,
        labels=np.concatenate([np.empty(0, np.uint16), *labels]),
        is_test=np.concatenate([np.empty(0, bool), *is_test]),
        groups=groups or None,
        file_digests=np.concatenate([np.empty(0, "S64"), *digests]),
        resized=resized,
        unreadable=unreadable,
    )


def _cut(chunk: Chunk, form: Form) -> Iterator[Chunk]:
    """Cut a chunk into parts whose pixels are small enough to pass between processes."""
    rows = max(1, _MOST_RESIZED // (3 * form.size[0] * form.size[1]))
    if len(chunk.names) <= rows:
        yield chunk
        return
    for start in range(0, len(chunk.names), rows):
        part = slice(start, start + rows)
        groups = None if chunk.groups is None else chunk.groups[part]
        yield Chunk(chunk.names[part], chunk.pictures[part], chunk.labels[part], chunk.split, groups)


def decode_chunk(task: tuple[Chunk, Form]) -> Decoded:
    """Decode the pictures of a chunk. Unreadable ones are described and left out."""
    chunk, form = task
    is_readable = np.ones(len(chunk.names), bool)
    problems: list[str] = []
    pictures: list[np.ndarray] = []
    digests: list[str] = []
    resized = 0
    for place, name in enumerate(chunk.names):
        try:
            pixels, digest, is_resized = _decode_resized(chunk.pictures[place], name, form)
        except (PipelineError, OSError) as error:
            is_readable[place] = False
            problems.append(_describe(name, error))
            continue
        pictures.append(pixels)
        digests.append(digest)
        resized += is_resized
    has_colours = any(pixels.ndim == 3 for pixels in pictures)
    if has_colours:
        pictures = [pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2) for pixels in pictures]
    shape = (*form.size, 3) if has_colours else form.size
    stacked = np.stack(pictures) if pictures else np.empty((0, *shape), np.uint8)
    if has_colours and form.channels is None and (stacked == stacked[..., :1]).all():
        stacked = np.ascontiguousarray(stacked[..., 0])  # grey pictures that are stored in colour
    return Decoded(stacked, is_readable, problems, np.array(digests, "S64"), resized)


def _describe(name: str, error: Exception) -> str:
    if isinstance(error, PipelineError):
        return error.problem + (f": {error.found}" if error.found else "")
    return f"{name}: {getattr(error, 'strerror', None) or error}"


def _decode_resized(picture: Any, name: str, form: Form) -> tuple[np.ndarray, str, bool]:
    """Return the pixels of a picture, the SHA-256 of its file, and True if it had another size."""
    channels = 3 if form.channels is None and len(form.ground) > 1 else form.channels
    if isinstance(picture, np.ndarray):
        digest = hashlib.sha256(picture.tobytes()).hexdigest()
        height, width = picture.shape[:2]
        if (height, width) == form.size and (channels is None or (picture.ndim == 3) == (channels == 3)):
            return picture, digest, False
        resized = resize(_open_array(picture, channels), form.size, form.resizing, form.ground)
        return np.asarray(resized), digest, (height, width) != form.size
    content = picture if isinstance(picture, bytes) else read_file(picture, follow_links=False)
    opened = decode_picture(content, name, channels, ground=form.ground, size=form.size)
    resized = resize(opened, form.size, form.resizing, form.ground)
    return np.asarray(resized), hashlib.sha256(content).hexdigest(), resized is not opened


def _open_array(pixels: np.ndarray, channels: int | None) -> "Image":
    from PIL import Image

    opened = Image.fromarray(pixels)
    return opened.convert({1: "L", 3: "RGB"}.get(channels or 0, opened.mode))


class _Store:
    """A file of pixels. It is grey until the first picture in colour is added, and then converted to RGB."""

    def __init__(self, scratch: Path, form: Form) -> None:
        self._grey, self._colour = scratch / "grey.pixels", scratch / "colour.pixels"
        self._form, self._count = form, 0
        self._has_colours = form.channels == 3
        self._file = (self._colour if self._has_colours else self._grey).open("wb")

    def append(self, pixels: np.ndarray) -> None:
        if pixels.ndim == 4 and not self._has_colours:
            self._widen()
        if self._has_colours and pixels.ndim == 3:
            pixels = np.repeat(pixels[..., None], 3, axis=3)
        self._file.write(np.ascontiguousarray(pixels).data)
        self._count += len(pixels)

    def _widen(self) -> None:
        self._file.close()
        self._has_colours, self._file = True, self._colour.open("wb")
        if self._count:
            grey = self._map(self._grey, self._form.size)
            for row in range(0, self._count, ROWS):
                self._file.write(np.repeat(grey[row : row + ROWS, ..., None], 3, axis=3).data)
        self._grey.unlink()

    def read(self) -> np.ndarray:
        self._file.close()
        if self._has_colours:
            return self._map(self._colour, (*self._form.size, 3))
        return self._map(self._grey, self._form.size)

    def _map(self, path: Path, shape: tuple[int, ...]) -> np.ndarray:
        if not self._count:
            return np.empty((0, *shape), np.uint8)
        return np.memmap(path, np.uint8, "r", shape=(self._count, *shape))


@dataclass(frozen=True)
class Measured:
    """Measurements of decoded pictures."""

    digests: np.ndarray  # "S40" [n], SHA-1 of the pixels in hexadecimal, as in the ids of the tables
    thumbnails: np.ndarray  # float32 [n, THUMBNAIL ** 2], mean grey value of each part of a picture
    spread: np.ndarray  # float32 [n], standard deviation of the pixels


def measure(pixels: np.ndarray, advance: Callable[[int], None]) -> Measured:
    """Measure all pictures. pixels: uint8 [n, …], a view of a file (`Pictures.pixels`)."""
    if not len(pixels):
        return Measured(np.empty(0, "S40"), np.empty((0, THUMBNAIL**2), np.float32), np.empty(0, np.float32))
    parts = []
    partitions = ((str(pixels.filename), pixels.shape, row) for row in range(0, len(pixels), ROWS))  # type: ignore[attr-defined]
    for part in map_partitions(measure_rows, partitions):
        parts.append(part)
        advance(len(part.digests))
    return Measured(*(np.concatenate(column) for column in zip(*(vars(part).values() for part in parts), strict=True)))


def measure_rows(task: tuple[str, tuple[int, ...], int]) -> Measured:
    """Measure `ROWS` pictures of a file of pixels."""
    path, shape, first = task
    rows = np.memmap(path, np.uint8, "r", shape=shape)[first : first + ROWS]
    digests = [hashlib.sha1(row, usedforsecurity=False).hexdigest() for row in rows]
    thumbnails, spread = [], []
    for start in range(0, len(rows), 256):  # few, because floating-point numbers take four times the memory
        values = rows[start : start + 256].astype(np.float32)
        flat = values.reshape(len(values), -1)
        squares = np.einsum("ij,ij->i", flat, flat) / flat.shape[1]
        spread.append(np.sqrt(np.maximum(squares - np.square(flat.mean(axis=1)), 0)))
        lines = values.reshape(*values.shape[:2], -1)  # a line's pixels and their colours, averaged together
        colours = values.shape[3] if values.ndim == 4 else 1
        means = _averages(shape[1]) @ (lines @ np.repeat(_averages(shape[2]) / colours, colours, axis=1).T)
        thumbnails.append(means.reshape(len(means), -1))
    return Measured(np.array(digests, "S40"), np.concatenate(thumbnails), np.concatenate(spread))


def _averages(side: int) -> np.ndarray:
    """Return the weights that average `side` pixels in `THUMBNAIL` equal parts: float32 [THUMBNAIL, side]."""
    edges = np.linspace(0, side, THUMBNAIL + 1)
    overlap = np.minimum(edges[1:, None], np.arange(1, side + 1)) - np.maximum(edges[:-1, None], np.arange(side))
    return (overlap.clip(0) * (THUMBNAIL / side)).astype(np.float32)


def limit_names(names: Sequence[str], most: int = 20) -> str:
    """Join names for an error message, one a line. Names after the first `most` are counted."""
    more = [f"and {len(names) - most:,} more"] if len(names) > most else []
    return ("\n" + " " * 12).join([*names[:most], *more])  # aligned with `found:`
